"""The INR of a session: the recursive estimator in the specimen's frame, and where that lies.

Owns the `SessionEstimator` of a session and its `Motion`. A sweep is first registered with what the state
predicts, its images are moved to the specimen and its slabs placed there, then the estimator takes it in,
and what comes out is moved back to where the stage sees it. Not thread-safe: one session, one thread.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microdiffusion.engines.inr.estimator import Estimate, SessionEstimator
from microdiffusion.engines.inr.registration import Motion, moved, moved_along_z, register

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

_FAR = 2.0  # voxels of motion from which on the state is moved along, by whole voxels
_KNOWS_Z = 3  # sweeps after which motion along z can be told from what was not known yet


@dataclass(frozen=True, slots=True, eq=False)
class FieldEstimate(Estimate):
    """An estimate where the stage sees it, and where the specimen is."""

    motion: Motion = Motion()  # noqa: RUF009 frozen


class SessionField:
    """The field of a session, sweep by sweep.

    Parameters
    ----------
    shape, bandwidth, reach, device
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
    ) -> None:
        self.unit = unit
        self.estimator = SessionEstimator(shape, bandwidth=bandwidth, reach=reach, device=device)
        self.motion = Motion()
        self._whole = (0, 0, 0)  # voxels that the state was moved by, along with the specimen

    @property
    def nbytes(self) -> int:
        """Of what is kept from sweep to sweep."""
        return self.estimator.nbytes

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is kept from sweep to sweep: numbers (plain data) and tensors by name."""
        numbers, tensors = self.estimator.state()
        motion = {"shift": list(self.motion.shift), "brightness": self.motion.brightness}
        return numbers | motion | {"unit": self.unit, "whole": list(self._whole)}, {
            f"field_{name}": tensor for name, tensor in tensors.items()
        }

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
        self.unit = float(numbers["unit"])
        z, y, x = (float(each) for each in numbers["shift"])
        self.motion = Motion((z, y, x), float(numbers["brightness"]))
        z, y, x = (int(each) for each in numbers["whole"])
        self._whole = (z, y, x)

    def predict(self, operator: Callable[[float], NDArray[np.float64]]) -> Tensor:
        """Return the projections (M, Y, X) that slabs are expected to give, above the level of no light."""
        z, y, x = self.motion.shift if self.motion.moved else (0.0, 0.0, 0.0)
        matrix = torch.from_numpy(operator(z)).float().to(self.estimator.expected.device)
        seen = (matrix @ self.estimator.expected).unflatten(1, self.estimator.shape[1:])
        return moved(seen, -y, -x) * self.motion.brightness

    def copy(self) -> SessionField:
        """Return an independent field (no tensor of a state is ever changed in place)."""
        other = copy.copy(self)
        other.estimator = self.estimator.copy()
        return other

    @torch.no_grad()
    def update(
        self,
        operator: Callable[[float], NDArray[np.float64]],
        images: Tensor,
        variance: Tensor,
        own: Tensor,
    ) -> FieldEstimate:
        """Take in a sweep.

        Parameters
        ----------
        operator : callable
            Returns the operator (M, Z) of its slabs for a specimen that lies so many slices deeper.
        images, variance : (M, Y, X)
            Projections above the level of no light, and their noise variance.
        own : (Z, Y, X)
            What the sweep says by itself, above the level of no light.
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
        (z, y, x), brightness = self.motion.shift, self.motion.brightness
        if not self.motion.moved:
            z = y = x = 0.0
        found = self.estimator.update(
            operator(z),
            moved(images, y, x) / brightness,
            variance / brightness**2,
            moved(moved_along_z(own, z), y, x) / brightness,
        )
        if self.estimator.anew:  # another specimen: it lies where it lies
            self.motion, self._whole = Motion(), (0, 0, 0)
        age = found.age
        if self.motion.moved:
            age = moved(moved_along_z(age.float(), -z), -y, -x).round().clamp(1, 255).to(torch.uint8)
        back = {
            name: moved(moved_along_z(getattr(found, name), -z), -y, -x) * brightness
            for name in ("volume", "deviation")
        }
        z, y, x = (part + whole for part, whole in zip(self.motion.shift, self._whole, strict=True))
        return FieldEstimate(
            back["volume"], age, back["deviation"], found.still, Motion((z, y, x), brightness)
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
