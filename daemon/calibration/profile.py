"""A beam's profile as a chain of straight lines through even knots, and its lengths. Pure, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """A profile (K,) on an even grid of knots `u_um`, µm from its centre; its peak is about 1."""

    u_um: NDArray[np.float64]
    value: NDArray[np.float64]

    def at(self, u_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values at any places; zero outside the knots."""
        return np.asarray(np.interp(u_um, self.u_um, self.value, left=0.0, right=0.0))

    @property
    def spacing_um(self) -> float:
        """Distance of the knots, µm."""
        return float(self.u_um[1] - self.u_um[0])

    @property
    def ends_um(self) -> tuple[float, float]:
        """The two places at which the curve crosses half of its maximum."""
        top, at = maximum(self.value)
        low, high, _ = half_maximum(self.u_um, self.value, at, top)
        return low, high

    @property
    def length_um(self) -> float:
        """Full width at half maximum."""
        low, high = self.ends_um
        return high - low

    @property
    def equivalent_um(self) -> float:
        """Length of the box with the same sum and the same sum of squares, (∫w)² / ∫w²."""
        square = max(float(np.sum(self.value**2)), 1e-300)
        return float(np.sum(self.value)) ** 2 / square * self.spacing_um


def half_maximum(
    u: NDArray[np.float64], value: NDArray[np.float64], at: int, top: float
) -> tuple[float, float, bool]:
    """Return where values fall to half of `top` on either side of an index, and whether both are seen."""
    half = 0.5 * top
    below = np.flatnonzero(value < half)
    left, right = below[below < at], below[below > at]
    low = _crossing(u, value, int(left[-1]), half) if left.size else float(u[0])
    high = _crossing(u, value, int(right[0]) - 1, half) if right.size else float(u[-1])
    return low, high, bool(left.size and right.size)


def _crossing(u: NDArray[np.float64], value: NDArray[np.float64], index: int, level: float) -> float:
    """Return where the line from one point to the next crosses a level."""
    share = (level - value[index]) / (value[index + 1] - value[index])
    return float(u[index] + share * (u[index + 1] - u[index]))


def maximum(value: NDArray[np.float64]) -> tuple[float, int]:
    """Return the peak's height, which noise must not raise, and where it is.

    A parabola through a seventh of the length on either side follows a rounded top and averages a flat one;
    beside a steep edge it would bulge.
    """
    calm = smooth(value, 3)
    at = int(np.argmax(calm))
    above = int(np.count_nonzero(value > 0.5 * value[at]))
    near = max(above // 7, 1)
    if near < 2:
        return float(calm[at] if above > 6 else value[at]), at
    x = np.arange(max(at - near, 0), min(at + near + 1, len(value)))
    parabola = np.polynomial.Polynomial.fit(x, value[x], 2)
    return min(float(parabola(x).max()), float(calm[at])), at


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the running mean over an odd number of values; the ends are repeated."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
