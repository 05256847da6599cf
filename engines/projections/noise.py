"""The noise of the projections: from the camera's numbers where they are known, else from the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.projections.filters import local_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.header import CameraNoise

_BLOCK = 16
_LEAST_OVERLAP = 0.2  # of neighbouring slabs
# Immerkær (1996), Fast noise variance estimation: a kernel that smooth structure does not excite.
_KERNEL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def noise_variance(projections: Tensor, camera: CameraNoise, white: float = 1.0) -> Tensor:
    """Return the noise variance (M, Y, X) of projections (M, Y, X), counts².

    With a known gain: ``gain (p - offset) + read_noise²`` (Poisson, p smoothed over 3x3 pixels so that a
    pixel that is dark by chance is not trusted more). Without: one variance for all pixels, the share `white`
    of the estimate (see `white_share`).
    """
    if camera.gain is None:
        variance = max(white * estimate_sigma(projections) ** 2, camera.read_noise**2)
        return torch.full_like(projections, _at_least(variance, projections))
    smooth = local_mean(projections, 3)
    shot = camera.gain * (smooth - camera.offset).clamp_min(0.0)
    # At least one photon: below that a Poisson count is not Gaussian.
    return (shot + camera.read_noise**2).clamp_min(_at_least(camera.gain**2, projections))


def estimate_sigma(projections: Tensor) -> float:
    """Return the standard deviation of the white noise of images (M, Y, X), from the images alone.

    The 5th percentile of the power of Immerkær's kernel over blocks of 16 x 16 pixels: where the specimen is
    textured everywhere a median would take texture for noise. It underestimates the noise, by about an eighth
    on smooth specimens, which costs less than overestimating it: noise taken for signal is left to the
    network, signal taken for noise is lost. Blocks without any variance (masked or padded regions) are left
    out.
    """
    response = _fine_structure(projections).square() / 36.0
    block = min(_BLOCK, *response.shape[2:])
    power = F.avg_pool2d(response, block).flatten()
    power = power[power > 0]
    if not power.numel():
        return 0.0
    return float(np.sqrt(np.percentile(power.cpu().numpy(), 5.0)))


def _fine_structure(projections: Tensor) -> Tensor:
    """Return the kernel's response (M, 1, Y - 2, X - 2), at least one pixel: 0 where fewer than 3 are."""
    rows, columns = (max(0, 3 - edge) for edge in projections.shape[1:])
    images = projections[:, None]
    if rows or columns:
        images = F.pad(images, (0, columns, 0, rows), mode="replicate")
    return F.conv2d(images, _KERNEL.to(projections)[None, None])


def white_share(projections: Tensor, operator: NDArray[np.float64]) -> float:
    """Return the share of noise in the fine structure's power, 0.1 to 1; 1 where slabs hardly overlap.

    Neighbouring projections (M, Y, X) share the structure where their slabs overlap, and never their noise.
    Texture without correlation along z has the covariance of the slabs' rows, so its power is the measured
    covariance over theirs; smoother texture is overestimated, hence noise underestimated. Measured where
    `estimate_sigma` looks: in the quietest blocks.
    """
    if len(projections) < 3:
        return 1.0
    power = np.square(operator).sum(axis=1)
    shared = float(np.mean((operator[1:] * operator[:-1]).sum(axis=1) / np.sqrt(power[1:] * power[:-1])))
    if shared < _LEAST_OVERLAP:
        return 1.0
    response = _fine_structure(projections)
    block = min(_BLOCK, *response.shape[2:])
    alone = F.avg_pool2d(response.square(), block)
    joint = F.avg_pool2d(response[1:] * response[:-1], block)
    both = 0.5 * (alone[1:] + alone[:-1])
    quiet = both <= torch.quantile(both.flatten()[: 1 << 23], 0.1)
    texture = float(joint[quiet].sum() / both[quiet].sum().clamp_min(1e-30)) / shared
    return float(np.clip(1.0 - texture, 0.1, 1.0))


def quieten(images: Tensor, noise_variance: Tensor, window: int = 5) -> Tensor:
    """Return images (M, Y, X) denoised by the local Wiener filter of Lee (1980).

    "Digital image enhancement and noise filtering by use of local statistics": each pixel moves to the mean
    of its `window` x `window` neighbours by the share of their variance that `noise_variance` (M, Y, X)
    explains. Flat regions lose their noise, structure above it stays as sharp as it is.
    """
    mean = local_mean(images, window)
    # Squares of differences: a pedestal far above the structure costs no digits.
    spread = local_mean((images - mean).square(), window)
    share = (1.0 - local_mean(noise_variance, window) / spread.clamp_min(1e-12)).clamp_(0.0, 1.0)
    return mean + share * (images - mean)


def _at_least(variance: float, projections: Tensor) -> float:
    span = float(projections.max() - projections.min())
    # Below this the arithmetic of float32 is the noise.
    rounding = 1e-5 * float(projections.abs().max())
    return max(variance, (1e-4 * span) ** 2, rounding**2, 1e-30)
