"""Seconds that this engine takes for a sweep of a configuration: a second of measurement, before a run.

Sweeps of the plan, of the demo's tissue, through a reconstructor of their own. That flickers, drifts and
bleaches, and the network adds to it: a specimen that keeps still, or that the network is worth nothing to,
takes less. Of a large image a part is measured: what the network takes goes with the pixels of its tiles
(which overlap), all else with those of the image. Imports torch: for a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.config import SpecimenConfig
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.engines.diffusion import HALO
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.frames import StagePosition, StagePositions, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microdiffusion.config import Config
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.header import RunHeader

_VOXELS = {"cpu": 96 * 128 * 128, "cuda": 128 * 512 * 512}
"""Most voxels that are measured; half of them where a run waits."""
_VOXEL_UM = (2.0, 1.0, 1.0)  # of the demo
_GROWN = 256
"""Pixels along an edge for which tissue is grown (0.9 s for 48 x 181 x 181, 9 s for 48 x 836 x 836); it is
mirrored beyond."""
_LEAST_EDGE = 48  # of the part, pixels
_COLD, _LEAST, _MOST = 3, 4, 8
"""Sweeps that are not counted (kernels are chosen, a session begins), and that are."""


@dataclass(frozen=True, slots=True)
class SweepTime:
    """Seconds that the engine takes for a sweep, the (Y, X) pixels that were measured, and its name.

    `cpu_s` are the seconds of processor time, of all cores together, which other programs lengthen less.
    """

    seconds: float
    cpu_s: float
    measured: tuple[int, int]
    runtime: str


def measure_sweep(
    config: Config, image: tuple[int, int], engine: Engine | None = None, *, budget_s: float
) -> SweepTime:
    """Return what a sweep of `config` takes with images of (Y, X) pixels; about `budget_s` are measured.

    An `engine` that is open already has a run before it: `budget_s` are all that is spent, or two sweeps.

    Raises
    ------
    MddError
        The engine cannot be opened, or the plan not carried out.
    """
    least, first, most = (_COLD + _LEAST, _COLD, 1.0) if engine is None else (2, 0, 0.5)
    engine = engine or open_engine(config.engine.model_copy(update={"compile": False}))
    plan = Plan(config)
    part = _part(image, most * _VOXELS.get(engine.device.type, _VOXELS["cpu"]) / config.volume.shape_z)
    header = plan.header(part, config.volume.pixel_um or 1.0, source="")
    reconstructor = Reconstructor(header, config.engine, engine)
    taken: list[tuple[float, float, float]] = []
    for sweep in islice(_sweeps(config, plan, header), _COLD + _MOST):
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        seconds = reconstructor.reconstruct(sweep).seconds
        total_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        taken.append((total_s, seconds.get("sampler", 0.0), cpu_s))
        if len(taken) >= least and sum(total for total, *_ in taken[first:]) > budget_s:
            break
    counted = taken[min(_COLD, len(taken) - 1) :]
    total_s, network_s, cpu_s = np.mean(counted, axis=0).tolist()
    tile = config.engine.tile
    network = _network_pixels(image, tile) / _network_pixels(part, tile)
    rest = image[0] * image[1] / (part[0] * part[1])
    whole = (network_s * network + (total_s - network_s) * rest) / total_s
    return SweepTime(total_s * whole, cpu_s * whole, part, engine.name)


def _part(image: tuple[int, int], pixels: float) -> tuple[int, int]:
    """Return a part of an image of about so many pixels, as square as it can be."""
    edge = max(int(pixels**0.5), _LEAST_EDGE)
    rows, columns = (min(each, edge) for each in image)
    return min(image[0], max(rows, int(pixels / columns))), min(image[1], max(columns, int(pixels / rows)))


def _network_pixels(image: tuple[int, int], tile: int) -> int:
    """Return the pixels of all tiles of an image, those included that are computed twice."""
    rows, columns = (each + 2 * HALO * (-(-each // tile) - 1) for each in image)
    return rows * columns


def _sweeps(config: Config, plan: Plan, header: RunHeader) -> Iterator[Sweep]:
    """Yield sweeps of virtual tissue, as large in voxels as the demo's, as a daemon assembles them."""
    rng = np.random.default_rng(0)
    scale = _VOXEL_UM[0] / header.voxel_size_um[0]
    lengths = {key: scale * getattr(header, key) for key in ("z0_um", "profile_spacing_um")}
    image = header.shape[1:]
    shape = (header.shape[0], *(min(edge, _GROWN) for edge in image))
    tissue = header.model_copy(update={"shape": shape, "voxel_size_um": _VOXEL_UM, **lengths})
    beyond = [(0, edge - grown) for edge, grown in zip(image, shape[1:], strict=True)]
    specimen = specimen_of_run(SpecimenConfig(), tissue)
    interval_s = max(config.acquisition.sweep_interval_s, 1.0)
    for number in count():
        slabs = sorted(plan.slabs(number), key=lambda slab: slab.stage.z_um)
        seen, stages = [], []
        for held_out in (False, True):
            stages.append([slab.stage for slab in slabs if slab.held_out is held_out])
            light = np.zeros((len(stages[-1]), *image), np.float32)
            for index, stage in enumerate(stages[-1]):
                place = StagePosition(scale * stage.z_um)
                part = specimen.expected(place, tissue.profile, number * interval_s)
                light[index] = np.pad(part, beyond, mode="symmetric")
            seen.append(header.camera.expose(light, rng).astype(np.float32))
        used, held = map(StagePositions.of, stages)
        yield Sweep(number, 0, 0, used, seen[0], held, seen[1])
