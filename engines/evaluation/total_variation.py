"""Non-negative total variation in three dimensions: the strongest classical method to compare with.

    minimise over x >= 0:   1/2 |(A x - p) / σ|² σ0² + λ Σ |D x|       σ0²: the mean noise variance

`D` holds the forward differences along z, y and x (isotropic TV, Rudin, Osher and Fatemi 1992), those along
z scaled by `axial`. Solved by the primal-dual iteration of Condat (2013, J. Optim. Theory Appl. 158:460,
algorithm 3.1) and Vũ (2013), which needs no inner loop: the data term enters by its gradient, so pixels may
differ in their noise. Libraries were looked at: deepinv's TV is the proximal map of denoising, so a
reconstruction nests it inside another iteration, and it brings torchvision; prox-tv has no operator either.

Tensors are float32 on one device; volumes (Z, Y, X), projections (M, Y, X). Pure, safe on any thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microdiffusion.engines.projections import along_z


def total_variation(
    operator: Tensor,
    images: Tensor,
    variance: Tensor,
    *,
    weight: float,
    start: Tensor,
    dual: Tensor | None = None,
    axial: float = 1.0,
    iterations: int = 200,
    tolerance: float = 2e-5,
) -> tuple[Tensor, Tensor]:
    """Return the volume (Z, Y, X) that solves the problem of the module's docstring, and the dual.

    The dual (3, Z, Y, X) of the differences is a start for a neighbouring weight.

    Parameters
    ----------
    operator : (M, Z)
        The axial-projection operator.
    images, variance : (M, Y, X)
        Projections, zero light at zero, and their noise variance.
    weight : float
        λ, in the units of the projections.
    start, dual : (Z, Y, X) and (3, Z, Y, X)
        Where to begin.
    axial : float
        Weight of the differences along z against those across.
    iterations, tolerance
        Most iterations; and the relative change from one to the next at which the answer stands.
    """
    relative = variance.mean() / variance  # at most a few: the variance has a floor
    # Largest curvature of the data term: |AᵀA| times the largest relative weight.
    curvature = float(torch.linalg.matrix_norm(operator, 2)) ** 2 * float(relative.max())
    # Any τ below 2 / curvature converges; duals are small here, so a short primal step lets them move.
    tau = 0.4 / curvature
    sigma = (1.0 / tau - curvature / 2) / (4.0 * (2.0 + axial**2))
    volume = start.clamp_min(0.0)
    dual = torch.zeros(3, *volume.shape, device=volume.device) if dual is None else dual.clone()
    for taken in range(1, iterations + 1):
        gradient = along_z(operator.T, relative * (along_z(operator, volume) - images))
        _add_adjoint(gradient, dual, axial)
        following = gradient.mul_(-tau).add_(volume).clamp_min_(0.0)
        # Over-relaxed point 2 x⁺ - x.
        _ascend(dual, following.mul(2.0).sub_(volume), sigma, axial, weight)
        before, volume = volume, following
        if taken % 10 == 0 and (volume - before).norm() < tolerance * volume.norm().clamp_min(1e-12):
            break
    return volume, dual


def _add_adjoint(target: Tensor, dual: Tensor, axial: float) -> None:
    """Add Dᵀ `dual` to the volume `target`; the last difference along each axis is zero and stays so."""
    along, down, right = dual
    target[:-1].sub_(along[:-1], alpha=axial)
    target[1:].add_(along[:-1], alpha=axial)
    target[:, :-1].sub_(down[:, :-1])
    target[:, 1:].add_(down[:, :-1])
    target[:, :, :-1].sub_(right[:, :, :-1])
    target[:, :, 1:].add_(right[:, :, :-1])


def _ascend(dual: Tensor, volume: Tensor, sigma: float, axial: float, weight: float) -> None:
    """Dual step: dual + σ D volume, pulled back into balls of radius `weight`, in place."""
    dual[0, :-1].add_(volume[1:], alpha=sigma * axial).sub_(volume[:-1], alpha=sigma * axial)
    dual[1, :, :-1].add_(volume[:, 1:], alpha=sigma).sub_(volume[:, :-1], alpha=sigma)
    dual[2, :, :, :-1].add_(volume[:, :, 1:], alpha=sigma).sub_(volume[:, :, :-1], alpha=sigma)
    length = dual[0].square().addcmul_(dual[1], dual[1]).addcmul_(dual[2], dual[2]).sqrt_()
    dual.div_(length.div_(weight).clamp_min_(1.0))
