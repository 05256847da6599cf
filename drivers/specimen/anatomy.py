"""Procedural anatomy: neurons, vessels and nuclei, as curves and balls in space.

This module owns shape and knows neither voxels nor time: `raster` turns shapes into voxels, `tissue` gives
them brightness. All lengths are µm, all points (z, y, x). Invariants: the same seed gives the same anatomy
whatever the voxel size, and each kind of object draws from a stream of its own. Pure functions, any thread.

All curves are random walks with inertia: dendrites taper and fork, axons are thin, tortuous and beaded,
vessels are wide, smooth and fork a few times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.specimen.raster import Tube, ball

Vector = NDArray[np.float64]

STEP_UM = 1.0
"""Distance of neighbouring points on a curve, µm."""

_INERTIA = 0.95
_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
_WALL_UM = 1.2


@dataclass(frozen=True, slots=True)
class Structure:
    """Tubes that glow as one.

    Attributes
    ----------
    tubes, hollow : tuple of Tube
        Its shape, and the part of this that is dark: a soma's nucleus, the inside of a vessel without dye.
    brightness : float
        Relative to a dendrite.
    neuron : int or None
        The neuron whose activity it follows; None if its brightness is constant.
    """

    kind: Literal["neuron", "vessel", "nucleus"]
    tubes: tuple[Tube, ...]
    brightness: float
    neuron: int | None = None
    hollow: tuple[Tube, ...] = ()


def grow(seed: int, low: Vector, high: Vector, *, neurons: int, vessels: int, nuclei: int) -> list[Structure]:
    """Return the anatomy of the box from `low` to `high` (3,) µm; of the nuclei, as many as have room.

    Each neuron comes with two axons of cells elsewhere.
    """
    of_vessels, of_neurons, of_nuclei = (np.random.default_rng([seed, kind]) for kind in range(3))
    pieces = [_vessel(rng, low, high, dyed=i % 2 == 0) for i, rng in enumerate(of_vessels.spawn(vessels))]
    taken = [tube for piece in pieces for tube in piece.tubes]
    for number, rng in enumerate(of_neurons.spawn(neurons)):
        centre, _ = _roomiest(rng, low, high, 0.16, taken)
        taken.append(Tube(centre[None], np.array([6.0])))
        pieces += _neuron(rng, centre, number)
    for number, rng in enumerate(of_neurons.spawn(2 * neurons), neurons):
        heading = _unit(rng.normal(size=3) * [0.5, 1.0, 1.0])
        start = low + (high - low) * rng.uniform(0.1, 0.9, 3) - 120.0 * heading
        pieces.append(Structure("neuron", (_axon(rng, start, heading),), rng.lognormal(0.1, 0.35), number))
    for rng in of_nuclei.spawn(nuclei):
        radius = rng.uniform(2.6, 4.2)
        centre, free_um = _roomiest(rng, low, high, 0.0, taken)
        if free_um > radius + 1.0:
            taken.append(Tube(centre[None], np.array([radius])))
            body = ball(centre, *(radius * rng.uniform(0.8, 1.0, 2)))
            pieces.append(Structure("nucleus", (body,), rng.lognormal(-1.0, 0.45)))
    return pieces


def _roomiest(
    rng: np.random.Generator, low: Vector, high: Vector, inset: float, taken: list[Tube]
) -> tuple[Vector, float]:
    """Return the best of some random places, and how large a ball fits there between what is `taken`, µm.

    `inset` is the share of the box that is left free at each face.
    """
    places = low + (high - low) * rng.uniform(inset, 1.0 - inset, (12, 3))
    centres = np.concatenate([np.zeros((0, 3)), *(tube.points for tube in taken)])
    radii = np.concatenate([np.zeros(0), *(tube.radius for tube in taken)])
    free_um = (np.linalg.norm(places[:, None] - centres, axis=-1) - radii).min(axis=1, initial=np.inf)
    best = int(np.argmax(free_um))
    return places[best], float(free_um[best])


def _unit(vectors: Vector) -> Vector:
    """Return `vectors` (..., 3) at length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float64)


def _walk(rng: np.random.Generator, start: Vector, heading: Vector, length_um: float, bend: float) -> Vector:
    """Return the points (N, 3) of a random walk with inertia that keeps to its heading on the whole."""
    kicks = bend * rng.normal(size=(max(int(length_um / STEP_UM), 3), 3))
    fade = _INERTIA ** np.arange(len(kicks))[:, None]
    steps = STEP_UM * _unit(_unit(heading) + fade * np.cumsum(kicks / fade, axis=0))
    return np.asarray(start + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]), np.float64)


def _vessel(rng: np.random.Generator, low: Vector, high: Vector, *, dyed: bool) -> Structure:
    """Return a smooth tube across the box, with one to three thinner side branches.

    A dye fills it; of a vessel without one the wall shows.
    """
    start, end = low + (high - low) * rng.uniform(0.15, 0.85, (2, 3))
    axis = int(rng.integers(1, 3))
    start[axis], end[axis] = low[axis] - 2.0, high[axis]
    length, radius = 1.5 * float(np.linalg.norm(end - start)), rng.uniform(3.5, 6.0)
    trunk = _walk(rng, start, end - start, length, 0.05)
    tubes = [Tube(trunk, radius * _undulating(rng, len(trunk)))]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.uniform(0.1, 0.6) * len(trunk))
        heading = _unit(trunk[at + 1] - trunk[at]) + _unit(rng.normal(size=3))
        branch = _walk(rng, trunk[at], heading, length, 0.06)
        tubes.append(Tube(branch, 0.5 * radius * _undulating(rng, len(branch))))
    if dyed:
        return Structure("vessel", tuple(tubes), 0.32)
    wall = tuple(Tube(tube.points, tube.radius + _WALL_UM) for tube in tubes)
    return Structure("vessel", wall, 0.25, hollow=tuple(tubes))


def _undulating(rng: np.random.Generator, count: int) -> Vector:
    """Return `count` values that vary slowly about 1."""
    along = np.arange(count) * STEP_UM
    return np.asarray(1.0 + 0.08 * np.sin(along / 7.0 + rng.uniform(0, 6)) + 0.06 * np.sin(along / 17.0))


def _neuron(rng: np.random.Generator, centre: Vector, number: int) -> list[Structure]:
    """Return a cell: soma, dendrites that leave evenly round it, the first the longest, and an axon."""
    radius, brightness = rng.uniform(4.6, 6.4), rng.lognormal(-0.1, 0.25)
    curves: list[Tube] = []
    count, turn = int(rng.integers(5, 8)), rng.uniform(0.0, 2.0 * np.pi)
    for i in range(count):
        lift = 0.8 * (1.0 - (2.0 * i + 1.0) / count)  # most of them run sideways
        angle, flat = turn + i * _GOLDEN_ANGLE, np.sqrt(1.0 - lift**2)
        heading = np.array([lift, flat * np.cos(angle), flat * np.sin(angle)])
        length, thickness = (rng.uniform(70, 120), 1.7) if i == 0 else (rng.uniform(40, 80), 1.2)
        _grow_dendrite(rng, curves, centre + 0.7 * radius * heading, heading, thickness, length)
    heading = _unit(rng.normal(size=3))
    curves.append(_axon(rng, centre + 0.8 * radius * heading, heading))
    soma, nucleus = ball(centre, 1.1 * radius, 0.95 * radius), ball(centre, 0.65 * radius, 0.6 * radius)
    return [
        Structure("neuron", (soma,), 0.6 * brightness, number, (nucleus,)),
        *(Structure("neuron", (curve,), brightness, number) for curve in curves),
    ]


def _grow_dendrite(
    rng: np.random.Generator,
    grown: list[Tube],
    start: Vector,
    heading: Vector,
    thickness: float,
    length_um: float,
) -> None:
    """Append a dendrite and its daughters, piece by piece from fork to fork."""
    piece_um = length_um * rng.uniform(0.3, 0.5) if length_um > 20.0 else length_um
    points = _walk(rng, start, heading, piece_um, 0.08)
    taper = np.linspace(1.0, 0.75, len(points))
    radius = np.maximum(thickness * taper * rng.normal(1.0, 0.15, len(points)), 0.35)
    grown.append(Tube(points, radius))
    if piece_um < length_um:
        tangent, sideways = points[-1] - points[-2], rng.normal(size=3)
        for opening in (0.4, -0.4):
            rest_um = (length_um - piece_um) * rng.uniform(0.75, 1.15)
            _grow_dendrite(rng, grown, points[-1], tangent + opening * sideways, 0.6 * thickness, rest_um)


def _axon(rng: np.random.Generator, start: Vector, heading: Vector) -> Tube:
    """Return a thin, tortuous curve with a bouton every few µm."""
    points = _walk(rng, start, heading, 300.0, 0.14)
    boutons = rng.uniform(size=len(points)) < 0.2 * STEP_UM
    return Tube(points, 0.3 + 0.5 * boutons * rng.uniform(0.4, 1.2, len(points)))
