"""A beam's profile as a chain of straight lines through even knots, and how long it is.

Owns `Curve` and its lengths. Pure functions in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """A profile (K,) on an even grid of knots `u_um`, µm from its centre; its peak is about 1."""

    u_um: NDArray[np.float64]
    value: NDArray[np.float64]

    def at(self, u_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values at any places; zero outside of the knots."""
        return np.asarray(np.interp(u_um, self.u_um, self.value, left=0.0, right=0.0))

    @property
    def spacing_um(self) -> float:
        """Distance of the knots, µm."""
        return float(self.u_um[1] - self.u_um[0])


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a profile is, µm.

    Attributes
    ----------
    fwhm_um : float
        Full width at half of the maximum.
    equivalent_um : float
        Length of the box with the same sum and the same sum of squares, (∫w)² / ∫w².
    left_um, right_um : float
        Where it crosses half of its maximum.
    """

    fwhm_um: float
    equivalent_um: float
    left_um: float
    right_um: float


def lengths(curve: Curve) -> Lengths:
    """Return how long a profile is."""
    value, u = curve.value, curve.u_um
    top, at = maximum(curve)
    half = 0.5 * top
    left = right = at
    while left > 0 and value[left - 1] >= half:
        left -= 1
    while right < len(value) - 1 and value[right + 1] >= half:
        right += 1
    low = u[left] if left == 0 else crossing(u[left - 1 : left + 1], value[left - 1 : left + 1], half)
    high = (
        u[right]
        if right == len(value) - 1
        else crossing(u[right : right + 2], value[right : right + 2], half)
    )
    square = float(np.sum(value**2)) * curve.spacing_um
    whole = float(np.sum(value)) * curve.spacing_um
    return Lengths(high - low, whole**2 / max(square, 1e-300), low, high)


def crossing(u: NDArray[np.float64], value: NDArray[np.float64], level: float) -> float:
    """Return where the line through two points crosses a level."""
    if value[1] == value[0]:
        return float(u.mean())
    share = (level - value[0]) / (value[1] - value[0])
    return float(u[0] + share * (u[1] - u[0]))


def maximum(curve: Curve) -> tuple[float, int]:
    """Return the peak's height, which noise must not raise, and where it is.

    A parabola through a seventh of the length on either side follows a rounded top and averages a flat one.
    """
    value = curve.value
    at = int(np.argmax(smooth(value, 3)))
    above = int(np.count_nonzero(value > 0.5 * value[at]))
    near = max(above // 7, 1)
    if near < 2:
        return float(smooth(value, 3)[at] if above > 6 else value[at]), at
    low, high = max(at - near, 0), min(at + near + 1, len(value))
    x = np.arange(low, high) - at
    c = np.polynomial.polynomial.polyfit(x, value[low:high], 2)
    fitted = np.polynomial.polynomial.polyval(x, c)
    return float(fitted.max()), at


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the running mean over an odd number of values; the ends go on as they are."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
