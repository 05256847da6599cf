"""Light is never negative: the most probable field without a negative voxel, for a Gaussian posterior.

Setting negative voxels to zero adds light that no projection saw. With the posterior covariance P (Z, Z) the
most probable field x >= 0 of a column with mean m is m + P l, with the multipliers l >= 0 that solve

    minimise  l' P l / 2 + l' m    (the dual of the quadratic programme; l = 0 where x > 0),

so what a voxel gains, those lose that the projections cannot tell from it. Solved by projected gradients with
momentum (FISTA, Beck and Teboulle 2009) in units of each voxel's standard deviation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.projections import tensor_of

_ITERATIONS = 8
_NEGATIVE = 0.25  # standard deviations below zero, from which on a column is worth its iterations


def nonnegative(field: Tensor, covariance: NDArray[np.float64]) -> Tensor:
    """Return the most probable field (Z, P) without negative voxels, for a mean (Z, P).

    `covariance` (Z, Z) is that of a column. The field given may be changed in place.
    """
    deviation = np.sqrt(covariance.diagonal())
    correlation = covariance / deviation / deviation[:, None]
    rate = 1 / float(np.linalg.eigvalsh(correlation)[-1])
    spread = tensor_of(deviation, field.device)[:, None]
    pixels = torch.nonzero(field.amin(0) < -_NEGATIVE * spread.min())[:, 0]
    mean = field[:, pixels] / spread
    enough = (mean < -_NEGATIVE).any(0)
    pixels, mean = pixels[enough], mean[:, enough]
    if len(pixels):
        scaled = tensor_of(correlation, field.device)
        step = tensor_of(np.eye(len(correlation)) - rate * correlation, field.device)
        multipliers, ahead, weight = torch.zeros_like(mean), torch.zeros_like(mean), 1.0
        for _ in range(_ITERATIONS):
            before = multipliers
            multipliers = torch.addmm(mean, step, ahead, beta=-rate).clamp_min_(0.0)
            grown = (1 + (1 + 4 * weight**2) ** 0.5) / 2
            ahead = torch.lerp(before, multipliers, 1 + (weight - 1) / grown)
            weight = grown
        field[:, pixels] = torch.addmm(mean, scaled, multipliers) * spread
    return field.clamp_min_(0.0)
