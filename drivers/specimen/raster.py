"""Turning curves and balls into voxels, antialiased whatever the voxel's shape.

Tubes are filled with evenly spread points, each of which carries the volume it stands for and is shared
among its eight nearest voxels; so an axon thinner than a voxel has the right brightness on an anisotropic
grid, wherever it runs. Balls are sampled on a finer grid. Results are coverages: the share of a voxel
that the shape fills. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from microdiffusion.drivers.specimen.shapes import Ball, Tube

_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
_MAX_DISC_POINTS = 400


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

    def window(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[slice, slice, slice] | None:
        """Return the voxels that touch the cuboid `low` to `high` (µm), None where it misses the grid."""
        first = np.maximum(np.floor((low - self.first_um) / self.voxel_um - 0.5).astype(int), 0)
        last = np.minimum(np.ceil((high - self.first_um) / self.voxel_um + 0.5).astype(int) + 1, self.shape)
        if np.any(last <= first):
            return None
        return (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))

    def centres(self, window: tuple[slice, slice, slice]) -> list[NDArray[np.float64]]:
        """Return the coordinates (µm) of a window's voxels along each axis."""
        return [
            self.first_um[k] + np.arange(s.start, s.stop) * self.voxel_um[k] for k, s in enumerate(window)
        ]


def cover_tubes(
    tubes: Sequence[Tube], grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the voxels that tubes fill: flat indices (K,), ascending, and coverages (K,).

    `rng` only turns the discs of points against each other, so that no pattern shows.
    """
    starts = np.concatenate([tube.points[:-1] for tube in tubes])
    ends = np.concatenate([tube.points[1:] for tube in tubes])
    radii = np.concatenate([np.column_stack([tube.radius[:-1], tube.radius[1:]]) for tube in tubes])
    points, volumes = _fill(starts, ends, radii, 0.6 * float(grid.voxel_um.min()), rng)
    return _share(points, volumes / float(np.prod(grid.voxel_um)), grid)


def _fill(
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    radii: NDArray[np.float64],
    spacing_um: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (N, 3) that fill the tube segments evenly, and the volume (N,) µm³ of each."""
    lengths = np.linalg.norm(ends - starts, axis=1)
    slices = np.maximum(np.ceil(lengths / spacing_um).astype(int), 1)
    segment = np.repeat(np.arange(len(slices)), slices)
    fraction = (_count_up(slices) + 0.5) / slices[segment]
    centres = starts[segment] + fraction[:, None] * (ends - starts)[segment]
    radius = radii[segment, 0] + fraction * (radii[segment, 1] - radii[segment, 0])
    tangents = ((ends - starts) / np.maximum(lengths, 1e-12)[:, None])[segment]
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
    volumes = (area * (lengths / slices)[segment] / counts)[disc]
    return points, volumes


def _count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 .. n-1 for each n of `counts`, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _share(
    points: NDArray[np.float64], masses: NDArray[np.float64], grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Share each point's mass among its eight nearest voxels, by trilinear weights."""
    position = (points - grid.first_um) / grid.voxel_um
    base = np.floor(position).astype(np.int64)
    inside = np.all((base >= -1) & (base < grid.shape), axis=1)
    position, base, masses = position[inside], base[inside], masses[inside]
    if base.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    # Only the block that the shape touches is summed up, with one voxel to spare on each side.
    low = base.min(axis=0)
    block = tuple(int(n) for n in base.max(axis=0) - low + 2)
    part = position - base
    total = np.zeros(int(np.prod(block)))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1.0 - part), axis=1) * masses
        flat = np.ravel_multi_index(tuple((base - low + corner).T), block)
        total += np.bincount(flat, weights=weight, minlength=total.size)
    filled = np.flatnonzero(total > 1e-3)
    where = np.column_stack(np.unravel_index(filled, block)) + low
    within = np.all((where >= 0) & (where < grid.shape), axis=1)
    return np.ravel_multi_index(tuple(where[within].T), grid.shape), total[filled[within]].astype(np.float32)


def cover_ball(
    ball: Ball, grid: Grid, *, soft_um: float = 0.6
) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]] | None:
    """Return the window that a ball touches and its coverage there, None where it misses the grid.

    The rim falls off over `soft_um`.
    """
    reach = np.full(3, float(ball.radii.max()) + soft_um)
    window = grid.window(ball.centre - reach, ball.centre + reach)
    if window is None:
        return None
    finer = np.maximum(np.ceil(grid.voxel_um / 0.7).astype(int), 1)
    axes = []
    for k, centres in enumerate(grid.centres(window)):
        sub = ((np.arange(finer[k]) + 0.5) / finer[k] - 0.5) * grid.voxel_um[k]
        axes.append((centres[:, None] + sub).ravel() - ball.centre[k])
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    scaled = [
        (ball.axes[0, k] * z + ball.axes[1, k] * y + ball.axes[2, k] * x) / ball.radii[k] for k in range(3)
    ]
    beyond = (np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) - 1.0) * float(ball.radii.mean())
    fine = np.clip(0.5 - beyond / soft_um, 0.0, 1.0)
    shape = [s.stop - s.start for s in window]
    blocks = fine.reshape(shape[0], finer[0], shape[1], finer[1], shape[2], finer[2])
    return window, blocks.mean(axis=(1, 3, 5)).astype(np.float32)


def distance_to_tubes(tubes: Iterable[Tube], grid: Grid, *, far_um: float) -> NDArray[np.float32]:
    """Return the signed distance (Z, Y, X) µm to the tubes' surface, negative inside, at most `far_um`."""
    distance = np.full(grid.shape, far_um, np.float32)
    for tube in tubes:
        for point, radius in zip(tube.points, tube.radius, strict=True):
            window = grid.window(point - radius - far_um, point + radius + far_um)
            if window is None:
                continue
            z, y, x = np.meshgrid(*grid.centres(window), indexing="ij", sparse=True)
            from_centre = np.sqrt((z - point[0]) ** 2 + (y - point[1]) ** 2 + (x - point[2]) ** 2)
            np.minimum(distance[window], (from_centre - radius).astype(np.float32), out=distance[window])
    return distance
