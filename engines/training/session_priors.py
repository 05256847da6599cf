"""The priors of the training: what the engine's own session makes of the cubes' sweeps.

The cubes of a group share their optics, so they lie side by side in one wide field (Z, Y, CUBES X) and are
one session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr import SessionField, SessionInr, default_bandwidth
from microdiffusion.engines.projections import DataConsistency, quieten, slab_light, tikhonov_matrix
from microdiffusion.optics import AxialProfile, projection_operator

# Of all sessions; the closed form, which stands in for a warm INR, is ten times as fast.
_INR_SHARE = 0.35


@dataclass(slots=True)
class CubeSweep:
    """One sweep of a group: slab centres (M,) in slices, operator (M, Z), and (CUBES, M, Y, X) twice."""

    centres: NDArray[np.float64]
    matrix: NDArray[np.float64]
    projections: Tensor
    variance: Tensor


def session_prior(
    rng: np.random.Generator, profile: AxialProfile, seen: list[CubeSweep], floor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a session knows after its last sweep, its deviation (CUBES, Z, Y, X), and leeway (Z, Z).

    Parameters
    ----------
    profile : AxialProfile
        With a spacing in slices.
    seen : list of CubeSweep
        Normalised, the last one last.
    floor : (CUBES, 1, 1, 1)
        Level of zero light.
    """
    count, _, *edges = seen[0].projections.shape
    slices = seen[0].matrix.shape[1]
    shape = (slices, edges[0], count * edges[1])
    length = profile.length_um
    field = SessionField(shape, bandwidth=default_bandwidth(length), reach=length, device=torch.device("cpu"))
    smoothness = float(10 ** rng.uniform(-2.5, -1.5))
    bandwidth = default_bandwidth(length) * float(rng.uniform(0.35, 1.1))
    steps = int(rng.integers(0, 7)) if rng.random() < _INR_SHARE else None

    def own(matrix: NDArray[np.float64], images: Tensor, variance: Tensor, pixels: Tensor | None) -> Tensor:
        """Return what a sweep says by itself: see `SessionField.update`."""
        if steps is not None and pixels is None:
            inr = SessionInr(shape, bandwidth=bandwidth)
            operator = torch.from_numpy(matrix.astype(np.float32))
            inr.fit(operator, quieten(images, variance), variance, floor=0.0, steps=steps, target=0.1)
            return inr.volume(0.0).flatten(1)
        closed = torch.from_numpy(tikhonov_matrix(matrix, smoothness).astype(np.float32))
        columns = images.flatten(1)
        return (closed @ (columns if pixels is None else columns[:, pixels])).clamp_min_(0.0)

    for sweep in seen:
        centres = sweep.centres

        def operator_at(deeper: float, centres: NDArray[np.float64] = centres) -> NDArray[np.float64]:
            return projection_operator(centres - deeper, profile, z0_um=0, voxel_z_um=1, shape_z=slices)

        images, variance = _side_by_side(sweep.projections - floor), _side_by_side(sweep.variance)
        known = field.update(operator_at, images, variance, slab_light(images, variance), own)
    volume = known.volume.clamp_min(0.0)
    if known.still > 0.0:
        volume = DataConsistency(torch.from_numpy(sweep.matrix.astype(np.float32)))(volume, images, variance)
    return _apart(volume, count) + floor, _apart(known.deviation(), count), known.leeway()


def _side_by_side(stacks: Tensor) -> Tensor:
    """Return stacks (N, M, Y, X) as one wide stack (M, Y, N X)."""
    return stacks.permute(1, 2, 0, 3).flatten(2)


def _apart(volume: Tensor, count: int) -> Tensor:
    """Return a wide volume (Z, Y, N X) as N volumes (N, Z, Y, X)."""
    apart: Tensor = volume.unflatten(2, (count, -1)).permute(2, 0, 1, 3).contiguous()
    return apart
