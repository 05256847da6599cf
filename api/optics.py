"""The axial-projection operator: a Bessel beam turns a volume into a projection.

The beam lights a slab along z at once, so a projection is the volume integrated along z under the
beam's axial profile, the same for every pixel (method: `p = A x` with `A` of shape (M, Z)). This module
owns the profile, that matrix and the sweep's positions, in numpy and float64; everything else (torch
engines, the virtual specimen, simulation) builds on it. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.errors import GeometryError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Fibonacci numbers: a golden section whose places come back, so that what hangs on them is worked out once.
_SECTION, _PLACES = 8, 13


@dataclass(frozen=True, slots=True, eq=False)
class AxialProfile:
    """The beam's intensity along z, centred on the focus.

    Attributes
    ----------
    weights : (K,) float64
        Non-negative, unit sum. Sample `k` stands for a bin of width `spacing_um` centred at
        ``(k - (K - 1) / 2) * spacing_um`` from the slab's centre.
    spacing_um : float
        Width of a bin, µm.
    """

    weights: NDArray[np.float64]
    spacing_um: float

    @classmethod
    def box(cls, length_um: float) -> AxialProfile:
        """Return a beam of constant intensity over `length_um` (µm, positive)."""
        return cls.sampled(np.ones(1), length_um)

    @classmethod
    def sampled(cls, weights: ArrayLike, spacing_um: float) -> AxialProfile:
        """Return a measured profile; `weights` (K,) is scaled to unit sum.

        Raises
        ------
        GeometryError
            A weight is negative or not finite, all are zero, or the spacing is not positive.
        """
        array = np.array(weights, dtype=np.float64).ravel()
        if (
            array.size == 0
            or not np.all(np.isfinite(array))
            or array.min() < 0
            or not 0 < array.sum() < np.inf
        ):
            raise GeometryError(
                "An axial profile needs finite weights that are not negative and not all zero."
            )
        if not (np.isfinite(spacing_um) and spacing_um > 0):
            raise GeometryError(f"An axial profile needs a positive length in µm, not {spacing_um!r}.")
        array /= array.sum()
        array.setflags(write=False)
        return cls(array, float(spacing_um))

    @property
    def length_um(self) -> float:
        """Support of the profile along z, µm."""
        return self.weights.size * self.spacing_um

    def cumulative(self, z_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the light below each offset `z_um` (any shape) from the slab's centre."""
        edges = (np.arange(self.weights.size + 1) - self.weights.size / 2) * self.spacing_um
        below = np.concatenate([[0.0], np.cumsum(self.weights)])
        return np.asarray(np.interp(z_um, edges, below), dtype=np.float64)


def projection_operator(
    z_um: ArrayLike, profile: AxialProfile, *, z0_um: float, voxel_z_um: float, shape_z: int
) -> NDArray[np.float64]:
    """Return `A` (M, Z) float64 with ``projections = A @ volume`` for every pixel.

    ``A[m, k]`` is the share of slab `m`'s light that falls into slice `k`; every row sums to 1, so a
    uniform specimen of value v has projections of value v. Where a slab sticks out of the volume, the
    specimen is taken to go on as it is inside.

    Parameters
    ----------
    z_um : (M,) array
        Centre of each slab, µm.
    z0_um, voxel_z_um, shape_z
        Centre of the first slice (µm), distance of slices (µm), number of slices.

    Raises
    ------
    GeometryError
        A slab lies outside of the volume (less than a tenth of its light inside).
    """
    centres = np.atleast_1d(np.asarray(z_um, dtype=np.float64))
    edges = z0_um + (np.arange(shape_z + 1) - 0.5) * voxel_z_um
    matrix = np.diff(profile.cumulative(edges[None, :] - centres[:, None]), axis=1)
    inside = matrix.sum(axis=1)
    for m in np.flatnonzero(~(inside >= 0.1)):
        raise GeometryError(
            f"Projection {m} at z = {centres[m]:g} µm lies outside of the volume, which reaches from "
            f"{edges[0]:g} to {edges[-1]:g} µm: correct its position, z0_um or shape_z."
        )
    return np.asarray(matrix / inside[:, None], dtype=np.float64)


def sweep_offset(sweep: int, offsets: str) -> float:
    """Return where a sweep starts within a step, as a fraction of it.

    "golden": multiples of a golden section, of which any number in a row lies evenly (Steinhaus's three-gap
    theorem), 13 places in all; "alternate": every other sweep half a step deeper; "fixed": never.
    """
    if offsets == "golden":
        return sweep % _PLACES * _SECTION % _PLACES / _PLACES
    return 0.5 * (sweep % 2) if offsets == "alternate" else 0.0


def sweep_positions(
    *, length_um: float, step_um: float, z0_um: float, voxel_z_um: float, shape_z: int, offset_um: float = 0.0
) -> NDArray[np.float64]:
    """Return the slab centres (M,) float64 µm of one sweep: slabs that lie inside of the volume, top down.

    Raises
    ------
    GeometryError
        Not even one slab fits into the volume.
    """
    low = z0_um - 0.5 * voxel_z_um
    room = shape_z * voxel_z_um - length_um - offset_um
    if room < -1e-6 * voxel_z_um:
        raise GeometryError(
            f"A slab of {length_um:g} µm (offset {offset_um:g} µm) does not fit into a volume of "
            f"{shape_z * voxel_z_um:g} µm: enlarge shape_z or shorten the slab."
        )
    count = int(np.floor(room / step_um + 1e-6)) + 1
    first = low + 0.5 * length_um + offset_um
    return np.asarray(first + np.arange(count) * step_um, dtype=np.float64)
