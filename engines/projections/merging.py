"""Merges a sweep with the previous one where the specimen has not moved.

With alternating offsets the last two sweeps lie half a step apart, so together they overlap by half. The
previous sweep is as good as new where nothing has changed since. Two ways to find that out:

- the sweep before the previous one had the same slabs as the present: their difference is change and noise;
- the second sweep of a session has no such predecessor. Then the projections of the first are compared with
those
  that the second alone predicts. Detail along z that one sweep cannot resolve differs as well, but puts light
  into the wrong half of a slab: it has opposite signs in neighbouring projections and vanishes when they are
  averaged along z, unlike a change of brightness or of place across. A move along z by less than a slab goes
  unnoticed here, for this one sweep.

Each pixel of each older projection is trusted by the share of the difference that is not change, and replaced
by the prediction for the rest. Where too little of the signal is trusted, the sweeps are not merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.projections.filters import local_mean
from microdiffusion.engines.projections.noise import quieten
from microdiffusion.frames import STAGE_AXES, StagePositions

_WINDOW = 7  # pixels over which a change is measured
_ENOUGH_REPEATED = 0.7  # of the signal, judged by a sweep of the same slabs
_ENOUGH = 0.55  # of the signal, judged by the prediction, which errs towards change
_FULL = 0.5  # trust by the prediction that counts as full, once enough of the signal is trusted
_DIMMER = 0.5  # from one sweep to the next; more is another specimen
_APART = 0.2  # of a step: sweeps that lie closer are the same


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A measured sweep: number, stage positions (M,), ascending, images and noise variance (M, Y, X)."""

    sweep: int
    stage: StagePositions
    images: Tensor
    variance: Tensor

    def scaled(self, low: float, span: float) -> Seen:
        """Return it in normalised units."""
        return Seen(self.sweep, self.stage, (self.images - low) / span, self.variance / span**2)

    def tensors(self) -> dict[str, Tensor]:
        """Return all but its number as tensors by name."""
        places = {name: torch.from_numpy(column.copy()) for name, column in self.stage.columns.items()}
        return places | {"images": self.images, "variance": self.variance}

    @classmethod
    def of(cls, sweep: int, tensors: dict[str, Tensor], device: torch.device) -> Seen:
        """Return sweep number `sweep` from its `tensors`."""
        images, variance = (tensors[name].to(device) for name in ("images", "variance"))
        places = {name: each.numpy() for name, each in tensors.items() if name in STAGE_AXES}
        return cls(sweep, StagePositions.read(places), images, variance)


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """Two sweeps as one, ascending: stage positions (M,), images and variance (M, Y, X)."""

    stage: StagePositions
    images: Tensor
    variance: Tensor


def merge(
    present: Seen,
    previous: Seen,
    predicted: Tensor,
    older: Seen | None,
    floor: float,
    *,
    always: bool = False,
) -> Merged | None:
    """Return the present and the previous sweep as one; None where they should not be merged.

    Parameters
    ----------
    present, previous, older : Seen
        The last three sweeps, normalised, the newest first.
    predicted : (M, Y, X)
        The previous projections as the present sweep alone predicts them.
    floor : float
        The level of no light.
    always : bool
        Trust every pixel: the specimen cannot move.
    """
    apart = previous.stage.distances_um(present.stage)
    new = apart.min(axis=1) > _APART * present.stage.step_um
    if len(present.stage) < 2 or new.mean() < 0.5:
        return None
    # Bleaching and lamp: one factor for all pixels, which is no change of the specimen.
    zero = max(floor, -1.0)
    repeated = older if older is not None and same_places(older.stage, present.stage) else None
    if repeated is not None:
        factor = _dimmed(present.images, repeated.images, zero) ** 0.5
    else:
        inside = previous.stage.between(present.stage)
        both = torch.from_numpy(inside).to(predicted.device)
        factor = _dimmed(predicted[both], previous.images[both], zero)
    if not _DIMMER < factor < 1 / _DIMMER:
        return None
    measured = zero + factor * (previous.images - zero)
    signal = (measured - zero).square() + previous.variance

    def overall(share: Tensor) -> float:
        return min(float(share.mean()), float((share * signal).sum() / signal.sum()))

    if always:
        share, trust, enough = torch.ones_like(predicted), 1.0, 0.0
    elif repeated is not None:
        share = _unchanged(present, repeated, previous, zero)
        trust, enough = overall(share), _ENOUGH_REPEATED
    else:
        share = trusted_share(predicted, measured, previous.variance)
        trust, enough = overall(share), _ENOUGH
        share = (share / _FULL).clamp_max(1.0)
    if trust < enough:
        return None
    filled = predicted + share * (measured - predicted)
    keep = torch.from_numpy(new).to(filled.device)
    stage = present.stage + previous.stage[new]
    order = stage.order()
    index = torch.from_numpy(order).to(filled.device)
    return Merged(
        stage[order],
        torch.cat([present.images, filled[keep]])[index],
        torch.cat([present.variance, previous.variance[keep]])[index],
    )


def same_places(one: StagePositions, other: StagePositions) -> bool:
    """Return whether two sets of stage positions (M,) are the same, to a fifth of a step."""
    if len(one) != len(other) or len(one) < 2:
        return False
    return bool(np.diag(one.distances_um(other)).max() < _APART * one.step_um)


def _unchanged(present: Seen, older: Seen, previous: Seen, zero: float) -> Tensor:
    """Return the trust in each previous projection, from the change between `older` and `present`."""
    factor = _dimmed(present.images, older.images, zero)
    difference = present.images - zero - factor * (older.images - zero)
    change = (_local(difference.square()) - 2 * _local(present.variance)).clamp_min(0.0)
    near = torch.from_numpy(previous.stage.distances_um(present.stage).argsort(axis=1)[:, :2].copy())
    change = change[near.to(change.device)].mean(dim=1)
    # Half of the change of two intervals, which is known to the variance of a mean over the window.
    allowed = _local(present.variance)[near[:, 0].to(change.device)]
    return allowed / (allowed + 0.5 * (change - 0.3 * allowed).clamp_min(0.0))


def trusted_share(predicted: Tensor, measured: Tensor, variance: Tensor) -> Tensor:
    """Return the trust (M, Y, X), 0 to 1, in each pixel of the older projections.

    All (M, Y, X): these projections as the present sweep predicts them, as measured, and their noise
    variance.
    """
    difference = quieten(measured - predicted, 2 * variance)
    neighbours = F.pad(difference[None, None], (0, 0, 0, 0, 1, 1), mode="replicate")[0, 0]
    smooth = 0.25 * (neighbours[:-2] + 2.0 * difference + neighbours[2:])
    lasting, all_of_it = _local(smooth.square()), _local(difference.square())
    # Alternating differences keep an eighth of their power at most; anything above that is change.
    change = 4.0 * (lasting - all_of_it / 8.0).clamp_min(0.0)
    allowed = _local(variance) + all_of_it / 4.0
    return allowed / (allowed + change)


def _dimmed(new: Tensor, old: Tensor, zero: float) -> float:
    """Return the factor by which the light above `zero` has changed."""
    return (float(new.mean()) - zero) / max(float(old.mean()) - zero, 1e-6)


def _local(stack: Tensor) -> Tensor:
    return local_mean(stack, _WINDOW)
