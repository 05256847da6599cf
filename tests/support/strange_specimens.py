"""Specimens that no network was trained on: what a method must not make worse than the linear answers do.

Each is a volume (Z, Y, X) float32 within [0, 1], a pure function of its shape and of a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]


def _grid(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))


def grating(shape: tuple[int, int, int], wave: tuple[float, float, float]) -> Volume:
    """Return a sinusoid; `wave` is the slices or pixels of a period along z, y and x, 0: constant."""
    phase = sum(
        place * (2 * np.pi / period) for place, period in zip(_grid(shape), wave, strict=True) if period
    )
    return np.asarray(0.5 + 0.5 * np.sin(phase), dtype=np.float32)


def checker(shape: tuple[int, int, int], edge: int) -> Volume:
    """Return cubes of `edge` voxels, dark and bright in turn."""
    return np.asarray((_grid(shape) // edge).sum(axis=0) % 2, dtype=np.float32)


def shells(shape: tuple[int, int, int], distance: float = 9.0) -> Volume:
    """Return thin concentric spherical shells."""
    middle = np.array(shape)[:, None, None, None] / 2
    radius = np.sqrt(np.square(_grid(shape) - middle).sum(axis=0))
    return np.asarray(np.exp(-0.5 * np.square((radius % distance - distance / 2) / 1.2)), dtype=np.float32)


def plates(shape: tuple[int, int, int], distance: int = 11) -> Volume:
    """Return bright discs two slices thin, each another slice of its slab."""
    z, y, x = _grid(shape)
    inside = np.square(y - shape[1] / 2) + np.square(x - shape[2] / 2) < (0.4 * min(shape[1:])) ** 2
    return np.asarray((z % distance < 2) & inside, dtype=np.float32)


def white(shape: tuple[int, int, int]) -> Volume:
    """Return a volume of independent voxels."""
    return np.asarray(np.random.default_rng(1).random(shape), dtype=np.float32)


def points(shape: tuple[int, int, int], count: int = 12) -> Volume:
    """Return single bright voxels in the dark."""
    volume = np.zeros(shape, dtype=np.float32)
    volume[tuple(np.random.default_rng(2).integers(2, np.array(shape) - 2, (count, 3)).T)] = 1.0
    return volume


def ramp(shape: tuple[int, int, int], axis: int) -> Volume:
    """Return a slope from 0 to 1 along one axis."""
    return np.asarray(_grid(shape)[axis] / (shape[axis] - 1), dtype=np.float32)


def edge(shape: tuple[int, int, int]) -> Volume:
    """Return a plane that cuts the volume aslant into dark and bright."""
    z, y, x = _grid(shape)
    return np.asarray(
        z + 0.5 * y + 0.3 * x > 0.5 * shape[0] + 0.25 * shape[1] + 0.15 * shape[2], dtype=np.float32
    )


def constant(shape: tuple[int, int, int]) -> Volume:
    """Return a uniform volume."""
    return np.full(shape, 0.5, dtype=np.float32)


STRANGE: dict[str, Callable[[tuple[int, int, int]], Volume]] = {
    "grating across": partial(grating, wave=(0, 0, 8)),
    "grating across, fine": partial(grating, wave=(0, 3, 0)),
    "grating along z, 24": partial(grating, wave=(24, 0, 0)),
    "grating along z, 12": partial(grating, wave=(12, 0, 0)),
    "grating along z, 7": partial(grating, wave=(7, 0, 0)),
    "grating aslant": partial(grating, wave=(18, 12, 9)),
    "grating aslant, fine": partial(grating, wave=(9, 6, 14)),
    "checker 2": partial(checker, edge=2),
    "checker 5": partial(checker, edge=5),
    "checker 9": partial(checker, edge=9),
    "shells": shells,
    "plates": plates,
    "white noise": white,
    "points": points,
    "ramp along z": partial(ramp, axis=0),
    "ramp across": partial(ramp, axis=2),
    "aslant edge": edge,
    "constant": constant,
}
"""Name to a function of the shape."""
