"""The closed-form answers: linear interpolation and Tikhonov.

The operator acts along z only and is the same for every pixel, so each answer is one small matrix times the
projections, (Z, M) @ (M, Y·X). Matrices are computed once per geometry in float64 numpy and applied as
float32 torch tensors on the engine's device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tensor_of(matrix: NDArray[np.floating], device: torch.device) -> Tensor:
    """Return an array as a float32 tensor on a device."""
    return torch.from_numpy(matrix.astype(np.float32)).to(device)


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
    """Return the smoothness for `tikhonov_matrix` that fits noise and specimen.

    Tikhonov's answer is the most probable one for a specimen whose neighbouring slices differ by
    independent steps of variance τ², seen with noise of variance σ²; its smoothness is then σ² / τ². The
    differences of neighbouring projections have the expectation 2σ² + τ² |c|², with `c` the cumulative sum
    along z of the difference of their rows: τ² by the method of moments. Rounded down to half a decade, from
    1e-3 to 1: a session needs few matrices, and too smooth costs more than too rough.
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
