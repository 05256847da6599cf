"""Slice by slice, what a sweep changed in a session's field and told of it, for an adaptive acquisition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from microdiffusion.engines.inr.covariance import KalmanGain

_LEAST_NOISE = 1e-12  # variance
_SURE = 3.0  # standard deviations of noise and field: what differs by less is corrected and has not changed
_PIXELS = 2048  # enough for a median


@dataclass(slots=True)
class SliceChanges:
    """The changes of a sweep.

    Attributes
    ----------
    innovation, changed, told : (Z,) float64
        The mean square by which the voxels of a slice had changed from what they are while nothing changes,
        in units of the noise's variance, and the share of voxels that had by more than noise and field are
        sure of; and the median variance that the sweep took from them, in those units.
    noise : float
        Variance.
    """

    innovation: NDArray[np.float64]
    changed: NDArray[np.float64]
    told: NDArray[np.float64]
    noise: float

    @classmethod
    def none(cls, slices: int, noise: float = 1.0) -> SliceChanges:
        """Return those of a sweep that changed and told nothing yet."""
        return cls(np.zeros(slices), np.zeros(slices), np.zeros(slices), max(noise, _LEAST_NOISE))

    def add(self, difference: Tensor, rows: slice, pixels: int, variance: Tensor) -> None:
        """Add what changed in some voxels (N, pixels) of some slices, of an image of so many pixels.

        `variance` (Z,) is with what voxels are known that kept still.
        """
        square, doubt = difference.square() / self.noise, 1.0 + variance[rows, None] / self.noise
        self.innovation[rows] += square.sum(1).double().cpu().numpy() / pixels
        self.changed[rows] += (square > _SURE**2 * doubt).sum(1).double().cpu().numpy() / pixels
        self.changed.clip(max=1.0, out=self.changed)

    def tell(self, gains: list[KalmanGain], age: Tensor) -> None:
        """Note what the gains of a sweep took from the variance of voxels of an age (Z, P).

        The few that began anew were told thousands of times as much as those that keep still, and would be
        all of a mean.
        """
        taken = np.stack([g.left.double().cpu().numpy() * g.told / (1 - g.told).clip(1e-6) for g in gains])
        row = age[:, :: max(1, age.shape[1] // _PIXELS)].long().cpu().numpy() - 1
        told = np.take_along_axis(taken.T, row.clip(0, len(taken) - 1), 1)
        self.told = np.median(told, axis=1) / self.noise
