"""What the projections say of the answers of one sweep: measured on the device, read by the host at once.

`measure` and the functions below it work on tensors alone; what they find is one small tensor. `Scores.read`
makes names of its numbers. How far an answer misses its projections is told in units of their noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.projections import along_z, window_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_FLATTERED = 0.1  # the held-out projection's share lies that much above the volume's
_INFORMATIVE = 10.0  # squared difference of two answers, in units of the noise, that says anything


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of the answers of one sweep, by name.

    Attributes
    ----------
    residuals, errors : dict
        Rms of the reprojection's misfit, and the same on the held-out projections (empty where there is
        none), both in units of the noise.
    miss : float
        See `structured_miss`.
    shares : dict
        The first answer's share in its best mixture with each other one; empty without held-out projections.
    coarse_error : float or None
        See `coarse_test.py`; None where nobody looked.
    """

    residuals: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    miss: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    coarse_error: float | None = None
    _together: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, numbers: Sequence[float], names: Sequence[str], *, held: bool, coarse: bool) -> Scores:
        """Return what `measure` found, with the coarse test behind it where there was one."""
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
            next(rest) if coarse else None,
            {name: (together[name], held_together.get(name, 0.0)) for name in names},
        )

    def blend(self, name: str, own: str, other: str, weight: float) -> None:
        """Add the scores of `weight own + (1 - weight) other`, where `own` is the first answer."""
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
    """Return the miss () and what `_misfits` tells of the N answers (Z, Y, X) and projections: (1 + 2 N,).

    `operator` (M, Z), `images` and their `variance` (M, Y, X).
    """
    return torch.cat([miss[None], *_misfits([along_z(operator, each) for each in answers], images, variance)])


def measure_held(answers: Sequence[Tensor], operator: Tensor, held: Tensor, variance: Tensor) -> Tensor:
    """Return the same for held-out projections (H, Y, X), and the first answer's best shares, (3 N,)."""
    seen = [along_z(operator, each) for each in answers]
    shares = torch.stack([best_share(seen[0], each, held, variance) for each in seen])
    return torch.cat([*_misfits(seen, held, variance), shares])


def _misfits(seen: Sequence[Tensor], images: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rms misfits (N,) in units of the noise, and the mean products (N,) with the first one's."""
    apart = torch.stack(list(seen)).sub_(images).mul_(variance.rsqrt()).flatten(1)
    products = apart @ apart.T / apart.shape[1]
    return products.diagonal().sqrt(), products[0]


def best_share(mine: Tensor, other: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """Return w () of `w mine + (1 - w) other` that is closest to `target`, all (H, Y, X).

    Least squares in units of the noise; a little less, because one place flatters, and towards 1 where the
    two hardly differ.
    """
    apart = (mine - other) / variance.sqrt()
    informative = apart.square().sum()
    explained = (apart * (target - other) / variance.sqrt()).sum()
    return (explained - _FLATTERED * informative + _INFORMATIVE) / (informative + _INFORMATIVE)


def structured_miss(operator: Tensor, raw: Tensor, images: Tensor, variance: Tensor) -> Tensor:
    """Return the rms () of what 3 x 3 neighbours share of the misfit of `raw` (Z, Y, X), less the noise's."""
    misfit = along_z(operator, raw) - images
    shared = (window_sum(misfit, 3) / 9).square().mean() - variance.mean() / 9
    return shared.clamp_min(0.0).sqrt()
