"""Coarser copies of a volume: which levels there are, and the means that fill them.

Owns the rule of `/pyramid` in a run file (docs/run-file.md): a voxel of a level is the mean of the block of
voxels of the volume that it covers, taken from the volume as it is in the file. Integers are summed exactly
and rounded half up; float32 is summed in float32, neighbours in x first, then in y, then in z, level upon
level. So the pyramid of a volume can be recomputed bit for bit. Voxels that do not fill a block at the far
edge of an axis are left out.

A `Pyramid` takes a volume plane by plane, in the pieces in which it goes to the disk, and holds less than one
plane of sums. Used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Factors = tuple[int, int, int]

_LARGEST_EDGE = 64  # of the coarsest level: one screen tile, and read in no time
_MOST_LEVELS = 4


def level_factors(
    shape: tuple[int, int, int], voxel_size_um: tuple[float, float, float]
) -> tuple[Factors, ...]:
    """Return how many voxels (z, y, x) make one of each coarser level; empty for a small volume.

    Each level halves y and x, and z as well where a voxel is not longer in z than across, until the larger
    lateral edge is 64 or less; at most four levels.
    """
    depth, *lateral = shape
    edge_z, *edges = voxel_size_um
    z, across = 1, 1
    found: list[Factors] = []
    while max(lateral) // across > _LARGEST_EDGE and len(found) < _MOST_LEVELS:
        if min(lateral) // across < 2:
            break
        if edge_z * z <= max(edges) * across and depth // z >= 2:
            z *= 2
        across *= 2
        found.append((z, across, across))
    return tuple(found)


def level_shape(shape: tuple[int, int, int], factors: Factors) -> tuple[int, int, int]:
    """Return the shape (Z, Y, X) of a level."""
    z, y, x = (size // factor for size, factor in zip(shape, factors, strict=True))
    return z, y, x


@dataclass(slots=True)
class _Level:
    """Sums (Y, X) of the planes so far of the next plane of a level, which takes `planes` of those before."""

    sums: NDArray[Any]
    planes: int
    voxels: int  # of the volume, in one of the level
    held: int = 0
    z: int = 0

    def take(self, y: int, sums: NDArray[Any]) -> None:
        target = self.sums[y : y + len(sums)]
        if self.held:
            np.add(target, sums, out=target)
        else:
            target[...] = sums

    def mean(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype.kind == "f":
            return np.asarray(self.sums * np.float32(1 / self.voxels), dtype)
        bits = self.voxels.bit_length() - 1  # a power of two
        return ((self.sums + np.uint32(self.voxels // 2)) >> np.uint32(bits)).astype(dtype)


class Pyramid:
    """The coarser levels of a volume that is passed in pieces: `begin`, then `add` each piece in order.

    Parameters
    ----------
    shape : (Z, Y, X) of the volume
    factors : tuple of (z, y, x)
        Of each level, each twice the one before, or the same in z.
    dtype : uint16 or float32
        Of the volume and its levels.
    """

    def __init__(
        self, shape: tuple[int, int, int], factors: tuple[Factors, ...], dtype: np.dtype[Any]
    ) -> None:
        self._dtype = dtype
        kind = np.float32 if dtype.kind == "f" else np.uint32
        self._levels: list[_Level] = []
        before = 1
        for level in factors:
            _, rows, columns = level_shape(shape, level)
            z, y, x = level
            self._levels.append(_Level(np.zeros((rows, columns), kind), z // before, z * y * x))
            before = z

    def begin(self) -> None:
        """Forget what came, for the next volume."""
        for level in self._levels:
            level.held = level.z = 0

    def add(self, y: int, rows: NDArray[Any], *, ends_plane: bool) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Take the next rows of the volume and yield (level, z, plane) for each plane that is complete.

        Parameters
        ----------
        y
            Index of the first row, even.
        rows : (n, X) of the volume's type
            An even number of rows, but at the far edge.
        ends_plane
            Whether these are the plane's last.
        """
        if not self._levels:
            return
        self._levels[0].take(y // 2, pair_sums(rows))
        if not ends_plane:
            return
        for number, level in enumerate(self._levels):
            level.held += 1
            if level.held < level.planes:
                return
            yield number + 1, level.z, level.mean(self._dtype)
            level.held = 0
            level.z += 1
            if number + 1 < len(self._levels):
                self._levels[number + 1].take(0, pair_sums(level.sums))


def pair_sums(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the sums of blocks of 2 x 2, x first: (n, X) to (n // 2, X // 2), uint32 or float32."""
    height, width = rows.shape[0] // 2 * 2, rows.shape[1] // 2 * 2
    rows = rows[:height, :width]
    if rows.dtype == np.dtype("<u2"):
        # Two neighbours share one uint32: adding its halves is twice as fast as adding every other element.
        pairs = np.ascontiguousarray(rows).view("<u4")
        across = pairs & np.uint32(0xFFFF)
        across += pairs >> np.uint32(16)
    else:
        across = rows[:, 0::2] + rows[:, 1::2]
    return across[0::2] + across[1::2]


def coarser(volume: NDArray[Any], factors: tuple[Factors, ...]) -> list[NDArray[Any]]:
    """Return the coarser levels of a whole volume (Z, Y, X), uint16 or float32."""
    z, y, x = volume.shape
    dtype = volume.dtype
    levels = [np.empty(level_shape((z, y, x), level), dtype) for level in factors]
    pyramid = Pyramid((z, y, x), factors, dtype)
    for plane in volume:
        for level, at, mean in pyramid.add(0, plane, ends_plane=True):
            levels[level - 1][at] = mean
    return levels
