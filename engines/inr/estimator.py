"""Recursive estimator of a session's field: every sweep refines it, and what changes is taken anew.

The beam integrates along z only, so every pixel is a linear-Gaussian problem of its own with the same
operator, and a Kalman filter's covariance (Z, Z) depends on nothing but how many sweeps a pixel has kept
still: its *age*. The state is the field on the grid of slices, a Gaussian process along z with a Matérn
3/2 kernel (Rasmussen & Williams 2006, section 4.2.1), which defines it between the slices as well; ages
are kept voxel by voxel, and a voxel is updated with its row of the gain of its age. That is exact where a
whole column has one age, and good elsewhere, because the posterior covariance hardly reaches beyond a
slab.

Three hypotheses stand beside each other in each neighbourhood of each projection, and what the state
predicts is held against the projection (the innovation) to decide:

- *still*: the innovation is noise and what was not known yet;
- *rescaled*: a structure changed its brightness. `served = x (1 + r)`; r is a Gaussian process along z,
  regressed on the local ratio of innovation to prediction, with a spike-and-slab prior so that what keeps
  still does not flicker, and falls off from sweep to sweep where no slab looks;
- *new*: the state predicts a projection hardly better than the other projections of the *same* sweep do
  (their leave-one-out residual, Cook & Weisberg 1982, section 2.2). What the covariances say of this ratio
  has no scale to be tuned: a still specimen has 0.2 in the second sweep and 0.01 in the tenth, and it is
  about 1 where the state is wrong. Where it is far above, the sweep's own answer takes the state's place,
  and the age begins anew.

Everything here is in the frame of the specimen: `registration.py` says where that lies. Not thread-safe:
one session, one thread.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr.covariance import (
    NOISE_SHARES,
    OLDEST,
    AgeCovariances,
    KalmanGain,
    banded,
    overlap,
)
from microdiffusion.engines.projections import light_share, local_mean, supports, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable

_BRIGHTNESS = 0.5  # standard deviation of a change of brightness, relative
_LASTING = 0.7  # of it, from one sweep to the next
_CHANGES = 0.03  # prior probability that a slab's brightness changed at a place
_WORTH_SOLVING = 0.5  # posterior probability from which on a pixel is solved for brightness
_DARKEST = 1e-3  # a structure that is darker has no brightness to change
_WINDOW, _WIDE_WINDOW = 5, 9  # pixels: for brightness, for the question whether anything is known at all
_SURE = 1e-4  # variance of a ratio, at least: the optics are not known better
# Ratio of the state's squared misfit to the leave-one-out residual, beyond what the covariances make of it by
# a factor: nothing is new below, everything above twice that; and within these bounds.
_DUE = 5.0
_LEAST_DUE, _MOST_DUE = 0.05, 0.7
_UNTOLD = 0.05  # of that ratio is due: brightness cannot be told from what was not known yet
_NOISE_MARGIN = 1.3  # of the noise's power, which is no misfit
_DARK_SHARE = 0.1  # of the pixels, in which there is little but noise
_NOISE_DOUBT = 3.0  # how many times the noise's power may be what it is said to be
_ALL_NEW = 0.35  # share of the structure that is new: from there on it is another specimen
_LIT_AGAIN = 0.02  # of a dark voxel's light is allowed again with each sweep that does not find it dark
_PIXELS = 2048  # enough for a choice
_UNSEEN = 1e-6  # light of all slabs together
_VOXELS = 1 << 17  # that are updated one by one at a time
_CHUNK = 4096  # pixels that are solved at a time


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """The knowledge after a sweep.

    Attributes
    ----------
    volume : (Z, Y, X)
        The field with its present brightness, in the units of the projections.
    age : (Z, Y, X) uint8
        Sweeps since a voxel was last taken anew, this one included; `OLDEST` and more are one.
    still : float
        Share of voxels that are older than this sweep.
    deviation : callable
        Returns the posterior standard deviation (Z, Y, X).
    """

    volume: Tensor
    age: Tensor
    still: float
    deviation: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Operator (M, Z), projections (M, P), bands (2 M, P), noise variance (M,), gains, own answer (Z, P)."""

    operator: Tensor
    seen: Tensor
    banded: Tensor
    noise: Tensor
    gains: list[KalmanGain]
    alone: Callable[[], Tensor]


class SessionEstimator:
    """The field of one session.

    Parameters
    ----------
    shape : (Z, Y, X)
    bandwidth : float
        Along z, cycles per slice: `field.default_bandwidth`.
    reach : float
        Length of a slab, slices: a change of brightness is smooth over half of it.
    device : torch.device

    Attributes
    ----------
    sweeps : int
        Sweeps that were taken in.
    covariances : AgeCovariances
        Their amplitudes are chosen by the first sweep, unless they are known.
    anew : bool
        Whether the last sweep showed another specimen altogether.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        bandwidth: float,
        reach: float,
        device: torch.device | None = None,
    ) -> None:
        self.shape = shape
        self.sweeps = 0
        self.covariances = AgeCovariances(shape[0], bandwidth)
        self._device = device or torch.device("cpu")
        distance = np.abs(np.arange(shape[0])[:, None] - np.arange(shape[0]))
        self._smooth = tensor_of(_BRIGHTNESS**2 * np.exp(-0.5 * (distance / (reach / 2)) ** 2), self._device)
        self.anew = False
        self._field = self._relative = self._age = self._lit = torch.empty(0)

    @property
    def expected(self) -> Tensor:
        """The field (Z, P) as it is expected in the next sweep."""
        return torch.addcmul(self._field, self._field, self._relative, value=_LASTING)

    @property
    def nbytes(self) -> int:
        """Of what is kept from sweep to sweep."""
        return sum(tensor.nbytes for tensor in (self._field, self._relative, self._age, self._lit))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is kept from sweep to sweep: numbers (plain data) and tensors by name."""
        numbers = {"sweeps": self.sweeps, "amplitudes": self.covariances.amplitudes}
        tensors = {
            "field": self._field,
            "relative": self._relative,
            "age": self._age,
            "lit": self._lit,
        }
        if self.covariances.by_age:
            tensors["covariances"] = torch.from_numpy(np.stack(self.covariances.by_age))
        return numbers, tensors

    def load(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a state.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is not one of an estimator of this shape.
        """
        field = tensors["field"].to(self._device)
        if field.shape not in ((self.shape[0], self.shape[1] * self.shape[2]), (0,)):
            raise ValueError("the state is of another geometry")
        self.sweeps, amplitudes = int(numbers["sweeps"]), numbers["amplitudes"]
        self.covariances.amplitudes = amplitudes and (float(amplitudes[0]), float(amplitudes[1]))
        self._field, self._relative = field, tensors["relative"].to(self._device)
        self._age, self._lit = tensors["age"].to(self._device), tensors["lit"].to(self._device)
        kept = tensors.get("covariances")
        self.covariances.by_age = () if kept is None else tuple(kept.cpu().numpy())

    def copy(self) -> SessionEstimator:
        """Return an independent estimator (no tensor of a state is ever changed in place)."""
        other = copy.copy(self)
        other.covariances = copy.copy(self.covariances)
        return other

    def shift(self, deeper: int, down: int, right: int) -> None:
        """Look at another part of the specimen, so many voxels further; what comes into view is not known."""
        for name in ("_field", "_relative", "_age", "_lit"):
            volume = getattr(self, name).unflatten(1, self.shape[1:])
            result = torch.zeros_like(volume)
            here, there = zip(
                *(overlap(by, edge) for by, edge in zip((deeper, down, right), self.shape, strict=True)),
                strict=True,
            )
            result[here] = volume[there]
            setattr(self, name, result.flatten(1))
        if deeper:
            self.covariances.shift(deeper)

    @torch.no_grad()
    def update(
        self,
        matrix: NDArray[np.float64],
        images: Tensor,
        variance: Tensor,
        own: Callable[[], Tensor] | None = None,
    ) -> Estimate:
        """Take in a sweep.

        Parameters
        ----------
        matrix : (M, Z) float64
            Operator of its slabs, in the frame of the specimen.
        images, variance : (M, Y, X)
            Projections above the level of no light, in units of their range, and their noise variance.
        own : callable, optional
            Returns what the sweep says by itself (Z, Y, X), in the same units: what the state begins with,
            and what takes its place where nothing that was known holds any more. None: the closed form.
        """
        seen = images.flatten(1)
        noise = variance.mean(dim=(1, 2)).double().cpu().numpy()
        bands = banded(images)
        if self.covariances.amplitudes is None:
            self.covariances.choose_amplitudes(matrix, _some(bands), noise)
        gains = self.covariances.advance(matrix, noise, self._device)
        sweep = _Measured(
            tensor_of(matrix, self._device),
            seen,
            bands,
            tensor_of(noise, self._device),
            gains,
            (lambda: gains[0].gain @ bands) if own is None else (lambda: own().flatten(1)),
        )
        lit = light_share(supports(matrix), self.shape[0], images, variance).flatten(1)
        if self.sweeps == 0:
            self._field = sweep.alone().clone()
            self._relative = torch.zeros_like(self._field)
            self._age = torch.ones_like(self._field, dtype=torch.uint8)
            self._lit = lit  # the sweep's own answer is darkened with all others
        else:
            self._refine(sweep)
            self._darken(lit)
        self.sweeps = 1 if self.anew else self.sweeps + 1
        return self._estimate(gains)

    def forget(self) -> None:
        """Begin with the next sweep."""
        self.sweeps, self.anew = 0, False
        self.covariances.forget()

    def _refine(self, sweep: _Measured) -> None:
        operator, gains = sweep.operator, sweep.gains
        oldest = len(gains) - 1
        age = self._age.clamp(max=oldest)
        mean_age = (operator / operator.sum(1, keepdim=True)) @ age.float()
        unknown = age == 0 if bool((age == 0).any()) else None  # came into view
        if unknown is not None:
            self._field = torch.where(unknown, sweep.alone(), self._field)
        predicted = operator @ self._field
        others, apart, due = self._apart(sweep, mean_age)
        brighter = self._brightness(sweep, predicted, torch.maximum(others, apart), due)
        self._relative = torch.zeros_like(self._field)
        left = sweep.seen - predicted
        if brighter is not None:
            pixels, change = brighter
            self._relative[:, pixels] = change
            left[:, pixels] -= operator @ (self._field[:, pixels] * change)
        new = self._news(sweep, left, others, due)
        field = self._gained(age, gains, banded(left.unflatten(1, self.shape[1:])))
        age = (age + 1).clamp(max=OLDEST)
        if new is not None or unknown is not None:
            share = torch.zeros_like(field) if new is None else _slices_of(operator) @ new
            if unknown is not None:
                share = share.masked_fill(unknown, 1.0)
            field = torch.lerp(field, sweep.alone(), share)
            if brighter is not None:
                self._relative *= 1 - share
            age = torch.where(share > 0.5, 1, age)
        self._field, self._age = field.clamp_min(0.0), age

    def _darken(self, lit: Tensor) -> None:
        """Take the light from voxels that lay in a dark slab, in this sweep or since they keep still.

        `lit` (Z, P) is the sweep's share of light. Light is never negative: a slab without any is dark all
        over, and what a bright one shows lies where none of those that were dark did.
        """
        self._lit = torch.where(self._age > 1, torch.minimum(lit, self._lit + _LIT_AGAIN), lit)
        self._field = self._field * self._lit

    def _gained(self, age: Tensor, gains: list[KalmanGain], left: Tensor) -> Tensor:
        """Return the field (Z, P) with what is left of the projections (2 M, P), by each voxel's gain."""
        # Most of a specimen has kept still equally long: one product for it, and the others one by one.
        common = int(torch.bincount(age[:, :: max(1, age.shape[1] // _PIXELS)].flatten()).argmax())
        field = torch.addmm(self._field, gains[common].gain, left).flatten()
        others = torch.nonzero(age.flatten() != common)[:, 0]
        before, ages, columns = self._field.flatten(), age.flatten(), left.T.contiguous()
        rows = torch.stack([gain.gain for gain in gains]).flatten(0, 1)  # (ages * Z, 2 M)
        for some in others.split(_VOXELS):
            slice_, pixel = some // left.shape[1], some % left.shape[1]
            row = ages[some].long() * self.shape[0] + slice_
            change = (rows.index_select(0, row) * columns.index_select(0, pixel)).sum(1)
            field[some] = before[some] + change
        return field.view_as(self._field)

    def _apart(self, sweep: _Measured, mean_age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the other projections of the sweep leave of each, as it is and as it is expected.

        The leave-one-out residual's square (M, P), its variance (M, 1) without noise under the prior, and the
        share of it (M, P) that the covariances expect the state to miss.
        """
        gains, noise = sweep.gains, sweep.noise
        residual, apart = torch.zeros_like(sweep.seen), -noise
        for hat, band, share in zip(
            (sweep.operator @ gains[0].gain).chunk(2, 1), sweep.banded.chunk(2), NOISE_SHARES, strict=True
        ):
            kept = 1 - hat.diagonal()
            residual += torch.addmm(band, hat, band, alpha=-1) / kept[:, None]
            apart = apart + share * noise / kept
        table = torch.stack([gain.predicted for gain in gains]) / apart
        slab = torch.arange(len(apart), device=table.device)[:, None]
        # By the nearest age: a young one expects so much more that a mean of two would be its own.
        due = table[mean_age.round().long().clamp(1, len(gains) - 1), slab]
        return self._local(residual.square(), _WIDE_WINDOW), apart[:, None], due

    def _brightness(
        self, sweep: _Measured, predicted: Tensor, others: Tensor, due: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the pixels (N,) that changed and by how much their voxels are brighter (Z, N)."""
        if self.sweeps < 2:  # one sweep's structure is too coarse to tell brightness from place
            return None
        operator = sweep.operator
        lit = predicted.clamp_min(_DARKEST)
        square = lit.square()
        power = self._local(square, _WINDOW)
        ratio = self._local((sweep.seen - predicted) * lit, _WINDOW) / power
        noise = sweep.noise[:, None]
        spread = due * others + noise
        variance = self._local(spread * square, _WINDOW) / power.square() / _WINDOW**2 + _SURE
        wide = variance + _BRIGHTNESS**2
        odds = 0.5 * (variance / wide).log() + 0.5 * ratio.square() * (1 / variance - 1 / wide)
        changed = torch.sigmoid(odds + math.log(_CHANGES / (1 - _CHANGES)))
        changed = changed.masked_fill(due > _UNTOLD, 0.0)
        pixels = torch.nonzero(changed.amax(0) > _WORTH_SOLVING)[:, 0]
        if not len(pixels):
            return None
        # A change of brightness is smooth over a slab, so the profile stands for where the light is: one
        # kernel for all pixels, and a system of M unknowns for each.
        share = operator / operator.sum(1, keepdim=True)
        cross = share @ self._smooth
        common = cross @ share.T
        slices = _slices_of(operator)
        result = []
        for part in pixels.split(_CHUNK):
            before = _LASTING * self._relative[:, part]
            system = common + torch.diag_embed(variance[:, part].T)
            solved = torch.linalg.solve_ex(system, (ratio[:, part] - share @ before).T[..., None]).result
            change = before + cross.T @ solved[..., 0].T
            result.append((change * (slices @ changed[:, part])).clamp(-0.95, 4.0))
        return pixels, torch.cat(result, 1)

    def _news(self, sweep: _Measured, left: Tensor, others: Tensor, due: Tensor) -> Tensor | None:
        """Return how far each slab's place is to be taken anew (M, P), within 0 and 1; None for nowhere."""
        noise = sweep.noise
        misfit = self._local(left.square(), _WIDE_WINDOW)
        # What the noise is taken for may be too little; where nothing else is, it shows.
        floor = torch.quantile(misfit[:, :: max(1, misfit.shape[1] // _PIXELS)], _DARK_SHARE, dim=1)
        noise = torch.minimum(torch.maximum(floor, noise), _NOISE_DOUBT * noise)[:, None]
        misfit = (misfit - _NOISE_MARGIN * noise).clamp_min(0.0)
        structure = (others - noise).clamp_min(0.0)
        low = (_DUE * due).clamp(_LEAST_DUE, _MOST_DUE)
        new = (misfit / (structure + noise) / low - 1).clamp(0.0, 1.0)
        new = new * new * (3 - 2 * new)
        total = float((new * structure).sum())
        self.anew = total > _ALL_NEW * float(structure.sum()) > 0.0
        if self.anew:
            return torch.ones_like(new)
        return new if float(new.max()) > 0.0 else None

    def _estimate(self, gains: list[KalmanGain]) -> Estimate:
        age = self._age.unflatten(1, self.shape[1:])
        table = torch.stack([gain.left for gain in gains]).clamp_min(0.0).sqrt()  # (ages, Z), from age 1

        def deviation() -> Tensor:
            row = (age.long() - 1).clamp(0, len(table) - 1)
            return table[row, torch.arange(len(row), device=row.device)[:, None, None]]

        volume = torch.addcmul(self._field, self._field, self._relative).unflatten(1, self.shape[1:])
        return Estimate(volume, age, float((age > 1).float().mean()), deviation)

    def _local(self, columns: Tensor, window: int) -> Tensor:
        """Return the mean over a square window of each image (M, P)."""
        return local_mean(columns.unflatten(1, self.shape[1:]), window).flatten(1)


def _some(images: Tensor) -> NDArray[np.float64]:
    """Return enough of the pixels of images (M, P)."""
    pixels: NDArray[np.float64] = images[:, :: max(1, images.shape[1] // _PIXELS)].double().cpu().numpy()
    return pixels


def _slices_of(operator: Tensor) -> Tensor:
    """Return the matrix (Z, M) that gives each slice the mean of the slabs that see it, or lie nearest."""
    cover = operator.sum(0)
    result = operator.T / cover.clamp_min(_UNSEEN)[:, None]
    seen = torch.nonzero(cover >= _UNSEEN)[:, 0]
    for place in torch.nonzero(cover < _UNSEEN)[:, 0].tolist():
        below, above = seen[seen < place][-1:], seen[seen > place][:1]
        result[place] = result[torch.cat([below, above])].mean(0)
    return result
