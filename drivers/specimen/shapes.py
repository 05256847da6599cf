"""The vocabulary of the virtual specimen's anatomy: curves, balls and what they make up.

Plain frozen records; all lengths are µm, all points (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Box:
    """A cuboid, corners `low` and `high` (3,) µm."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def holds(self, point: NDArray[np.float64], margin: float = 0.0) -> bool:
        """Return whether `point` (3,) lies inside, or not more than `margin` µm outside."""
        return bool(np.all(point >= self.low - margin) and np.all(point <= self.high + margin))


@dataclass(frozen=True, slots=True)
class Tube:
    """A curve with a thickness: `points` (N, 3) and `radius` (N,), µm."""

    points: NDArray[np.float64]
    radius: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ball:
    """An ellipsoid.

    Attributes
    ----------
    centre, radii : (3,) µm
        Centre, and half axes along the columns of `axes`.
    axes : (3, 3)
        Orthonormal.
    """

    centre: NDArray[np.float64]
    radii: NDArray[np.float64]
    axes: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Branch:
    """A part of a neuron that is active as one: a piece of dendrite with its spines, or of axon."""

    tubes: tuple[Tube, ...]
    path_um: float = 0.0


@dataclass(frozen=True, slots=True)
class Neuron:
    """A cell: soma with its nucleus, and branches. Passing axons have neither soma nor nucleus."""

    soma: Ball | None
    nucleus: Ball | None
    branches: tuple[Branch, ...]
    brightness: float


@dataclass(frozen=True, slots=True)
class Vessel:
    """A blood vessel. `labelled` ones carry a dye, the others only shadow what lies around them."""

    tubes: tuple[Tube, ...]
    labelled: bool


@dataclass(frozen=True, slots=True)
class Nucleus:
    """A cell nucleus with dark nucleoli."""

    body: Ball
    nucleoli: tuple[Ball, ...]
    brightness: float


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Everything that grows in a box."""

    neurons: tuple[Neuron, ...] = ()
    vessels: tuple[Vessel, ...] = ()
    nuclei: tuple[Nucleus, ...] = ()
