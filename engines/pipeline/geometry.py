"""The matrices of a sweep geometry: they depend on stage positions alone and are shared by all sessions.

Memory is bounded whatever the number of sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.diffusion import SliceConditions
from microdiffusion.engines.projections import (
    DataConsistency,
    Supports,
    interpolation_matrix,
    matched_smoothness,
    supports,
    tensor_of,
    tikhonov_matrix,
)
from microdiffusion.errors import GeometryError
from microdiffusion.frames import StagePositions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.header import RunHeader

_MOST = 64  # geometries; lost frames make rare ones


@dataclass(slots=True, eq=False)
class Geometry:
    """Everything that depends on the slab positions alone.

    `matrix` (M, Z) float64 and `operator` are the same; `tikhonov` and `linear` (Z, M) are closed forms;
    `supports`: the slices that each slab saw;
    `places`: the depths of its slabs, slices; `between` (B, Z): operator of slabs half way between them.
    """

    matrix: NDArray[np.float64]
    operator: Tensor
    tikhonov: Tensor
    linear: Tensor
    conditions: SliceConditions
    consistency: DataConsistency
    supports: Supports
    places: tuple[float, ...]
    between: Tensor
    _smooth: dict[float, Tensor] = field(default_factory=dict)

    def closed(self, images: Tensor, variance: Tensor) -> Tensor:
        """Return Tikhonov's matrix (Z, M) with the smoothness that fits images and noise."""
        smoothness = matched_smoothness(self.matrix, images, variance)
        if smoothness not in self._smooth:
            self._smooth[smoothness] = tensor_of(
                tikhonov_matrix(self.matrix, smoothness), self.operator.device
            )
        return self._smooth[smoothness]


class Geometries:
    """The geometries of a run, computed when they first occur."""

    def __init__(self, header: RunHeader, device: torch.device) -> None:
        self._header = header
        self._device = device
        self._known: dict[bytes, Geometry] = {}

    def of(self, stage: StagePositions) -> Geometry:
        """Return the geometry of stage positions (M,), ascending.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume, or all are at one depth.
        """
        # Stages report positions with some nanometres of jitter: positions are rounded to a twentieth of a
        # slice, so that a geometry is the same whichever sweep asks for it first.
        voxel_um = self._header.voxel_size_um[0]
        places = np.round((stage.z_um - self._header.z0_um) * (20 / voxel_um)).astype(np.int64)
        if len(places) > 1 and not np.ptp(places):
            raise GeometryError(
                f"All {len(places)} slabs of a sweep say {stage.z_um[0]:g} µm, so nothing tells their depths "
                "apart: let the acquisition write each image's own depth."
            )
        key = places.tobytes()
        known = self._known.get(key)
        if known is not None:
            return known
        stage = StagePositions.along_z(self._header.z0_um + places * (voxel_um / 20))
        matrix, centres = self._header.operator_at(stage), self._header.centres_of(stage)
        length = self._header.profile.length_um / voxel_um
        operator = tensor_of(matrix, self._device)
        geometry = Geometry(
            matrix,
            operator,
            tensor_of(tikhonov_matrix(matrix), self._device),
            tensor_of(interpolation_matrix(centres, self._header.shape[0]), self._device),
            SliceConditions.of(matrix, centres, length),
            DataConsistency(operator),
            supports(matrix),
            tuple(centres.tolist()),
            self._between(stage.z_um),
        )
        if len(self._known) >= _MOST:
            self._known.pop(next(iter(self._known)))
        self._known[key] = geometry
        return geometry

    def _between(self, z_um: NDArray[np.float64]) -> Tensor:
        depths = np.unique(z_um)
        return self.operator(
            StagePositions.along_z((depths[1:] + depths[:-1]) / 2 if len(depths) > 1 else z_um)
        )

    def operator(self, stage: StagePositions) -> Tensor:
        """Return the operator (M, Z) of stage positions alone, as for held-out projections."""
        return tensor_of(self._header.operator_at(stage), self._device)
