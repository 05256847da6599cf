"""Covariances of a session's field along z: one for each age, the same for all voxels of that age.

The beam integrates along z only, so how well a voxel is known depends on how many sweeps it has kept still
and on where their slabs lay, not on what was seen. The prior is a Gaussian process along z with a Matérn 3/2
kernel (Rasmussen & Williams 2006, section 4.2.1) and a mean that is not known. Numbers of the host, float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
OLDEST = 8
"""Ages that are told apart; everything older shares one covariance, that of the whole session."""
_LEVEL = 1.0  # variance of the unknown mean of a column, in units of the range
# Of the field's variation along z, in units of the range: chosen by evidence.
_AMPLITUDES = (0.025, 0.05, 0.1)
_FORGETTING = 1e-3  # of the prior's variance, per sweep: bounds what an old sweep is believed
_BELIEVED = 0.98  # of the pixels, where an amplitude is chosen


@dataclass(frozen=True, slots=True, eq=False)
class KalmanGain:
    """Gain (Z, M), variance (M,) of the prediction without noise, covariance (Z, Z) afterwards."""

    gain: Matrix
    predicted: Matrix
    left: Matrix


class AgeCovariances:
    """The covariances (Z, Z).

    Parameters
    ----------
    slices : int
    bandwidth : float
        Along z, cycles per slice: `field.default_bandwidth`.

    Attributes
    ----------
    amplitude : float
        Of the field's variation along z.
    by_age : tuple of (Z, Z)
        After the last sweep, from age 1.
    """

    def __init__(self, slices: int, bandwidth: float) -> None:
        self.amplitude = _AMPLITUDES[1]
        self.by_age: tuple[Matrix, ...] = ()
        self._kernel = matern(slices, bandwidth)

    @property
    def predicted(self) -> list[Matrix]:
        """Covariances ahead of the next sweep: of what nothing is known of, then by age."""
        drift = _FORGETTING * self.amplitude**2 * self._kernel
        return [self._prior(self.amplitude), *(each + drift for each in self.by_age)]

    def advance(self, matrix: Matrix, noise: Matrix) -> list[KalmanGain]:
        """Take a sweep in, and return the gains: of what is new, then by age.

        `matrix` (M, Z) is the operator of its slabs, `noise` (M,) the variance of their noise.
        """
        gains = [_kalman(each, matrix, noise) for each in self.predicted]
        after = tuple(each.left for each in gains)
        # What was next to the oldest joins it.
        self.by_age = after if len(after) <= OLDEST else (*after[: OLDEST - 1], after[OLDEST])
        return gains

    def choose_amplitude(
        self, first: tuple[Matrix, Matrix, Matrix], second: tuple[Matrix, Matrix, Matrix]
    ) -> None:
        """Choose the amplitude under which the first sweep predicts the second best (log evidence).

        Each is an operator (M, Z), pixels (M, P) and noise variance (M,).
        """
        before_matrix, before, before_noise = first
        matrix, now, noise = second
        best = -math.inf
        for amplitude in _AMPLITUDES:
            known = _kalman(self._prior(amplitude), before_matrix, before_noise)
            innovation = now - matrix @ (known.gain @ before)
            spread = matrix @ known.left @ matrix.T + np.diag(noise)
            _, volume = np.linalg.slogdet(spread)
            fit = np.sum(innovation * np.linalg.solve(spread, innovation), axis=0)
            # Most pixels are dark and know nothing of it; a few do not keep still.
            evidence = -0.5 * (float(fit[fit <= np.quantile(fit, _BELIEVED)].mean()) + volume)
            if evidence > best:
                best, self.amplitude = evidence, amplitude
        self.by_age = (_kalman(self._prior(self.amplitude), before_matrix, before_noise).left,)

    def shift(self, deeper: int) -> None:
        """Look at slices that lie so many deeper; of those that come into view nothing is known."""
        here, there = overlap(deeper, len(self._kernel))
        shifted = []
        for covariance in self.by_age:
            moved = self._prior(self.amplitude)
            moved[here, :] = 0.0
            moved[:, here] = 0.0
            moved[here, here] = covariance[there, there]
            shifted.append(moved)
        self.by_age = tuple(shifted)

    def _prior(self, amplitude: float) -> Matrix:
        return amplitude**2 * self._kernel + _LEVEL


def matern(slices: int, bandwidth: float) -> Matrix:
    """Return the Matérn 3/2 kernel (Z, Z) of unit variance; `bandwidth` as of `axial_basis`."""
    distance = 2 * np.pi * bandwidth * np.abs(np.arange(slices)[:, None] - np.arange(slices))
    return np.asarray((1 + distance) * np.exp(-distance), dtype=np.float64)


def overlap(by: int, edge: int) -> tuple[slice, slice]:
    """Return what of an axis stays in view when looked at from so many voxels further, and where it was."""
    by = max(-edge, min(by, edge))  # nothing stays where it went further than it is wide
    return slice(max(-by, 0), edge - max(by, 0)), slice(max(by, 0), edge - max(-by, 0))


def _kalman(covariance: Matrix, matrix: Matrix, noise: Matrix) -> KalmanGain:
    cross = covariance @ matrix.T
    spread = matrix @ cross
    gain = np.linalg.solve(spread + np.diag(noise), cross.T).T
    left = covariance - gain @ cross.T
    return KalmanGain(np.asarray(gain, np.float64), np.diag(spread).copy(), (left + left.T) / 2)
