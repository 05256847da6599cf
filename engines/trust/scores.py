"""Residuals and held-out errors of the answers of one sweep, in units of the projections' noise.

`measure` and the functions below it work on tensors alone and return one small tensor, which the host reads
once; `Scores.read` gives its numbers their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microdiffusion.engines.projections import along_z, window_sum

_FLATTERED = 0.1  # the held-out projection's best share exceeds the volume's by so much
_INFORMATIVE = 10.0  # squared difference of two answers, in units of the noise, that is informative


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of the answers of one sweep, by name.

    Attributes
    ----------
    residuals, errors : dict
        Rms misfit of the reprojection, and of the held-out projections (empty where there is none).
    miss : float
        See `structured_miss`.
    shares : dict
        The first answer's share in its best mixture with each other one; empty without held-out projections.
    """

    residuals: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    miss: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    _together: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, numbers: Sequence[float], names: Sequence[str], *, held: bool) -> Scores:
        """Return the scores of what `measure` returned."""
        rest = iter(numbers)

        def row() -> dict[str, float]:
            return {name: next(rest) for name in names}

        miss, residuals, together = next(rest), row(), row()
        errors, held_together, shares = (row(), row(), row()) if held else ({}, {}, {})
        shares.pop(names[0], None)
        return cls(
            residuals,
            errors,
            miss,
            shares,
            {name: (together[name], held_together.get(name, 0.0)) for name in names},
        )

    def blend(self, name: str, own: str, other: str, weight: float) -> None:
        """Add the scores of ``weight own + (1 - weight) other``, where `own` is the first answer."""
        together, held_together = self._together[other]

        def mixed(rms: dict[str, float], product: float) -> float:
            rest = 1.0 - weight
            power = (weight * rms[own]) ** 2 + 2 * weight * rest * product + (rest * rms[other]) ** 2
            return math.sqrt(max(power, 0.0))

        self.residuals[name] = mixed(self.residuals, together)
        if self.errors:
            self.errors[name] = mixed(self.errors, held_together)


def measure(
    answers: Sequence[Tensor], operator: Tensor, images: Tensor, variance: Tensor, miss: Tensor
) -> Tensor:
    """Return the miss () and the `_misfits` of the N answers (Z, Y, X): (1 + 2 N,).

    `operator` (M, Z), `images` and their `variance` (M, Y, X).
    """
    return torch.cat([miss[None], *_misfits([along_z(operator, each) for each in answers], images, variance)])


def measure_held(
    answers: Sequence[Tensor], operator: Tensor, held: Tensor, variance: Tensor, between: Tensor
) -> Tensor:
    """Return the misfits on held-out projections (H, Y, X), and the first answer's best shares: (3 N,).

    `operator` (H, Z) is theirs, `between` (B, Z) that of slabs between those of the sweep, where answers may
    differ.
    """
    seen = [along_z(operator, each) for each in answers]
    shares = []
    for answer, each in zip(answers, seen, strict=True):
        elsewhere = along_z(between, answers[0] - answer).square().mean() / variance.mean()
        shares.append(best_share(seen[0], each, held, variance, elsewhere))
    return torch.cat([*_misfits(seen, held, variance), torch.stack(shares)])


def _misfits(seen: Sequence[Tensor], images: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rms misfits (N,) in units of the noise, and their mean products (N,) with the first."""
    apart = torch.stack(list(seen)).sub_(images).mul_(variance.rsqrt()).flatten(1)
    products = apart @ apart.T / apart.shape[1]
    return products.diagonal().sqrt(), products[0]


def best_share(mine: Tensor, other: Tensor, target: Tensor, variance: Tensor, elsewhere: Tensor) -> Tensor:
    """Return w () of `w mine + (1 - w) other` that is closest to `target`, all (H, Y, X).

    Least squares in units of the noise; a little less, since a single position flatters, and close to 1 where
    the two hardly differ: there, or where they differ less than at other depths (`elsewhere` (), their mean
    squared difference in units of the noise), the target says little.
    """
    apart = (mine - other) / variance.sqrt()
    informative = apart.square().sum()
    explained = (apart * (target - other) / variance.sqrt()).sum()
    share = (explained - _FLATTERED * informative + _INFORMATIVE) / (informative + _INFORMATIVE)
    judged = (informative / (elsewhere * apart.numel()).clamp_min(1e-12)).clamp_max(1.0)
    return torch.lerp(torch.ones_like(share), share, judged)


def structured_miss(operator: Tensor, raw: Tensor, images: Tensor, variance: Tensor) -> Tensor:
    """Return the rms () misfit of `raw` (Z, Y, X), averaged over 3 x 3 pixels, less the noise."""
    misfit = along_z(operator, raw) - images
    pixels = min(3, misfit.shape[1]) * min(3, misfit.shape[2])
    shared = (window_sum(misfit, 3) / pixels).square().mean() - variance.mean() / pixels
    return shared.clamp_min(0.0).sqrt()
