"""Uncertainty: a standard deviation per voxel, from the estimator's posterior and what a sweep shows.

The posterior (`inr/estimator.py`) knows how many sweeps a voxel has kept still and where their slabs lay, and
nothing of what lies there. What does: where there is light, where the volume is fine, where the projections
of this sweep were not what the last ones had let expect (the innovation), and which share of the network's
corrections later projections bore out. With m the mean of a quantity over the volume,

    log σ² = log m(P) + a + b share + c log(m(I) / m(P)) + Σ_f k_f log(f / m(f)) + k log²(light / m(light)),

P the posterior's variance, I the squared innovation beyond the noise, f = P, light, fine structure and
innovation: a regression whose constants are those of greatest likelihood for the errors of nineteen recorded
volumes, nine of which no weights have seen. The first sweep of a session, which nothing precedes, has its
own. Chosen by experiment: decision 0030; the constants are what `benchmarks/uncertainty.py --fit` prints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microdiffusion.engines.projections import local_mean

# a, share, log(m(I) / m(P)), then P, light, light², fine structure, innovation.
_FIRST = (0.660, 0.0, 0.0, 0.695, 0.648, -0.038, 0.605, 0.0)
_LATER = (1.790, -1.034, 0.194, 0.573, 0.458, -0.117, 0.404, 0.276)
_UNKNOWN_SHARE = 0.45  # of the network, before a sweep has told
_LEAST = 0.02  # of its mean: a quantity is not taken to be smaller
_LEAST_INNOVATION = 0.1  # of the noise's variance: less cannot be told from it
_TINY = 1e-12
LEVEL_SPREAD = 0.37
"""Standard deviation, between specimens, of the logarithm of error over uncertainty: no session tells it."""


@dataclass(frozen=True, slots=True, eq=False)
class Clues:
    """Clues of a sweep to the errors of its volume, all in the same units.

    Attributes
    ----------
    volume : (Z, Y, X)
        What is served, above the level of no light.
    posterior : (Z, Y, X)
        The estimator's standard deviation.
    noise : ()
        Mean variance of the projections' noise.
    innovation : (Z, Y, X), optional
        Squared difference of the projections and what earlier sweeps let expect, locally, spread over the
        slices; None: there was no earlier one.
    share : float, optional
        Of the network's corrections that later projections bore out; None: not known.
    """

    volume: Tensor
    posterior: Tensor
    noise: Tensor
    innovation: Tensor | None = None
    share: float | None = None


def deviation(clues: Clues) -> Tensor:
    """Return the standard deviation (Z, Y, X) of each voxel."""
    later = clues.innovation is not None
    bias, share, surprise, *weights = _LATER if later else _FIRST
    level, parts = relative(clues)
    result = (level + _TINY).log() + bias
    if clues.innovation is not None:
        told = (clues.innovation.mean() - clues.noise).clamp_min(_LEAST_INNOVATION * clues.noise)
        result = result + surprise * ((told + _TINY) / (level + _TINY)).log()
        result = result + share * (_UNKNOWN_SHARE if clues.share is None else clues.share)
    total = result.expand_as(clues.volume).clone()
    for part, weight in zip(parts, weights, strict=False):
        total.add_(part, alpha=weight)
    return total.mul_(0.5).exp_()


def relative(clues: Clues) -> tuple[Tensor, list[Tensor]]:
    """Return the mean variance () of the posterior, and the logarithms of each quantity over its mean."""
    variance, bright = clues.posterior.square(), clues.volume.clamp_min(0.0)
    flat = local_mean(bright, 3)
    light = _log_ratio(_along_z(flat, 5))
    fine = _along_z(local_mean(bright.sub_(flat).square_(), 7), 3)
    parts = [_log_ratio(variance), light, light.square(), _log_ratio(fine)]
    if clues.innovation is not None:
        parts.append(_log_ratio(clues.innovation))
    return variance.mean(), parts


def brightness_slope(volume: Tensor, deviation: Tensor) -> Tensor:
    """Return the slope of reconstructed on true intensity over all voxels, and its deviation, (2,).

    A posterior mean x of the truth t has Cov(x, t) = Var(x), and Var(t) = Var(x) + E σ²; so the slope of x on
    t is Var(x) / (Var(x) + E σ²). Its deviation is that of σ² between specimens (`LEVEL_SPREAD`).
    """
    power = volume.var()
    slope = power / (power + deviation.square().mean()).clamp_min(_TINY)
    return torch.stack([slope, 2 * LEVEL_SPREAD * slope * (1 - slope)])


def _log_ratio(quantity: Tensor) -> Tensor:
    """Return the logarithm of a quantity that is not negative over its mean."""
    mean = quantity.mean()
    return quantity.clamp_min(0.0).add_(_LEAST * mean + _TINY).div_((1 + _LEAST) * mean + _TINY).log_()


def _along_z(volume: Tensor, window: int) -> Tensor:
    """Return the mean over `window` slices around each voxel; at the border it goes on."""
    half = window // 2
    padded = torch.cat([*[volume[:1]] * half, volume, *[volume[-1:]] * half])
    total = padded[: len(volume)] + padded[1 : 1 + len(volume)]
    for shift in range(2, window):
        total += padded[shift : shift + len(volume)]
    return total.div_(window)
