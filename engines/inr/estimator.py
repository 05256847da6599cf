"""Recursive estimator of a session's field: every sweep refines it, and what changes is taken anew.

The beam integrates along z only, so every pixel is a linear-Gaussian problem of its own with the same
operator, and a Kalman filter's covariance (Z, Z) depends on nothing but how many sweeps a pixel has kept
still: its *age*. The state is the field on the grid of slices, a Gaussian process along z with a Matérn
3/2 kernel (Rasmussen & Williams 2006, section 4.2.1), which defines it between the slices as well; ages
are kept voxel by voxel, and a voxel is updated with its row of the gain of its age. That is exact where a
whole column has one age, and good elsewhere, because the posterior covariance hardly reaches beyond a
slab.

What a sweep shows is still, rescaled or new (`changes.py`): brightness is followed beside the field, and
where the state is wrong the sweep's own answer takes its place, and the age begins anew. Darkness is
remembered: a voxel that lay in a dark slab since it keeps still has no light.

Everything here is in the frame of the specimen: `registration.py` says where that lies. Not thread-safe:
one session, one thread.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr.ages import age_shares, by_age, common_age, gained
from microdiffusion.engines.inr.changes import (
    UNDOUBTED,
    BrightnessChanges,
    MeasuredSweep,
    brightness,
    left_out,
    news,
    signal,
    slices_of,
)
from microdiffusion.engines.inr.covariance import (
    OLDEST,
    AgeCovariances,
    KalmanGain,
    banded,
    leeway,
    noise_of,
    overlap,
    some_pixels,
)
from microdiffusion.engines.inr.nonnegative import nonnegative
from microdiffusion.engines.inr.slice_changes import SliceChanges
from microdiffusion.engines.projections import light_share, supports, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FIRST = 0.25  # of a slab, beyond all slabs so far: it says what is there, and not what is new
_KNOWS_BRIGHTNESS = 2  # sweeps: one sweep's structure is too coarse to tell brightness from place
_ALL_LIGHT = 255  # of a voxel's light, as it is kept
_LIT_AGAIN = 5  # of it, is allowed again to a dark voxel with each sweep that does not find it dark
_MANY_PIXELS = 1 << 14  # enough for a share of all
_TOLD = 5e-3  # of a voxel's variance: less is told it by slabs that lie far from it


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """The knowledge after a sweep.

    Attributes
    ----------
    volume : (Z, Y, X)
        The field with its present brightness, in the units of the projections; not to be changed in place.
    age : (Z, Y, X) uint8
        Sweeps since a voxel was last taken anew, this one included; `OLDEST` and more are one.
    still : float
        Share of voxels that are older than this sweep.
    deviation : callable
        Returns the posterior standard deviation (Z, Y, X).
    leeway : callable
        Returns the `covariance.leeway` (Z, Z) of most columns; after one sweep the identity.
    """

    volume: Tensor
    age: Tensor
    still: float
    deviation: Callable[[], Tensor]
    leeway: Callable[[], Tensor]


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
    by_slice : bool
        Whether to note what a sweep changed and told, slice by slice.

    Attributes
    ----------
    sweeps : int
        Sweeps that were taken in.
    covariances : AgeCovariances
        Their amplitudes are chosen by the first sweep, unless they are known.
    anew : bool
        Whether the last sweep showed another specimen altogether.
    by_slice : SliceChanges, optional
        What the last sweep changed and told, slice by slice; None where nobody asks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        bandwidth: float,
        reach: float,
        device: torch.device | None = None,
        by_slice: bool = False,
    ) -> None:
        self.shape = shape
        self.sweeps = 0
        self.covariances = AgeCovariances(shape[0], bandwidth)
        self._device = device or torch.device("cpu")
        self._reach = reach
        self.anew = False
        self.by_slice = SliceChanges.none(shape[0]) if by_slice else None
        self._field = self._age = self._lit = torch.empty(0)
        self._unseen = np.ones(shape[0], dtype=bool)  # slices beyond all slabs so far
        self._changes = BrightnessChanges.none(shape[0], self._device)
        self._doubt = UNDOUBTED

    @property
    def expected(self) -> Tensor:
        """The field (Z, P) as it is expected in the next sweep; not to be changed in place."""
        return self._changes.expected().applied(self._field)

    def foretell(self, matrix: NDArray[np.float64]) -> Tensor:
        """Return the projections (M, P) that slabs of an operator (M, Z) are expected to give."""
        operator, changes = tensor_of(matrix, self._device), self._changes.expected()
        seen = operator @ self._field
        if len(changes.pixels):
            seen[:, changes.pixels] += operator @ (self._field[:, changes.pixels] * changes.by)
        return seen

    @property
    def present(self) -> Tensor:
        """The field (Z, P) with its brightness in the last sweep; not to be changed in place."""
        return self._changes.applied(self._field)

    @property
    def changes(self) -> BrightnessChanges:
        """The changes of brightness in the last sweep."""
        return self._changes

    @property
    def nbytes(self) -> int:
        """Of what is kept from sweep to sweep."""
        kept = (self._field, self._changes.by, self._changes.pixels, self._age, self._lit)
        covariances = sum(each.nbytes for each in self.covariances.by_age)
        return covariances + sum(each.nbytes for each in kept)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is kept from sweep to sweep: numbers (plain data) and tensors by name."""
        numbers = {
            "sweeps": self.sweeps,
            "amplitudes": self.covariances.amplitudes,
            "unseen": np.flatnonzero(self._unseen).tolist(),
            "doubt": self._doubt,
        }
        tensors = {
            "field": self._field,
            "changes": self._changes.by,
            "changed": self._changes.pixels,
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
        self._unseen = np.isin(np.arange(self.shape[0]), numbers["unseen"])
        self._doubt = float(numbers["doubt"])
        self._field = field
        self._changes = BrightnessChanges(
            tensors["changed"].to(self._device), tensors["changes"].to(self._device)
        )
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
        moved = []
        for each in (self._field, self._changes.everywhere(self._field.shape[1]), self._age, self._lit):
            volume = each.unflatten(1, self.shape[1:])
            result = torch.zeros_like(volume)
            here, there = zip(
                *(overlap(by, edge) for by, edge in zip((deeper, down, right), self.shape, strict=True)),
                strict=True,
            )
            result[here] = volume[there]
            moved.append(result.flatten(1))
        self._field, changes, self._age, lit = moved
        self._lit = lit.masked_fill(self._age == 0, _ALL_LIGHT)  # which nothing has darkened
        self._changes = BrightnessChanges.of(changes)
        if deeper:
            self.covariances.shift(deeper)
            here, there = overlap(deeper, self.shape[0])
            unseen = np.ones_like(self._unseen)
            unseen[here] = self._unseen[there]
            self._unseen = unseen

    @torch.no_grad()
    def update(
        self,
        matrix: NDArray[np.float64],
        images: Tensor,
        variance: Tensor,
        light: Tensor,
        own: Callable[[Tensor | None], Tensor] | None = None,
    ) -> Estimate:
        """Take in a sweep.

        Parameters
        ----------
        matrix : (M, Z) float64
            Operator of its slabs, in the frame of the specimen.
        images, variance : (M, Y, X)
            Projections above the level of no light, in units of their range, and their noise variance.
        light : (M, Y, X)
            The share of it that each pixel leaves its slab: `slab_light`.
        own : callable, optional
            Returns what the sweep says by itself (Z, N), in the same units, of the pixels (N,) that it is
            given, None for all: what the state begins with, and what takes its place where nothing that was
            known holds any more. None: the closed form.
        """
        noise = noise_of(variance)
        bands = banded(images)
        if self.covariances.amplitudes is None:
            self.covariances.choose_amplitudes(matrix, some_pixels(bands), noise)
        gains = self.covariances.advance(matrix, noise, self._device)

        def closed(pixels: Tensor | None) -> Tensor:
            return gains[0].gain @ (bands if pixels is None else bands[:, pixels])

        lit = np.any(matrix > 0.0, axis=0)
        sweep = MeasuredSweep(
            tensor_of(matrix, self._device),
            tensor_of(slices_of(matrix), self._device),
            lit,
            torch.from_numpy(matrix @ self._unseen > _FIRST * matrix.sum(1)).to(self._device),
            images,
            bands,
            tensor_of(noise, self._device),
            gains,
            own or closed,
        )
        share = light_share(supports(matrix), self.shape[0], _bytes_of(light.flatten(1)))
        if self.by_slice is not None:
            self.by_slice = SliceChanges.none(self.shape[0], float(noise.mean()))
        if self.sweeps == 0:
            self._field = sweep.alone(None).clone()
            self._changes = BrightnessChanges.none(self.shape[0], self._device)
            self._age = torch.ones_like(self._field, dtype=torch.uint8)
            self._lit = share  # the sweep's own answer is darkened with all others
        else:
            self._refine(sweep, share)
        self._unseen = self._unseen.copy()
        self._unseen[_from_first_to_last(lit)] = False
        self.sweeps = 1 if self.anew else self.sweeps + 1
        if self.by_slice is not None:
            self.by_slice.tell(gains, self._age)
        return self._estimate(gains)

    def lift(self, by: float) -> None:
        """Add light everywhere, in the units of the projections; less of it where `by` is negative."""
        self._field = (self._field + by).clamp_min_(0.0)

    def expected_information(self, matrices: Iterable[NDArray[np.float64]], noise: float) -> list[float]:
        """Return what each of some sweeps would tell next, bits per pixel: see `AgeCovariances.information`.

        `matrices` are their operators (M, Z), in the frame of the specimen; `noise` is the variance.
        """
        shares = age_shares(self._age)
        return [self.covariances.information(matrix, noise, shares) for matrix in matrices]

    def forget(self) -> None:
        """Begin with the next sweep."""
        self.sweeps, self.anew, self._doubt = 0, False, UNDOUBTED
        self._unseen = np.ones_like(self._unseen)
        self.covariances.forget()

    def _refine(self, sweep: MeasuredSweep, light: Tensor) -> None:
        gains, before = sweep.gains, self._field
        unknown = self._age == 0 if int(self._age.min()) == 0 else None  # came into view
        if unknown is not None:
            pixels = torch.nonzero(unknown.any(0))[:, 0]
            before = before.clone()
            before[:, pixels] = torch.where(unknown[:, pixels], sweep.alone(pixels), before[:, pixels])
        # Slices that the slabs lie in, and those of which they tell anything.
        told = np.max([each.told for each in gains[1:]], axis=0) > _TOLD
        seen = _from_first_to_last(sweep.lit)
        rows = _from_first_to_last(sweep.lit | told | (unknown is not None))
        operator = sweep.operator[:, seen]
        predicted = operator @ before[seen]
        left = left_out(sweep, (operator / operator.sum(1, keepdim=True)) @ self._age[seen].float())
        misfit = sweep.images.flatten(1) - predicted
        brighter = None
        if self.sweeps >= _KNOWS_BRIGHTNESS:
            brighter, self._doubt = brightness(
                sweep, predicted, left, self._changes.expected(), self._reach, self._doubt
            )
        if brighter is not None:
            pixels = brighter.pixels
            misfit[:, pixels] -= operator @ (before[seen][:, pixels] * brighter.by[seen])
        new, self.anew = news(sweep, misfit, left, self._doubt)
        common = gains[min(common_age(self._age), len(gains) - 1)]
        bands = banded(signal(misfit.view_as(sweep.images), sweep.noise, common.predicted))
        field = gained(before[rows], self._age[rows].clamp(max=len(gains) - 1), gains, rows, bands)
        age = (self._age + 1).clamp_(max=OLDEST)
        begun = new.amax(0) > 0.0
        pixels = torch.nonzero(begun if unknown is None else begun | unknown.any(0))[:, 0]
        if len(pixels):
            share = sweep.slices[rows] @ new[:, pixels]
            if unknown is not None:
                share = share.masked_fill(unknown[:, pixels], 1.0)
            difference = (sweep.alone(pixels)[rows] - field[:, pixels]) * share
            field[:, pixels] += difference
            if self.by_slice is not None:
                # That something came into view is no change.
                known = (
                    difference if unknown is None else difference.masked_fill(unknown[rows][:, pixels], 0.0)
                )
                self.by_slice.add(known, rows, self._age.shape[1], common.left)
            age[rows, pixels] = torch.where(share > 0.5, 1, age[rows, pixels])
            if brighter is not None:
                brighter.by[rows] *= 1 - sweep.slices[rows] @ new[:, brighter.pixels]
        if brighter is not None and self.by_slice is not None:
            change = before[:, brighter.pixels] * brighter.by
            self.by_slice.add(change, slice(0, self.shape[0]), self._age.shape[1], common.left)
        # Light is never negative: a slab without any is dark all over, and what a bright one shows lies where
        # none of those that were dark did since their voxels keep still.
        known = self._lit[seen].clamp(max=_ALL_LIGHT - _LIT_AGAIN) + _LIT_AGAIN
        anew = (2 - age[seen].clamp(max=2)) * _ALL_LIGHT  # whatever was dark; comparing bytes takes longer
        light = torch.minimum(light[seen], torch.maximum(known, anew))
        field = nonnegative(field, self.covariances.total(common_age(age[rows]))[rows, rows])
        field[seen.start - rows.start : seen.stop - rows.start] *= light * (1 / _ALL_LIGHT)
        self._field, self._lit = _with_rows(before, rows, field), _with_rows(self._lit, seen, light)
        self._age = age
        self._changes = brighter or BrightnessChanges.none(self.shape[0], self._device)

    def _estimate(self, gains: list[KalmanGain]) -> Estimate:
        age = self._age.unflatten(1, self.shape[1:])
        table = torch.stack([gain.left for gain in gains]).clamp_min(0.0).sqrt()  # (ages, Z), from age 1

        def deviation() -> Tensor:
            return by_age(table, age)

        some = self._age[:, :: max(1, self._age.shape[1] // _MANY_PIXELS)]
        still = float(some.clamp(1, 2).float().mean()) - 1
        volume = self.present.unflatten(1, self.shape[1:])
        return Estimate(volume, age, still, deviation, self._leeway)

    def _leeway(self) -> Tensor:
        if self.sweeps == 1:  # the network has seen what there is
            return torch.eye(self.shape[0], device=self._device)
        return tensor_of(leeway(self.covariances.total(common_age(self._age))), self._device)


def _bytes_of(light: Tensor) -> Tensor:
    return (light * _ALL_LIGHT).round().to(torch.uint8)


def _from_first_to_last(which: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(which)
    return slice(int(places[0]), int(places[-1]) + 1)


def _with_rows(volume: Tensor, rows: slice, part: Tensor) -> Tensor:
    """Return a volume (Z, P) with some of its slices replaced."""
    return part if len(part) == len(volume) else torch.cat([volume[: rows.start], part, volume[rows.stop :]])
