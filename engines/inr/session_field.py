"""The INR of a session: the recursive estimator in the specimen's frame, and where that lies.

Owns the `SessionEstimator` of a session and its `Motion`. A sweep is first registered with what the state
predicts, its images are moved to the specimen and its slabs placed there, then the estimator takes it in,
and what comes out is moved back to where the stage sees it. Not thread-safe: one session, one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microdiffusion.engines.inr.estimator import Estimate, SessionEstimator
from microdiffusion.engines.inr.registration import Motion, moved, moved_labels, register
from microdiffusion.engines.inr.smoother import Known, expected_misfit, joined, rescaled, trusted
from microdiffusion.engines.projections import local_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Own = Callable[["NDArray[np.float64]", Tensor, Tensor, Tensor | None], Tensor]
_FAR = 2.0  # voxels of motion from which on the state is moved along, by whole voxels
_WINDOW = 9  # pixels, in which the misfits of two runs are compared
_REMEMBERED = 0.85  # of the doubt in a backward run, from sweep to sweep
_KNOWS_Z = 3  # sweeps after which motion along z can be told from what was not known yet


@dataclass(frozen=True, slots=True, eq=False)
class FieldEstimate(Estimate):
    """An estimate where the stage sees it, and where the specimen is."""

    motion: Motion = Motion()  # noqa: RUF009 frozen


class SessionField:
    """The field of a session, sweep by sweep.

    Parameters
    ----------
    shape, bandwidth, reach, device, by_slice
        See `SessionEstimator`.
    unit : float
        Counts that are 1 here, for the whole session, however the network's input is scaled.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        bandwidth: float,
        reach: float,
        unit: float = 1.0,
        device: torch.device,
        by_slice: bool = False,
    ) -> None:
        self.unit, self.level = unit, 0.0
        self.estimator = SessionEstimator(
            shape, bandwidth=bandwidth, reach=reach, device=device, by_slice=by_slice
        )
        self.motion = Motion()
        self._doubt = 0.0  # squared misfit of a backward run, relative to what it says of itself
        self._whole = (0, 0, 0)  # voxels that the state was moved by, along with the specimen

    @property
    def nbytes(self) -> int:
        """Of what is kept from sweep to sweep."""
        return self.estimator.nbytes

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is kept from sweep to sweep: numbers (plain data) and tensors by name."""
        numbers, tensors = self.estimator.state()
        motion = {"shift": list(self.motion.shift), "brightness": self.motion.brightness}
        about = {"unit": self.unit, "level": self.level, "whole": list(self._whole)}
        return numbers | motion | about, {f"field_{name}": tensor for name, tensor in tensors.items()}

    def load(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume from a state.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is not one of a field of this shape.
        """
        mine = {
            name.removeprefix("field_"): each for name, each in tensors.items() if name.startswith("field_")
        }
        self.estimator.load(numbers, mine)
        self.unit, self.level = float(numbers["unit"]), float(numbers["level"])
        z, y, x = (float(each) for each in numbers["shift"])
        self.motion = Motion((z, y, x), float(numbers["brightness"]))
        z, y, x = (int(each) for each in numbers["whole"])
        self._whole = (z, y, x)

    def predict(self, operator: Callable[[float], NDArray[np.float64]]) -> Tensor:
        """Return the projections (M, Y, X) that slabs are expected to give, above the level of no light."""
        z, y, x = self.motion.shift if self.motion.moved else (0.0, 0.0, 0.0)
        seen = self.estimator.foretell(operator(z)).unflatten(1, self.estimator.shape[1:])
        return moved(seen, (0.0, -y, -x)) * self.motion.brightness

    def foretold(
        self, operator: Callable[[float], NDArray[np.float64]], images: Tensor, noise: float
    ) -> tuple[Tensor, Tensor, Tensor, NDArray[np.float64]]:
        """Return images (M, Y, X) where the specimen is, the field expected, variance about it, operator.

        The variance (M, P) is that of the images; `noise` that of their noise. Operator and images as for
        `update`; the specimen is where it was in the last sweep.
        """
        matrix = operator(self._deeper)
        variance = expected_misfit(self.estimator, matrix, noise / self.motion.brightness**2)
        return self._light(images), self.estimator.expected, variance, matrix

    def copy(self) -> SessionField:
        """Return an independent field (no tensor of a state is ever changed in place)."""
        other = copy.copy(self)
        other.estimator = self.estimator.copy()
        return other

    def rest_on(self, level: float) -> None:
        """Begin at another level of no light, counts; what is known keeps its place in counts."""
        if self.estimator.sweeps and level != self.level:
            self.estimator.lift((self.level - level) / self.unit / self.motion.brightness)
        self.level = level

    @torch.no_grad()
    def update(
        self,
        operator: Callable[[float], NDArray[np.float64]],
        images: Tensor,
        variance: Tensor,
        light: Tensor,
        own: Own,
    ) -> FieldEstimate:
        """Take in a sweep.

        Parameters
        ----------
        operator : callable
            Returns the operator (M, Z) of its slabs for a specimen that lies so many slices deeper.
        images, variance : (M, Y, X)
            Projections above the level of no light, and their noise variance.
        light : (M, Y, X)
            The share of it that each pixel leaves its slab: `slab_light`.
        own : callable
            Returns what the sweep says by itself (Z, N) of some pixels (N,) or all (None), from its operator
            (M, Z), images and variance in the frame of the specimen.
        """
        if self.estimator.sweeps:
            self.motion = register(
                self.estimator.expected,
                operator,
                images,
                float(variance.mean().sqrt()),
                self.motion,
                along_z=self.estimator.sweeps >= _KNOWS_Z,
            )
            self._follow()
        found = self._take_in(operator, images, variance, light, own)
        if self.estimator.anew:  # another specimen: it lies where it lies
            self.motion, self._whole = Motion(), (0, 0, 0)
            self.estimator.forget()
            found = self._take_in(operator, images, variance, light, own)
        return self._seen(found)

    def known(
        self,
        before: SessionField,
        operator: Callable[[float], NDArray[np.float64]],
        images: Tensor,
        level: float,
    ) -> Known:
        """Return what is known after a sweep, for `look_back`.

        `before` is the field before it; operator and images as for `update`; `level`: counts of no light.
        """
        _, tensors = self.estimator.state()
        misfit = torch.full_like(images.flatten(1), torch.nan)
        if before.estimator.sweeps and before._whole == self._whole:
            misfit = self._misfit(before.estimator, operator, images)
        return Known(
            self.estimator.present,
            tensors["age"],
            misfit,
            tensors["covariances"].numpy(),
            self.motion,
            self._whole,
            self.unit,
            level,
            self.estimator.covariances.amplitudes,
        )

    @torch.no_grad()
    def look_back(
        self,
        operator: Callable[[float], NDArray[np.float64]],
        images: Tensor,
        variance: Tensor,
        light: Tensor,
        own: Own,
        known: Known,
        level: float,
    ) -> FieldEstimate:
        """Take in a sweep after all later ones; return what it, those before and those after it say.

        `known` is what a run forward in time knew after it; the field has its unit. The rest as for `update`.
        """
        if self.estimator.sweeps == 0:
            self.estimator.covariances.amplitudes = known.amplitudes
            self._whole = known.whole
        by = [new - old for new, old in zip(known.whole, self._whole, strict=True)]
        if any(by):
            self.estimator.shift(-by[0], -by[1], -by[2])
        self.motion, self._whole = known.motion, known.whole
        before = self.estimator.copy()
        self._take_in(operator, images, variance, light, own)
        trust = rescale = torch.ones_like(known.mean)
        if before.sweeps:
            matrix = operator(self._deeper)
            misfit = self._misfit(before, operator, images)
            noise = float(variance.mean()) / self.motion.brightness**2
            doubt = misfit / expected_misfit(before, matrix, noise)
            lit = images.flatten(1) > images.mean()
            self._doubt = max(_REMEMBERED * self._doubt, float(doubt[lit].median()))
            trust = trusted(misfit, known.misfit, self._doubt, matrix)
            rescale = rescaled(self._light(images), before, self.estimator, matrix, noise)
        lift = (known.level - level) / self.unit
        found = joined(known, before, self.estimator, trust, rescale, lift)
        return self._seen(found)

    @property
    def _deeper(self) -> float:
        return self.motion.shift[0] if self.motion.moved else 0.0

    def _misfit(
        self, estimator: SessionEstimator, operator: Callable[[float], NDArray[np.float64]], images: Tensor
    ) -> Tensor:
        """Return the squared difference (M, P) of a sweep and what an estimator expected, locally."""
        expected = estimator.foretell(operator(self._deeper)).unflatten(1, images.shape[1:])
        return local_mean((self._light(images) - expected).square(), _WINDOW).flatten(1)

    def _light(self, images: Tensor) -> Tensor:
        """Return images (M, Y, X) in the frame of the specimen, as bright as in the first sweep."""
        _, y, x = self.motion.shift if self.motion.moved else (0.0, 0.0, 0.0)
        return moved(images, (0.0, y, x)) / self.motion.brightness

    def _take_in(
        self,
        operator: Callable[[float], NDArray[np.float64]],
        images: Tensor,
        variance: Tensor,
        light: Tensor,
        own: Own,
    ) -> Estimate:
        brightness = self.motion.brightness
        z, y, x = self.motion.shift if self.motion.moved else (0.0, 0.0, 0.0)
        matrix, images = operator(z), moved(images, (0.0, y, x)) / brightness
        variance, light = variance / brightness**2, moved(light, (0.0, y, x)).clamp(0.0, 1.0)
        return self.estimator.update(
            matrix, images, variance, light, lambda pixels: own(matrix, images, variance, pixels)
        )

    def _seen(self, found: Estimate) -> FieldEstimate:
        """Return an estimate where the stage sees it."""
        shift, brightness = self.motion.shift, self.motion.brightness
        z, y, x = (-each if self.motion.moved else 0.0 for each in shift)
        volume, age = moved(found.volume, (z, y, x)), moved_labels(found.age, (z, y, x))
        if brightness != 1.0:
            volume = volume * brightness
        deeper, down, right = (part + whole for part, whole in zip(shift, self._whole, strict=True))
        return FieldEstimate(
            volume,
            age,
            found.still,
            lambda: moved_labels(found.deviation(), (z, y, x)).mul_(brightness),
            found.leeway,
            Motion((deeper, down, right), brightness),
        )

    def _follow(self) -> None:
        """Move the state along with a specimen that went far, so that what comes into view has a place."""
        if max(map(abs, self.motion.shift)) <= _FAR:
            return
        z, y, x = (round(each) if abs(each) > _FAR else 0 for each in self.motion.shift)
        self.estimator.shift(-z, -y, -x)
        rest = [each - whole for each, whole in zip(self.motion.shift, (z, y, x), strict=True)]
        self.motion = Motion((rest[0], rest[1], rest[2]), self.motion.brightness)
        self._whole = (self._whole[0] + z, self._whole[1] + y, self._whole[2] + x)
