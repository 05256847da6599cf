"""Procedural anatomy: neurons with spines and axons, vessels, nuclei, as curves and balls in space.

This module owns shape and knows neither voxels nor time: `raster` turns its shapes into voxels,
`specimen` lets them glow. All lengths are µm, all points (z, y, x). Invariants: the same seed gives the
same anatomy whatever the voxel size, and each kind of object draws from a stream of its own, so that one
more vessel moves no nucleus. Pure functions, safe on any thread.

The growth rules are the textbook's: neurites are random walks with inertia that keep away from vessels,
dendrites taper and share their cross-section among branches (Rall's 3/2 law), axons are thin, tortuous
and beaded, vessels are smooth tubes that fork.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from microdiffusion.drivers.specimen.shapes import Anatomy, Ball, Box, Branch, Neuron, Nucleus, Tube, Vessel

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_UM = 1.0
"""Distance of neighbouring points on a curve, µm."""

_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))


@dataclass(slots=True)
class _Obstacles:
    """Vessel walls that neurites and nuclei keep away from."""

    tree: cKDTree | None = None
    radius: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, vessels: tuple[Vessel, ...]) -> _Obstacles:
        tubes = [tube for vessel in vessels for tube in vessel.tubes]
        if not tubes:
            return cls()
        return cls(
            cKDTree(np.concatenate([t.points for t in tubes])), np.concatenate([t.radius for t in tubes])
        )

    def clearance(self, point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the distance to the nearest wall (µm) and the unit vector away from it."""
        if self.tree is None:
            return np.inf, np.zeros(3)
        distance, index = self.tree.query(point)
        away = point - self.tree.data[index]
        return float(distance - self.radius[index]), away / max(float(distance), 1e-9)


def grow(seed: int, box: Box, *, neurons: int, vessels: int, nuclei: int) -> Anatomy:
    """Return the anatomy of a box; vessels first, the rest arranges itself around them."""
    streams = {
        kind: np.random.default_rng([seed, i]) for i, kind in enumerate(("vessel", "neuron", "nucleus"))
    }
    grown_vessels = tuple(
        _vessel(rng, box, labelled=i % 2 == 0) for i, rng in enumerate(streams["vessel"].spawn(vessels))
    )
    obstacles = _Obstacles.of(grown_vessels)
    grown_neurons = _neurons(streams["neuron"], box, neurons, obstacles)
    somata = [neuron.soma for neuron in grown_neurons if neuron.soma is not None]
    return Anatomy(grown_neurons, grown_vessels, _nuclei(streams["nucleus"], box, nuclei, obstacles, somata))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float64)


def _direction(rng: np.random.Generator, flat: float = 1.0) -> NDArray[np.float64]:
    """Return a random unit vector; `flat` < 1 keeps it near the plane."""
    vector = rng.normal(size=3)
    vector[0] *= flat
    return _unit(vector)


def _perpendicular(rng: np.random.Generator, tangents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a random unit vector perpendicular to each of `tangents` (N, 3)."""
    vectors = rng.normal(size=tangents.shape)
    vectors -= tangents * np.sum(vectors * tangents, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float64)


def _walk(
    rng: np.random.Generator,
    start: NDArray[np.float64],
    heading: NDArray[np.float64],
    length_um: float,
    *,
    wiggle: float,
    pull: float,
    box: Box,
    obstacles: _Obstacles,
    clearance_um: float = 2.0,
) -> NDArray[np.float64]:
    """Return a random walk with inertia (N, 3): `wiggle` per step, `pull` back to its first heading.

    It slides along vessel walls and ends where it has left the box.
    """
    point, direction = start.copy(), _unit(heading)
    points = [point.copy()]
    for bend in rng.normal(size=(max(int(length_um / STEP_UM), 2), 3)) * wiggle:
        direction = _unit(direction + bend + pull * heading)
        room, away = obstacles.clearance(point)
        if room < 2.0 * clearance_um:
            direction = _unit(direction + away * (1.0 if room > clearance_um else 3.0))
        point = point + direction * STEP_UM
        points.append(point.copy())
        if not box.holds(point, 3.0):
            break
    return np.array(points)


def _tangents(points: NDArray[np.float64]) -> NDArray[np.float64]:
    slopes = np.gradient(points, axis=0)
    return np.asarray(slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-9))


# Vessels ------------------------------------------------------------------------------------------


def _vessel(rng: np.random.Generator, box: Box, *, labelled: bool) -> Vessel:
    """Return a smooth tube across the box, with one or two thinner side branches."""
    size = box.high - box.low
    side = int(rng.integers(4))
    axis, far = 1 + side // 2, bool(side % 2)
    start = box.low + size * rng.uniform(0.15, 0.85, 3)
    start[axis] = box.high[axis] + 2.0 if far else box.low[axis] - 2.0
    target = box.low + size * rng.uniform(0.15, 0.85, 3)
    target[axis] = box.low[axis] if far else box.high[axis]
    heading = _unit(target - start)
    free = _Obstacles()
    length = 2.0 * float(np.linalg.norm(size))
    trunk = _walk(rng, start, heading, length, wiggle=0.09, pull=0.04, box=box, obstacles=free)
    caliber = rng.uniform(3.5, 6.0)
    tubes = [Tube(trunk, _undulate(rng, len(trunk), caliber, 0.12))]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.uniform(0.15, 0.85) * (len(trunk) - 1))
        sideways = _perpendicular(rng, _tangents(trunk)[at][None])[0]
        branch_heading = _unit(_tangents(trunk)[at] + 1.3 * sideways)
        branch = _walk(
            rng, trunk[at], branch_heading, length, wiggle=0.16, pull=0.03, box=box, obstacles=free
        )
        thin = caliber * rng.uniform(0.38, 0.6)
        radius = thin + (0.8 * caliber - thin) * np.exp(-np.arange(len(branch)) / 5.0)
        tubes.append(Tube(branch, radius * _undulate(rng, len(branch), 1.0, 0.1)))
    return Vessel(tuple(tubes), labelled)


def _undulate(rng: np.random.Generator, count: int, mean: float, depth: float) -> NDArray[np.float64]:
    """Return `count` values that vary slowly round `mean` by the share `depth`."""
    along = np.arange(count) * STEP_UM
    waves = [np.sin(along / scale + rng.uniform(0, 2 * np.pi)) for scale in (7.0, 17.0)]
    return np.asarray(mean * (1.0 + depth * 0.5 * (waves[0] + waves[1])))


# Neurons ------------------------------------------------------------------------------------------


def _neurons(rng: np.random.Generator, box: Box, count: int, obstacles: _Obstacles) -> tuple[Neuron, ...]:
    """Return `count` cells, and for each of them two axons that only pass by."""
    somata: list[NDArray[np.float64]] = []
    cells = []
    for stream in rng.spawn(count):
        place, radius = (
            _free_place(stream, box, somata, obstacles, distance_um=22.0),
            stream.uniform(4.6, 6.4),
        )
        somata.append(place)
        cells.append(_neuron(stream, place, radius, box, obstacles))
    passing = [_passing_axon(stream, box, obstacles) for stream in rng.spawn(2 * count)]
    return (*cells, *passing)


def _free_place(
    rng: np.random.Generator,
    box: Box,
    taken: list[NDArray[np.float64]],
    obstacles: _Obstacles,
    distance_um: float,
) -> NDArray[np.float64]:
    """Return the best of some random places: far from `taken` and from vessels."""
    size = box.high - box.low
    best, best_room = box.low + 0.5 * size, -np.inf
    for candidate in box.low + size * rng.uniform(0.16, 0.84, (24, 3)):
        gap = min((float(np.linalg.norm(candidate - other)) for other in taken), default=np.inf) - distance_um
        room = min(gap, obstacles.clearance(candidate)[0] - 8.0)
        if room > best_room:
            best, best_room = candidate, room
        if room > 0:
            break
    return best


def _neuron(
    rng: np.random.Generator, place: NDArray[np.float64], radius: float, box: Box, obstacles: _Obstacles
) -> Neuron:
    apical = _direction(rng, flat=0.6)
    axes = np.linalg.qr(np.column_stack([apical, rng.normal(size=(3, 2))]))[0]
    soma = Ball(place, radius * np.array([1.25, 0.95, 0.9]), axes)
    nucleus = Ball(place + rng.normal(size=3) * 0.4, soma.radii * 0.62, axes)
    branches: list[Branch] = []
    _dendrite(
        rng,
        branches,
        place + 0.9 * radius * apical,
        apical,
        1.7,
        0,
        box,
        obstacles,
        length_um=rng.uniform(60, 110),
    )
    # Basal trunks leave evenly round the soma, away from the apical one.
    basal = axes * np.array([np.sign(axes[:, 0] @ apical), 1.0, 1.0])
    for i in range(int(rng.integers(4, 7))):
        angle = i * _GOLDEN_ANGLE + rng.normal() * 0.25
        lift = rng.uniform(-0.85, 0.35)
        heading = basal @ [lift, np.sqrt(1 - lift**2) * np.cos(angle), np.sqrt(1 - lift**2) * np.sin(angle)]
        leaves, thick, reach = place + 0.7 * radius * heading, rng.uniform(0.95, 1.35), rng.uniform(35, 75)
        _dendrite(rng, branches, leaves, heading, thick, 0, box, obstacles, length_um=reach)
    away = _unit(-apical + 0.5 * rng.normal(size=3))
    _axon(rng, branches, place + 0.8 * radius * away, away, box, obstacles)
    return Neuron(soma, nucleus, tuple(branches), float(rng.lognormal(-0.1, 0.25)))


def _dendrite(
    rng: np.random.Generator,
    branches: list[Branch],
    start: NDArray[np.float64],
    heading: NDArray[np.float64],
    thickness: float,
    order: int,
    box: Box,
    obstacles: _Obstacles,
    *,
    length_um: float,
    path_um: float = 0.0,
) -> None:
    """Append a dendrite and its daughters; each piece between two forks is one branch."""
    piece = length_um * (rng.uniform(0.25, 0.5) if order < 3 else 1.0)
    points = _walk(
        rng,
        start,
        _unit(heading),
        piece,
        wiggle=0.12,
        pull=0.06,
        box=box,
        obstacles=obstacles,
        clearance_um=1.5,
    )
    along = np.arange(len(points)) * STEP_UM
    radius = np.maximum(thickness * (1.0 - 0.4 * along / max(length_um, 1.0)), 0.33)
    radius *= 1.0 + 0.1 * rng.normal(size=len(points))
    if order == 0:  # flares where it leaves the soma
        radius += 1.6 * np.exp(-along / 2.2)
    tubes = [Tube(points, radius)]
    tubes += _spines(rng, points, radius, first_um=4.0 if order == 0 else 0.0)
    branches.append(Branch(tuple(tubes), path_um))
    rest = length_um - len(points) * STEP_UM
    if order >= 3 or rest < 8.0 or not box.holds(points[-1]):
        return
    tangent = _tangents(points)[-1]
    sideways = _perpendicular(rng, tangent[None])[0]
    share = rng.uniform(0.35, 0.65)  # of the cross-section, to the power 3/2
    for part, sign in ((share, 1.0), (1.0 - share, -1.0)):
        opening = sign * rng.uniform(0.25, 0.75)
        _dendrite(
            rng,
            branches,
            points[-1],
            _unit(tangent + opening * sideways),
            float(radius[-1]) * 1.15 * part ** (2 / 3),
            order + 1,
            box,
            obstacles,
            length_um=rest * rng.uniform(0.75, 1.15),
            path_um=path_um + len(points) * STEP_UM,
        )


def _spines(
    rng: np.random.Generator, points: NDArray[np.float64], radius: NDArray[np.float64], *, first_um: float
) -> list[Tube]:
    """Return spines along a dendrite: a thin neck and a round head each, about one per 1.4 µm."""
    sites = np.arange(first_um, (len(points) - 1) * STEP_UM, 1.4)
    sites = sites + rng.uniform(-0.6, 0.6, sites.size)
    sites = np.clip(sites, 0.0, (len(points) - 1) * STEP_UM)
    if sites.size == 0:
        return []
    index = np.clip(np.round(sites / STEP_UM).astype(int), 0, len(points) - 1)
    along = np.arange(len(points)) * STEP_UM
    roots = np.column_stack([np.interp(sites, along, points[:, k]) for k in range(3)])
    tangents = _tangents(points)[index]
    outward = _perpendicular(rng, tangents) + 0.3 * rng.normal(size=(sites.size, 1)) * tangents
    reach = radius[index] + rng.gamma(6.0, 0.2, sites.size)
    heads = 0.22 + rng.gamma(3.0, 0.08, sites.size)
    tubes = []
    for root, out, length, head in zip(roots, outward, reach, heads, strict=True):
        neck = np.array([root, root + out * length])
        tubes.append(Tube(neck, np.array([0.13, 0.13])))
        centre = root + out * (length + 0.6 * head)
        bulb = centre + np.linspace(-0.9, 0.9, 5)[:, None] * head * out
        tubes.append(Tube(bulb, head * np.sqrt(1.0 - np.linspace(-0.9, 0.9, 5) ** 2)))
    return tubes


def _axon(
    rng: np.random.Generator,
    branches: list[Branch],
    start: NDArray[np.float64],
    heading: NDArray[np.float64],
    box: Box,
    obstacles: _Obstacles,
) -> None:
    """Append an axon: a thin beaded trunk with a few collaterals."""
    trunk = _walk(
        rng,
        start,
        _unit(heading),
        400.0,
        wiggle=0.2,
        pull=0.025,
        box=box,
        obstacles=obstacles,
        clearance_um=1.0,
    )
    branches.append(Branch((Tube(trunk, _beads(rng, len(trunk), 0.32)),)))
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.uniform(0.15, 0.8) * (len(trunk) - 1))
        side = _unit(_tangents(trunk)[at] * 0.4 + _perpendicular(rng, _tangents(trunk)[at][None])[0])
        twig = _walk(
            rng, trunk[at], side, rng.uniform(40, 160), wiggle=0.24, pull=0.02, box=box, obstacles=obstacles,
            clearance_um=1.0,
        )  # fmt: skip
        branches.append(Branch((Tube(twig, _beads(rng, len(twig), 0.26)),), at * STEP_UM))


def _passing_axon(rng: np.random.Generator, box: Box, obstacles: _Obstacles) -> Neuron:
    """Return an axon that enters through one face and crosses the box."""
    face, far = int(rng.integers(3)), bool(rng.integers(2))
    start = box.low + (box.high - box.low) * rng.uniform(0.1, 0.9, 3)
    start[face] = (box.high if far else box.low)[face]
    heading = _direction(rng, flat=0.5)
    heading[face] = (-1 if far else 1) * (abs(heading[face]) + 0.5)
    branches: list[Branch] = []
    _axon(rng, branches, start, heading, box, obstacles)
    return Neuron(None, None, tuple(branches), float(rng.lognormal(0.1, 0.35)))


def _beads(rng: np.random.Generator, count: int, thin: float) -> NDArray[np.float64]:
    """Return the radii of an axon (count,): thin, with a bouton every 4 to 9 µm."""
    along = np.arange(count) * STEP_UM
    radius = np.full(count, thin)
    at = rng.uniform(0.0, 6.0)
    while at < along[-1]:
        radius += rng.uniform(0.15, 0.55) * np.exp(-0.5 * ((along - at) / rng.uniform(0.5, 0.8)) ** 2)
        at += rng.uniform(4.0, 9.0)
    return radius


# Nuclei -------------------------------------------------------------------------------------------


def _nuclei(
    rng: np.random.Generator, box: Box, count: int, obstacles: _Obstacles, somata: list[Ball]
) -> tuple[Nucleus, ...]:
    """Return at most `count` nuclei that touch neither each other nor vessels nor somata."""
    size = box.high - box.low
    placed: list[tuple[NDArray[np.float64], float]] = [(s.centre, float(s.radii.max())) for s in somata]
    nuclei = []
    for stream in rng.spawn(count):
        radius = stream.uniform(2.6, 4.2)
        for centre in box.low + size * stream.uniform(0.0, 1.0, (40, 3)):
            apart = all(np.linalg.norm(centre - other) > reach + radius + 1.0 for other, reach in placed)
            if apart and obstacles.clearance(centre)[0] > radius + 0.5:
                nuclei.append(_nucleus(stream, centre, radius))
                placed.append((centre, radius))
                break
    return tuple(nuclei)


def _nucleus(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> Nucleus:
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    body = Ball(centre, radius * rng.uniform(0.8, 1.2, 3), axes)
    nucleoli = tuple(
        Ball(
            centre + _direction(rng) * radius * rng.uniform(0.1, 0.5),
            np.full(3, radius * rng.uniform(0.18, 0.32)),
            axes,
        )
        for _ in range(int(rng.integers(1, 4)))
    )
    return Nucleus(body, nucleoli, float(rng.lognormal(-1.0, 0.45)))
