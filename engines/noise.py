"""How noisy the projections are: from the camera's numbers where they are known, else from the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from microdiffusion.run_header import CameraNoise

# Immerkær (1996), Fast noise variance estimation: a kernel that smooth structure does not excite.
_KERNEL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def noise_variance(projections: Tensor, camera: CameraNoise) -> Tensor:
    """Return the noise variance (M, Y, X) of projections (M, Y, X), counts².

    With a known gain: ``gain (p - offset) + read_noise²`` (Poisson, p smoothed over 3x3 pixels so that
    a dark pixel's luck does not make it trusted). Without: one variance for all pixels, estimated.
    """
    if camera.gain is None:
        variance = max(estimate_sigma(projections) ** 2, camera.read_noise**2)
        return torch.full_like(projections, _at_least(variance, projections))
    smooth = F.avg_pool2d(projections[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    shot = camera.gain * (smooth - camera.offset).clamp_min(0.0)
    # One photon's worth at least: the Gaussian picture of a Poisson count ends there.
    return (shot + camera.read_noise**2).clamp_min(_at_least(camera.gain**2, projections))


def estimate_sigma(projections: Tensor) -> float:
    """Return the standard deviation of the images' (M, Y, X) white noise: the median over images.

    The median absolute response to Immerkær's kernel, which sparse structure hardly moves.
    """
    response = F.conv2d(projections[:, None], _KERNEL.to(projections)[None, None])
    deviation = response.abs().flatten(1).median(dim=1).values / 0.6745 / 6.0
    return float(deviation.median())


def _at_least(variance: float, projections: Tensor) -> float:
    span = float(projections.max() - projections.min())
    return max(variance, (1e-4 * span) ** 2, float(np.finfo(np.float32).tiny) * 1e6)
