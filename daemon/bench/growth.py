"""How the cost of a volume grows: with its area, its depth, with evaluations and with sessions.

Everything of one comparison takes turns, so that a machine with other work slows all of it alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.bench.settings import size_name
from microdiffusion.daemon.bench.timing import take_turns
from microdiffusion.daemon.bench.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microdiffusion.daemon.bench.measure import Bench
    from microdiffusion.daemon.bench.settings import Size

AREAS: tuple[Size, ...] = ((64, 128, 128), (64, 256, 256), (64, 512, 512))
DEPTHS: tuple[Size, ...] = ((32, 128, 128), (64, 128, 128), (130, 128, 128))
EVALUATIONS = (1, 2, 4, 8)
SESSIONS = (1, 2, 4)


def all_growth(bench: Bench, *, quick: bool = False) -> dict[str, Any]:
    """Return the cost against area, depth, evaluations and sessions; `quick` leaves the largest out."""
    areas, depths = (AREAS[:2], DEPTHS[:2]) if quick else (AREAS, DEPTHS)
    return {
        "area": over_sizes(bench, areas),
        "depth": over_sizes(bench, depths),
        "evaluations": over_evaluations(bench, EVALUATIONS[:2] if quick else EVALUATIONS),
        "sessions": over_sessions(bench, SESSIONS[:2] if quick else SESSIONS),
    }


def over_sizes(bench: Bench, sizes: tuple[Size, ...]) -> dict[str, Any]:
    """Return the cost of an update over sizes."""
    turns, voxels = {}, {}
    for size in sizes:
        scene = bench.scene(size)
        reconstructor = bench.reconstructor(scene, bench.settings.evaluations[0])
        turns[size_name(size)] = Turn(reconstructor, scene)
        voxels[size_name(size)] = size[0] * size[1] * size[2]
    return growth_of(_least(bench, turns), voxels, linear=True)


def over_evaluations(bench: Bench, numbers: tuple[int, ...], size: Size = DEPTHS[1]) -> dict[str, Any]:
    """Return the cost of an update of one size over the network's evaluations."""
    scene = bench.scene(size)
    turns = {str(number): Turn(bench.reconstructor(scene, number), scene) for number in numbers}
    return growth_of(_least(bench, turns), dict.fromkeys(turns, size[0] * size[1] * size[2]))


def over_sessions(bench: Bench, numbers: tuple[int, ...], size: Size = DEPTHS[1]) -> dict[str, Any]:
    """Return the cost of an update where so many sessions take turns in one reconstructor."""
    scene = bench.scene(size)
    turns = {}
    for number in numbers:
        reconstructor = bench.reconstructor(scene, bench.settings.evaluations[0])
        turns[str(number)] = Turn(reconstructor, scene, sessions=number)
    seconds = {name: value / int(name) for name, value in _least(bench, turns).items()}
    return growth_of(seconds, dict.fromkeys(turns, size[0] * size[1] * size[2]))


def growth_of(
    seconds: Mapping[str, float], voxels: Mapping[str, int], *, linear: bool = False
) -> dict[str, Any]:
    """Return seconds and nanoseconds per voxel, and how much more the largest costs per voxel."""
    each = {name: 1e9 * seconds[name] / voxels[name] for name in seconds}
    result: dict[str, Any] = {"volume_s": dict(seconds), "ns_per_voxel": each}
    if linear:
        smallest, largest = (pick(voxels, key=lambda name: voxels[name]) for pick in (min, max))
        result["largest_over_smallest"] = each[largest] / each[smallest]
    return result


def _least(bench: Bench, turns: Mapping[str, Turn]) -> dict[str, float]:
    seconds = take_turns(turns, bench.device, bench.settings.rounds)
    return {name: min(values) for name, values in seconds.items()}
