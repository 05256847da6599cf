"""Changes that a sweep shows: three hypotheses beside each other, place by place.

In each neighbourhood of each projection, what the state predicts is held against the projection (the
innovation) to decide:

- *still*: the innovation is noise and what was not known yet;
- *rescaled*: a structure changed its brightness. `served = x (1 + r)`; r is a Gaussian process along z,
  regressed on the local ratio of innovation to prediction, with a spike-and-slab prior so that what keeps
  still does not flicker, and falls off from sweep to sweep where no slab looks;
- *new*: the state predicts a projection hardly better than the other projections of the *same* sweep do
  (their leave-one-out residual, Cook & Weisberg 1982, section 2.2). What the covariances say of this ratio
  has no scale to be tuned: a still specimen has 0.2 in the second sweep and 0.01 in the tenth, and it is
  about 1 where the state is wrong.

Pure functions of tensors; pixels are the last axis, P = Y X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.inr.covariance import NOISE_SHARES, KalmanGain
from microdiffusion.engines.projections import local_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_BRIGHTNESS = 0.5  # standard deviation of a change of brightness, relative
_LASTING = 0.7  # of it, from one sweep to the next
_CHANGES = 0.03  # prior probability that a slab's brightness changed at a place
_WORTH_SOLVING = 0.5  # posterior probability from which on a pixel is solved for brightness
_DARKEST = 1e-3  # a structure that is darker has no brightness to change
_LIMITS = (-0.95, 4.0)  # of a change
_WINDOW, _WIDE_WINDOW = 5, 9  # pixels: for brightness, for the question whether anything is known at all
_SIGNAL_WINDOW = 7  # pixels
_NOISE_SHARE = 0.5  # of the noise: where it is estimated, texture counts as noise
_SURE = 1e-4  # variance of a ratio, at least: the optics are not known better
# Ratio of the state's squared misfit to the leave-one-out residual, beyond what the covariances make of it by
# a factor: nothing is new below, everything above twice that; and within these bounds.
_DUE = 5.0
_LEAST_DUE, _MOST_DUE = 0.05, 0.7
_UNTOLD = 0.05  # of that ratio is due: brightness cannot be told from what was not known yet
_NOISE_MARGIN = 1.6  # of the noise's power, which is no misfit
_DARK_SHARE = 0.1  # of the pixels, in which there is little but noise
_NOISE_DOUBT = 3.0  # how many times the noise's power may be what it is said to be
_ALL_NEW = 0.35  # share of the structure that is new: from there on it is another specimen
_QUIET = 0.1  # share of the structure that is new: below it a specimen keeps still
_PIXELS = 2048  # enough for a choice
_CHUNK = 4096  # pixels that are solved at a time
# Doubt of what the covariances say: of the upper quartile of a squared normal deviate.
_QUARTILE = 1.323
_FEW = 20  # places: too few for a quartile
_GROWS, _MOST_DOUBT = 2.0, 3.0  # from sweep to sweep, and at most
UNDOUBTED = 1.5
"""Of a state that nothing was held against yet."""
_UNSEEN = 1e-6  # light of all slabs together


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredSweep:
    """A sweep in the frame of the specimen, and what it can tell.

    Attributes
    ----------
    operator : (M, Z)
    slices : (Z, M)
        The mean of the slabs that see a slice, or lie nearest to it.
    lit : (Z,) bool
        The slices that the slabs lie in.
    first : (M,) bool
        Slabs of which much lies beyond all slabs so far.
    images : (M, Y, X)
        Projections above the level of no light.
    bands : (2 M, P)
        The same, `banded`.
    noise : (M,)
        Variance.
    gains : list of KalmanGain
        Of what is new, then by age.
    alone : callable
        Returns what the sweep says by itself of some pixels (Z, N), None for all.
    """

    operator: Tensor
    slices: Tensor
    lit: NDArray[np.bool_]
    first: Tensor
    images: Tensor
    bands: Tensor
    noise: Tensor
    gains: list[KalmanGain]
    alone: Callable[[Tensor | None], Tensor]

    def local(self, columns: Tensor, window: int) -> Tensor:
        """Return the mean over a square window of each image (M, P)."""
        return local_mean(columns.unflatten(1, self.images.shape[1:]), window).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class BrightnessChanges:
    """The pixels (N,) at which brightness changed, and by how much their voxels are brighter (Z, N)."""

    pixels: Tensor
    by: Tensor

    @classmethod
    def none(cls, slices: int, device: torch.device) -> BrightnessChanges:
        """Return no changes."""
        return cls(torch.empty(0, dtype=torch.long, device=device), torch.empty(slices, 0, device=device))

    @classmethod
    def of(cls, changes: Tensor) -> BrightnessChanges:
        """Return those of all pixels (Z, P)."""
        pixels = torch.nonzero(changes.any(0))[:, 0]
        return cls(pixels, changes[:, pixels])

    def everywhere(self, pixels: int) -> Tensor:
        """Return them at all pixels (Z, P)."""
        changes = self.by.new_zeros(len(self.by), pixels)
        changes[:, self.pixels] = self.by
        return changes

    def expected(self) -> BrightnessChanges:
        """Return what is left of them in the next sweep, where no slab looks."""
        return BrightnessChanges(self.pixels, _LASTING * self.by)

    def applied(self, field: Tensor) -> Tensor:
        """Return a field (Z, P) with these changes: the field itself where there are none."""
        if len(self.pixels):
            field = field.clone()
            field[:, self.pixels] *= 1 + self.by
        return field


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Remainder of each projection of a sweep that the others do not explain.

    Attributes
    ----------
    residual : (M, P)
        Square of the leave-one-out residual, locally.
    expected : (M, 1)
        Its variance without noise under the prior.
    due : (M, P)
        The share of it that the covariances expect the state to miss.
    hat : (M, M)
        What the sweep says by itself of its own projections, of their broad band.
    """

    residual: Tensor
    expected: Tensor
    due: Tensor
    hat: Tensor


def signal(misfit: Tensor, noise: Tensor, predicted: Tensor) -> Tensor:
    """Return the innovation (M, Y, X) without what is noise, where there is little else.

    The covariances expect the same variance everywhere, `predicted` (M,) without that of the noise (M,); a
    neighbourhood that is darker or better known shows less, and there the gain would let noise in. Local
    Wiener filter (Lee 1980), as a share of the gain's own.
    """
    noise = _NOISE_SHARE * noise[:, None, None]
    wanted = 1 - noise / local_mean(misfit.square(), _SIGNAL_WINDOW).clamp_min(_SURE**2)
    return misfit * (wanted * (1 + noise / predicted[:, None, None].clamp_min(_SURE**2))).clamp_(0.0, 1.0)


def left_out(sweep: MeasuredSweep, age: Tensor) -> LeftOut:
    """Return what the other projections leave of each; `age` (M, P) is the mean age in the slabs."""
    gains, noise = sweep.gains, sweep.noise
    hats = (sweep.operator @ gains[0].gain).chunk(2, 1)
    expected = -noise
    for hat, share in zip(hats, NOISE_SHARES, strict=True):
        expected = expected + share * noise / (1 - hat.diagonal())
    residual = torch.cat([_without_its_own(hat) for hat in hats], 1) @ sweep.bands
    table = torch.stack([gain.predicted for gain in gains], 1) / expected[:, None]
    # By the nearest age: a young one expects so much more that a mean of two would be its own.
    due = table.gather(1, age.round().clamp(1, len(gains) - 1).long())
    return LeftOut(sweep.local(residual.square(), _WIDE_WINDOW), expected[:, None], due, hats[0])


def brightness(
    sweep: MeasuredSweep,
    predicted: Tensor,
    left: LeftOut,
    expected: BrightnessChanges,
    reach: float,
    doubt: float,
) -> tuple[BrightnessChanges | None, float]:
    """Return where brightness changed, and by how much; None for nowhere; and the doubt of the state.

    Parameters
    ----------
    predicted : (M, P)
        The projections that a field which keeps still would give.
    expected : BrightnessChanges
        What is left of the last sweep's.
    reach : float
        Length of a slab, slices: a change of brightness is smooth over half of it.
    doubt : float
        How many times more than its covariances say the state's squared error was in the last sweep.
    """
    operator = sweep.operator
    lit = predicted.clamp_min(_DARKEST)
    square = lit.square()
    power = sweep.local(square, _WINDOW)
    ratio = sweep.local((sweep.images.flatten(1) - predicted) * lit, _WINDOW) / power
    spread = left.due * torch.maximum(left.residual, left.expected) + sweep.noise[:, None]
    variance = sweep.local(spread * square, _WINDOW) / power.square() / _WINDOW**2 + _SURE
    bright = (lit > predicted.mean(1, keepdim=True)) & (left.due <= _UNTOLD)
    places = torch.nonzero(bright.flatten())[:, 0]
    doubt = _doubt(ratio.take(places), variance.take(places), doubt)
    variance *= doubt
    wide = variance + _BRIGHTNESS**2
    odds = 0.5 * (variance / wide).log() + 0.5 * ratio.square() * (1 / variance - 1 / wide)
    changed = torch.sigmoid(odds + math.log(_CHANGES / (1 - _CHANGES)))
    changed = changed.masked_fill(doubt * left.due > _UNTOLD, 0.0)
    pixels = torch.nonzero(changed.amax(0) > _WORTH_SOLVING)[:, 0]
    if not len(pixels):
        return None, doubt
    # The profile stands for where the light is: one kernel for all pixels, and a system of M unknowns each.
    place = torch.arange(operator.shape[1], dtype=operator.dtype, device=operator.device)
    smooth = _BRIGHTNESS**2 * (-0.5 * ((place[:, None] - place) / (reach / 2)).square()).exp()
    share = operator / operator.sum(1, keepdim=True)
    cross = share @ smooth
    common = cross @ share.T
    row = torch.full_like(changed[0], len(expected.pixels), dtype=torch.long)
    row[expected.pixels] = torch.arange(len(expected.pixels), device=row.device)
    last = F.pad(expected.by, (0, 1))  # and nothing, where nothing changed
    by = []
    for part in pixels.split(_CHUNK):
        before = last[:, row[part]]
        system = torch.linalg.cholesky_ex(common + torch.diag_embed(variance[:, part].T)).L
        solved = torch.cholesky_solve((ratio[:, part] - share @ before).T[..., None], system)
        change = before + cross.T @ solved[..., 0].T
        by.append((change * (sweep.slices @ changed[:, part])).clamp(*_LIMITS))
    return BrightnessChanges(pixels, torch.cat(by, 1)), doubt


def news(sweep: MeasuredSweep, misfit: Tensor, left: LeftOut, doubt: float) -> tuple[Tensor, bool]:
    """Return how far each slab's place is to be taken anew (M, P), 0 to 1, and whether all of it is.

    `misfit` (M, P) is what the state and the changes of its brightness leave of the projections, `doubt` is
    as of `brightness`.
    """
    structure = _structure(sweep, sweep.images.flatten(1) - misfit, left)
    misfit = sweep.local(misfit.square(), _WIDE_WINDOW)
    # What the noise is taken for may be too little; where nothing else is, it shows.
    some = misfit[:, :: max(1, misfit.shape[1] // _PIXELS)]
    floor = some.kthvalue(1 + int(_DARK_SHARE * some.shape[1]), dim=1).values
    noise = torch.minimum(torch.maximum(floor, sweep.noise), _NOISE_DOUBT * sweep.noise)[:, None]
    misfit = (misfit - _NOISE_MARGIN * noise).clamp_min(0.0)
    structure = (structure - noise).clamp_min(0.0)
    low = (_DUE * doubt * left.due).clamp(_LEAST_DUE, _MOST_DUE)
    new = (misfit / (structure + noise) / low - 1).clamp(0.0, 1.0)
    new = new * new * (3 - 2 * new)
    # Slabs that crowd at one depth speak for few slices: what changes there is not all of the specimen.
    slices = sweep.slices[torch.from_numpy(sweep.lit).to(sweep.slices.device)].sum(0)
    changed, all_of_it = (new * structure).sum(1) * slices, structure.sum(1) * slices
    # Where the state only guessed, being wrong says nothing of a specimen that keeps still elsewhere, and
    # what is known of the slices around tells more than the sweep alone does.
    known = ~sweep.first
    if float(changed[known].sum()) <= _QUIET * float(all_of_it[known].sum()):
        new, changed = new * known[:, None], changed * known
    if float(changed.sum()) > _ALL_NEW * float(all_of_it.sum()) > 0.0:
        return torch.ones_like(new), True
    return new, False


def _doubt(ratios: Tensor, variances: Tensor, before: float) -> float:
    """Return how many times more than its covariances say the squared error of the state is.

    `ratios` (N,) are those of innovation and prediction in bright places. Errors are everywhere, and grow
    slowly; changes are in few places, or come at once; and what all places share is bleaching. The quartile
    of a normal error's square is known.
    """
    if len(ratios) < _FEW:
        return before
    every = max(1, len(ratios) // _PIXELS)
    ratios, variances = ratios[::every], variances[::every]
    found = torch.quantile((ratios - ratios.median()).square() / variances, 0.75) / _QUARTILE
    return min(max(1.0, float(found)), _GROWS * before, _MOST_DOUBT)


def _structure(sweep: MeasuredSweep, predicted: Tensor, left: LeftOut) -> Tensor:
    """Return the squared leave-one-out residual (M, P), locally, of what is there or is predicted (M, P).

    The larger one: where the state varies more along z than what is there, it is that which may be wrong.
    """
    residual = _without_its_own(left.hat) @ predicted
    foretold = sweep.local(residual.square(), _WIDE_WINDOW)
    # A state that holds foretells in all no more of it than is there.
    there = (left.residual - sweep.noise[:, None]).clamp_min(0.0).sum() / foretold.sum().clamp_min(_UNSEEN)
    return torch.maximum(left.residual, foretold * there.clamp_max(1.0) + sweep.noise[:, None])


def _without_its_own(hat: Tensor) -> Tensor:
    """Return the matrix (M, M) that gives the leave-one-out residuals, from the hat matrix."""
    left = torch.eye(len(hat), dtype=hat.dtype, device=hat.device) - hat
    return left / left.diagonal()[:, None]


def slices_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix (Z, M) that gives each slice the mean of the slabs that see it, or lie nearest."""
    cover = matrix.sum(0)
    result = np.asarray(matrix.T / cover.clip(min=_UNSEEN)[:, None], dtype=np.float64)
    seen, unseen = np.flatnonzero(cover >= _UNSEEN), np.flatnonzero(cover < _UNSEEN)
    above = np.searchsorted(seen, unseen)
    below = (above - 1).clip(min=0)
    result[unseen] = (result[seen[below]] + result[seen[above.clip(max=len(seen) - 1)]]) / 2
    return result
