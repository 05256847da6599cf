"""The closed-form half of the engine: linear answers and the pull towards the measured projections.

The operator acts along z only and is the same for every pixel, so each answer is one small matrix times
the projections, (Z, M) @ (M, Y·X). Matrices are made once per geometry in float64 numpy and applied as
float32 torch tensors on the engine's device. Volumes and projections are (Z, Y, X) and (M, Y, X).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.projections.filters import local_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tikhonov_matrix(operator: NDArray[np.float64], smoothness: float = 1e-2) -> NDArray[np.float64]:
    """Return R (Z, M) with ``x = R p`` minimising ``|A x - p|² + smoothness |dx/dz|²``.

    First differences along z; slices that no slab saw are filled from their neighbours.
    """
    slices = operator.shape[1]
    difference = np.diff(np.eye(slices), axis=0)
    normal = operator.T @ operator + smoothness * difference.T @ difference
    # A uniform floor far below the smoothness keeps the inverse regular where nothing was measured.
    normal += 1e-9 * np.eye(slices)
    return np.asarray(np.linalg.solve(normal, operator.T), dtype=np.float64)


def matched_smoothness(operator: NDArray[np.float64], images: Tensor, noise_variance: Tensor) -> float:
    """Return the smoothness for `tikhonov_matrix` that noise and specimen ask for.

    Tikhonov's answer is the most probable one for a specimen whose neighbouring slices differ by
    independent steps of variance τ², seen with noise of variance σ²; its smoothness is then σ² / τ². The
    differences of neighbouring projections have the expectation 2σ² + τ² |c|², with `c` the cumulative sum
    along z of the difference of their rows: τ² by the method of moments. Rounded down to half a decade within
    1e-3 and 1: a session needs few matrices, and too smooth costs more than too rough.
    """
    if len(images) < 2:
        return 1e-2
    order = np.argsort(operator @ np.arange(operator.shape[1]))
    sorted_images = images[torch.from_numpy(order).to(images.device)]
    sigma2 = float(noise_variance.mean())
    power = float(sorted_images.diff(dim=0).square().mean()) - 2.0 * sigma2
    steps = np.cumsum(np.diff(operator[order], axis=0), axis=1)
    tau2 = max(power / float(np.square(steps).sum(axis=1).mean()), 1e-12)
    return float(10 ** np.clip(np.floor(2 * np.log10(sigma2 / tau2)) / 2, -3.0, 0.0))


def interpolation_matrix(centres: NDArray[np.float64], slices: int) -> NDArray[np.float64]:
    """Return R (Z, M): linear interpolation between slab centres (M,) in slice numbers, constant outside."""
    order = np.argsort(centres)
    weights = np.zeros((slices, centres.size))
    identity = np.eye(centres.size)
    for column in range(centres.size):
        weights[:, column] = np.interp(np.arange(slices), centres[order], identity[column][order])
    return weights


def nearest_slab(centres: NDArray[np.float64], slices: int) -> NDArray[np.intp]:
    """Return for each slice the index (Z,) of the projection whose slab centre lies closest."""
    return np.asarray(np.abs(np.arange(slices)[:, None] - centres[None, :]).argmin(axis=1), dtype=np.intp)


def along_z(matrix: Tensor, images: Tensor) -> Tensor:
    """Return ``matrix @ images`` along the first axis: (N, M) and (M, Y, X) give (N, Y, X)."""
    result: Tensor = torch.tensordot(matrix, images, dims=1)
    return result


def noise_shrinkage(misfit: Tensor, noise_variance: Tensor) -> Tensor:
    """Return the share (M, Y, X) of the misfit `p - A x` that is signal rather than noise.

    The local Wiener (James-Stein) factor ``max(0, 1 - σ² / <misfit²>)`` over 7x7 pixels: near 1 where
    the volume disagrees with a bright structure, near 0 where the misfit is as large as the noise.
    """
    power = local_mean(misfit.square(), 7)
    return (1.0 - local_mean(noise_variance, 7) / power.clamp_min(1e-12)).clamp_(0.0, 1.0)


class DataConsistency:
    """Pulls a volume towards the projections, as far as their noise allows, and keeps it non-negative.

    One multiplicative (MLEM) step towards ``A x + g (p - A x)`` with `g` from `noise_shrinkage`. Where
    windows do not overlap and noise is small, this is the exact rescaling ``x *= p / A x``; where they
    overlap it is the usual damped iteration; it is never exact to the noise.

    Parameters
    ----------
    operator : (M, Z) float32 tensor
        The axial-projection operator.
    """

    def __init__(self, operator: Tensor) -> None:
        self.operator = operator
        self._sensitivity = operator.sum(dim=0).clamp_min(1e-3)[:, None, None]
        self._seen = (operator.sum(dim=0) > 1e-3)[:, None, None]

    def __call__(
        self, volume: Tensor, projections: Tensor, noise_variance: Tensor, *, passes: int = 1
    ) -> Tensor:
        """Return the corrected volume (Z, Y, X) ≥ 0 of `projections` (M, Y, X) with their noise variance.

        All in the normalised units of the engine, background at zero.
        """
        volume = volume.clamp_min(0.0)
        # The ratio's floor: where both are near zero their quotient is noise, so it is pulled to 1.
        floor = noise_variance.mean().sqrt() * 0.5 + 1e-3
        for _ in range(passes):
            predicted = along_z(self.operator, volume)
            misfit = projections - predicted
            target = (predicted + noise_shrinkage(misfit, noise_variance) * misfit).clamp_min(0.0)
            ratio = along_z(self.operator.T, (target + floor) / (predicted + floor)) / self._sensitivity
            volume = torch.where(self._seen, volume * ratio, volume)
        return volume
