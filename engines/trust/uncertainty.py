"""Uncertainty: a standard deviation per voxel, calibrated by held-out projections.

A slab's sum leaves the distribution along z unknown, so an answer errs where there is light to be put into
the wrong slice, where it changes along z, and where different answers disagree. The pattern is made of these
three, from what a sweep computes anyway:

    pattern² = sqrt( <|each answer - volume|² + |∂volume/∂z|²> ) · <volume - floor>

with < > means over a neighbourhood. The size of errors differs from specimen to specimen; a held-out
projection measures it: the session's *scale* is the error on it, beyond its noise, over the pattern's
prediction for that slab. Errors of neighbouring slices cancel in a projection, which costs a factor that was
measured on recorded volumes (docs/uncertainty.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.projections import along_z, local_mean

DEFAULT_SCALE = 0.36
"""The scale before the first held-out projection: the usual one of recorded volumes."""
_CANCELLED = 1.79  # error of a voxel over that of a projection, both in units of the pattern
_NOISE = 0.1  # of the projections' noise variance, at least, everywhere
_LEAST = 0.02  # of the noise variance: smaller held-out errors cannot be measured


def pattern(volume: Tensor, answers: Iterable[Tensor], floor: float) -> Tensor:
    """Return the pattern of a volume's (Z, Y, X) errors, up to a scale; `answers` are its candidates."""
    slope = torch.gradient(volume, dim=0)[0] if len(volume) > 1 else torch.zeros_like(volume)
    doubt = slope.square_()
    others = list(answers)
    for each in others:
        doubt.add_((each - volume).square_(), alpha=1.0 / len(others))
    light = _mean(volume.sub(floor).clamp_min_(0.0), 5, 3)
    return _mean(doubt, 3, 5).clamp_min_(0.0).sqrt_().mul_(light.clamp_min_(0.0)).sqrt_()


def scale(doubt: Tensor, volume: Tensor, operator: Tensor, held: Tensor, variance: Tensor) -> float:
    """Return the session's scale from held-out projections (H, Y, X) of `operator` (H, Z)."""
    noise = variance.mean()
    missed = (along_z(operator, volume) - held).square().mean() - noise
    said = along_z(operator, doubt.square()).mean()
    return float((torch.maximum(missed, _LEAST * noise) / said.clamp_min(1e-20)).sqrt())


def deviation(doubt: Tensor, session_scale: float, variance: Tensor) -> Tensor:
    """Return the standard deviation (Z, Y, X) of each voxel; `variance` is that of the projections' noise."""
    size = _CANCELLED * session_scale
    return doubt.square().mul_(size * size).add_(_NOISE * variance.mean()).sqrt_()


def _mean(volume: Tensor, along: int, across: int) -> Tensor:
    """Return the mean over `along` slices and `across` x `across` pixels around each voxel."""
    flat = local_mean(volume, across)
    half = along // 2
    padded = F.pad(flat[None, None], (0, 0, 0, 0, half, half), mode="replicate")[0, 0]
    total = padded[: len(flat)].clone()
    for shift in range(1, along):
        total += padded[shift : shift + len(flat)]
    return total / along
