"""Random histories: what a specimen did in the sweeps before the one that the network is to answer.

A session has seen a specimen several times, and the specimen seldom keeps wholly still: structures flash,
appear, move and bleach. A history says how the cubes of a group looked in each earlier sweep; in the last one
they look as they were drawn. Everything is random under the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

History = Callable[[int], Tensor]
"""The cubes (N, Z, Y, X) as they were so many sweeps before the last one."""
MOST_EARLIER = 16
_ALONE = 0.5  # of all sweeps: the first of their session
_KINDS = {"still": 0.45, "active": 0.25, "replaced": 0.15, "drifting": 0.15}
_OFFSETS = {"golden": 0.7, "alternate": 0.15, "fixed": 0.15}
_SPOTS = 8
_DARKEST = 0.1  # of a spot's light: several may dim the same place
_BLEACHING = 0.04  # of the light, per sweep, at most
_DRIFT = 0.15  # voxels a sweep, at most


def earlier_sweeps(rng: np.random.Generator) -> int:
    """Return how many sweeps a session has seen before."""
    return 0 if rng.random() < _ALONE else round(float(np.exp(rng.uniform(0.0, np.log(MOST_EARLIER)))))


def random_offsets(rng: np.random.Generator) -> str:
    """Return the order of the sweeps' offsets, as `sweep.offsets`."""
    return str(rng.choice(list(_OFFSETS), p=list(_OFFSETS.values())))


def random_history(rng: np.random.Generator, cubes: Tensor, others: Tensor, earlier: int) -> History:
    """Return a history of cubes (N, Z, Y, X) over so many earlier sweeps; `others` are as many more cubes."""
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values()))) if earlier else "still"
    makers: dict[str, Callable[[], History]] = {
        "still": lambda: lambda ago: cubes,
        "active": lambda: _active(rng, cubes, earlier),
        "replaced": lambda: _replaced(rng, cubes, others, earlier),
        "drifting": lambda: _drifting(rng, cubes),
    }
    history = makers[kind]()
    bleached = float(rng.uniform(0.0, _BLEACHING)) if rng.random() < 0.2 else 0.0
    return lambda ago: history(ago) / (1 - bleached) ** ago


def _active(rng: np.random.Generator, cubes: Tensor, earlier: int) -> History:
    """Let compact spots brighten, or dim, for some sweeps."""
    edges = cubes.shape[1:]
    place = torch.meshgrid(*(torch.arange(edge, dtype=torch.float32) for edge in edges), indexing="ij")
    spots: list[tuple[Tensor, float, range]] = []
    for _ in range(int(rng.integers(2, _SPOTS + 1))):
        size = float(rng.uniform(1.5, 5.0))
        middle = [float(rng.uniform(0, edge)) for edge in edges]
        square = sum((axis - at) ** 2 for axis, at in zip(place, middle, strict=True))
        change = float(rng.uniform(0.2, 1.5)) if rng.random() < 0.8 else float(rng.uniform(-0.7, -0.2))
        ends = int(rng.integers(0, earlier + 2))
        shape = torch.exp(-0.5 * torch.as_tensor(square) / size**2)
        spots.append((shape, change, range(ends, ends + int(rng.integers(1, 6)))))

    def brightness(ago: int) -> Tensor:
        changes = sum((change * shape for shape, change, when in spots if ago in when), torch.zeros(()))
        return (1 + changes).clamp_min(_DARKEST)

    # The last sweep's cubes are as they were drawn, whatever was active in it.
    last = brightness(0)
    return lambda ago: cubes * (brightness(ago) / last)


def _replaced(rng: np.random.Generator, cubes: Tensor, others: Tensor, earlier: int) -> History:
    """Let what is in some boxes appear: before, something else was there."""
    boxes: list[tuple[tuple[slice, ...], int]] = []
    for _ in range(int(rng.integers(1, 4))):
        sizes = [int(rng.integers(edge // 8, 5 * edge // 8)) for edge in cubes.shape[1:]]
        starts = [
            int(rng.integers(0, edge - size)) for edge, size in zip(cubes.shape[1:], sizes, strict=True)
        ]
        box = (slice(None), *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)))
        boxes.append((box, int(rng.integers(1, earlier + 1))))

    def history(ago: int) -> Tensor:
        volume = cubes.clone()
        for box, since in boxes:
            if ago >= since:
                volume[box] = others[box]
        return volume

    return history


def _drifting(rng: np.random.Generator, cubes: Tensor) -> History:
    """Let all of it drift."""
    by: NDArray[np.float64] = rng.uniform(-_DRIFT, _DRIFT, 3)

    def history(ago: int) -> Tensor:
        moved = [ndimage.shift(cube.numpy(), -ago * by, order=1, mode="nearest") for cube in cubes]
        return torch.from_numpy(np.stack(moved))

    return history
