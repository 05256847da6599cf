"""Objects that a specimen has or has not: spines, short pieces of vessels, nuclei.

Two origins. *Own* objects are the specimen's: what stands out from its surroundings (the white top-hat, Serra
1982) within a ball around a place where much does, so that they can be removed. *Added* ones are drawn. Of
each object there is a specimen with it and one without it, and neither tells which it is. All follows from
the volume and a seed. Pure; scipy is imported only here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Volume = NDArray[np.float32]

ORIGINS = ("own", "added")
_CONTRAST = (0.05, 0.5)  # peak of what is added, share of the range; drawn evenly on a logarithmic scale
_LEAST = 0.1  # peak of an own object
_SMOOTH = 0.7  # voxels
_KEPT = 0.5  # of an added object's light that must fit under the top of the range
_BRIGHT = 90.0  # percentile from which on a voxel belongs to a structure that can bear a spine


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of object: `radius` (voxels) bounds what opening removes, `reach` the ball it lies in."""

    name: str
    radius: int
    reach: int


KINDS = (ObjectKind("spines", 2, 4), ObjectKind("vessels", 3, 6), ObjectKind("nuclei", 4, 6))


@dataclass(frozen=True, slots=True, eq=False)
class ProbeObject:
    """An object: its light (2 reach + 1 along each edge) around `place` (z, y, x), and its origin."""

    place: tuple[int, int, int]
    light: Volume
    origin: str

    def patch(self, volume: NDArray[np.float32], place: tuple[int, int, int] | None = None) -> Volume:
        """Return the view of a volume that the object covers, at its own place or at another."""
        reach = len(self.light) // 2
        where = tuple(slice(at - reach, at + reach + 1) for at in place or self.place)
        return volume[where]


def plant(
    specimen: Volume, kind: ObjectKind, count: int, rng: np.random.Generator
) -> tuple[Volume, list[ProbeObject]]:
    """Return the specimen (Z, Y, X) in [0, 1] without any of the objects, and up to `count` of each origin.

    Objects do not touch each other, and lie inside the volume as a whole; their light fits under 1.
    """
    apart = 2 * kind.reach + 2
    inside = np.zeros(specimen.shape, np.bool_)
    margin = kind.reach + 1
    inside[margin:-margin, margin:-margin, margin:-margin] = True
    bare = specimen.copy()
    objects: list[ProbeObject] = []

    def free(place: NDArray[np.int64]) -> bool:
        return all(np.linalg.norm(place - np.array(each.place)) >= apart for each in objects)

    stands_out = standing_out(specimen, kind.radius)
    for place in _own_places(stands_out, inside, kind, rng):
        if len(objects) < count and free(place):
            light = _cut(stands_out, place, kind.reach) * _window(kind.reach)
            own = ProbeObject(_place(place), light.astype(np.float32), "own")
            own.patch(bare)[...] -= own.light
            objects.append(own)
    own_ones = len(objects)
    bearing = specimen > np.percentile(specimen, _BRIGHT)
    distance, nearest = ndimage.distance_transform_edt(~bearing, return_indices=True)
    there = inside & (distance >= 2) & (distance <= 3.5) if kind.name == "spines" else inside
    for place in rng.permutation(np.argwhere(there))[:4000]:
        if len(objects) - own_ones >= count:
            break
        if not free(place):
            continue
        drawn = np.exp(rng.uniform(*np.log(_CONTRAST))) * _drawn(
            kind, rng, nearest[(slice(None), *place)] - place
        )
        light = np.minimum(drawn, 1.0 - _cut(bare, place, kind.reach)) * _window(kind.reach)
        if np.sum(light**2) >= _KEPT * np.sum(drawn**2):
            objects.append(ProbeObject(_place(place), light.astype(np.float32), "added"))
    return bare, objects


def standing_out(volume: Volume, radius: int) -> Volume:
    """Return what a ball of `radius` voxels does not fit into: the white top-hat, smoothed against noise."""
    smooth = ndimage.gaussian_filter(volume, _SMOOTH)
    # Noise stays where an object is removed, as it is no object.
    lower = ndimage.grey_opening(smooth, footprint=_ball(radius))
    return np.asarray(np.minimum(smooth - lower, volume), np.float32)


def _own_places(
    stands_out: Volume, inside: NDArray[np.bool_], kind: ObjectKind, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield places where most stands out, in random order."""
    peaks = ndimage.maximum_filter(stands_out, kind.reach + 1) == stands_out
    yield from rng.permutation(np.argwhere(peaks & inside & (stands_out >= _LEAST)))


def _drawn(kind: ObjectKind, rng: np.random.Generator, towards: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw an object, its peak 1; `towards` (3,) leads from it to the structure that bears it."""
    grid = np.stack(np.meshgrid(*[np.arange(-kind.reach, kind.reach + 1)] * 3, indexing="ij"), axis=-1)
    if kind.name == "spines":
        head = np.exp(-np.sum(grid**2, axis=-1) / (2 * rng.uniform(0.9, 1.3) ** 2))
        return np.asarray(np.maximum(head, 0.5 * _tube(grid, np.zeros(3), towards.astype(np.float64), 0.8)))
    way = rng.standard_normal(3)
    way /= np.linalg.norm(way)
    if kind.name == "vessels":
        half = rng.uniform(0.5, 0.8) * kind.reach
        return _tube(grid, -half * way, half * way, rng.uniform(1.0, 1.6))
    along = grid @ way
    across = np.sqrt(np.maximum(np.sum(grid**2, axis=-1) - along**2, 0.0))
    radius, stretch = rng.uniform(2.2, 3.6), rng.uniform(1.0, 1.3)
    far = np.hypot(along / stretch, across) - radius
    body = 1.0 / (1.0 + np.exp(2.5 * far))
    return np.asarray(body / body.max())


def _tube(
    grid: NDArray[np.int64], begin: NDArray[np.float64], end: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return a tube of Gaussian profile around a segment."""
    way = end - begin
    along = np.clip((grid - begin) @ way / max(float(way @ way), 1e-9), 0.0, 1.0)
    far = np.sum((grid - begin - along[..., None] * way) ** 2, axis=-1)
    return np.asarray(np.exp(-far / (2 * width**2)), np.float64)


def _cut(volume: Volume, place: NDArray[np.int64], reach: int) -> Volume:
    return volume[tuple(slice(at - reach, at + reach + 1) for at in place)]


def _window(reach: int) -> NDArray[np.float64]:
    """Return a ball with a soft edge, which no light of an object leaves."""
    far = np.sqrt(sum(axis**2 for axis in np.ogrid[(slice(-reach, reach + 1),) * 3]))
    return np.asarray(np.clip(reach + 0.5 - far, 0.0, 1.0))


def _ball(radius: int) -> NDArray[np.bool_]:
    return np.asarray(sum(axis**2 for axis in np.ogrid[(slice(-radius, radius + 1),) * 3]) <= radius**2 + 1)


def _place(place: NDArray[np.int64]) -> tuple[int, int, int]:
    z, y, x = (int(at) for at in place)
    return z, y, x
