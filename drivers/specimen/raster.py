"""Curves and balls in space, and their voxels, antialiased for any voxel shape.

There is one shape, the `Tube`: a curve whose thickness varies. A ball is a short tube. Tubes are filled with
evenly spaced points, each of which carries the volume it represents and is shared among its eight nearest
voxels, so an axon thinner than a voxel has the right brightness on an anisotropic grid. Results are
coverages: the share of a voxel that the shape fills. All lengths are µm, all points (z, y, x). Pure
functions, safe on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
_MAX_DISC_POINTS = 400


@dataclass(frozen=True, slots=True)
class Tube:
    """A curve with a thickness: `points` (N, 3) and `radius` (N,), µm."""

    points: NDArray[np.float64]
    radius: NDArray[np.float64]


def ball(centre: NDArray[np.float64], half_z_um: float, radius_um: float) -> Tube:
    """Return a spheroid: `half_z_um` along z, `radius_um` across."""
    angle = np.linspace(0.0, np.pi, 33)
    along = np.array([half_z_um, 0.0, 0.0])
    return Tube(centre - np.cos(angle)[:, None] * along, radius_um * np.sin(angle))


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxels: `shape` (Z, Y, X), `voxel_um` (3,), and `first_um` (3,), the centre of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    voxel_um: NDArray[np.float64]
    first_um: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))


def cover(
    tubes: Sequence[Tube], grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the voxels that tubes fill: flat indices (K,), ascending, and coverages (K,), at most 1.

    `rng` only turns the discs of points against each other, so that no pattern shows.
    """
    points, volumes = _fill(tubes, 0.6 * float(grid.voxel_um.min()), rng)
    position = (points - grid.first_um) / grid.voxel_um
    base = np.floor(position).astype(np.int64)
    near = np.all((base >= -1) & (base < grid.shape), axis=1)
    if not near.any():
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    base, part = base[near], (position - base)[near]
    shares = volumes[near] / float(np.prod(grid.voxel_um))
    # Only the block that the tubes touch is summed up, with one voxel to spare on each side.
    low = base.min(axis=0)
    block = tuple(base.max(axis=0) - low + 2)
    coverage = np.zeros(int(np.prod(block)))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1.0 - part), axis=1)
        flat = np.ravel_multi_index(tuple((base - low + corner).T), block)
        coverage += np.bincount(flat, weights=weight * shares, minlength=coverage.size)
    filled = np.flatnonzero(coverage > 1e-3)
    voxel = np.array(np.unravel_index(filled, block)).T + low
    inside = np.all((voxel >= 0) & (voxel < grid.shape), axis=1)
    found = np.minimum(coverage[filled[inside]], 1.0).astype(np.float32)
    return np.ravel_multi_index(tuple(voxel[inside].T), grid.shape), found


def _fill(
    tubes: Sequence[Tube], spacing_um: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (N, 3) that fill tubes evenly, and the volume (N,) µm³ of each."""
    starts = np.concatenate([tube.points[:-1] for tube in tubes])
    ways = np.concatenate([np.diff(tube.points, axis=0) for tube in tubes])
    thickness = np.concatenate([tube.radius[:-1] for tube in tubes])
    change = np.concatenate([np.diff(tube.radius) for tube in tubes])
    lengths = np.linalg.norm(ways, axis=1)
    slices = np.maximum(np.ceil(lengths / spacing_um).astype(int), 1)
    segment = np.repeat(np.arange(len(slices)), slices)
    fraction = (_count_up(slices) + 0.5) / slices[segment]
    centres = starts[segment] + fraction[:, None] * ways[segment]
    radius = thickness[segment] + fraction * change[segment]
    tangents = (ways / np.maximum(lengths, 1e-12)[:, None])[segment]
    across = np.cross(tangents, np.eye(3)[np.argmin(np.abs(tangents), axis=1)])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    other = np.cross(tangents, across)

    # On each disc a sunflower, turned by a random angle.
    area = np.pi * radius**2
    counts = np.clip(np.ceil(area / spacing_um**2).astype(int), 1, _MAX_DISC_POINTS)
    disc = np.repeat(np.arange(len(counts)), counts)
    seed = _count_up(counts)
    angle = seed * _GOLDEN_ANGLE + rng.uniform(0.0, 2.0 * np.pi, len(counts))[disc]
    reach = radius[disc] * np.sqrt((seed + 0.5) / counts[disc]) * (counts[disc] > 1)
    points = centres[disc] + (reach * np.cos(angle))[:, None] * across[disc]
    points += (reach * np.sin(angle))[:, None] * other[disc]
    return points, (area * (lengths / slices)[segment] / counts)[disc]


def _count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 .. n-1 for each n of `counts`, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
