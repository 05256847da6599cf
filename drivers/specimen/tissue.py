"""From anatomy to brightness: which voxel glows how much, and on behalf of which compartment.

What keeps its brightness (neuropil, vessels, nuclei) becomes a dense block, what is active (neurons) a
sparse list. Brightness is relative to a dendrite that fills its voxel. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from microdiffusion.drivers.specimen import raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.drivers.specimen.shapes import Anatomy, Ball, Nucleus

_LUMEN = 0.32
_WALL = 0.16
_SOMA = 0.7
_NEUROPIL = 0.035

_SIGNAL_UM_PER_S = 400.0
"""How fast activity runs along a neurite."""


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """What flickers: `voxel` ascending, so that a range of slices is a range of the lists.

    Attributes
    ----------
    voxel, compartment, glow : (K,) int64, int32, float32
        Flat index in the grid, compartment that it belongs to, brightness at rest.
    owner, delay_s : (C,) int64, float64
        Neuron of each compartment, and how much later than its neuron it lights up.
    """

    voxel: NDArray[np.int64]
    compartment: NDArray[np.int32]
    glow: NDArray[np.float32]
    owner: NDArray[np.int64]
    delay_s: NDArray[np.float64]


def paint_still(anatomy: Anatomy, grid: raster.Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return what keeps its brightness (Z, Y, X): neuropil, vessels, nuclei."""
    texture = 1.0 + 0.35 * _clouds(grid, 14.0, rng) + 0.3 * _clouds(grid, 0.9, rng)
    neuropil = _NEUROPIL * np.clip(texture, 0.15, None)
    shadow = np.ones(grid.shape, np.float32)
    light = np.zeros(grid.shape, np.float32)
    for vessel in anatomy.vessels:
        distance = raster.distance_to_tubes(vessel.tubes, grid, far_um=3.0)
        lumen = np.clip(0.5 - distance / 1.4, 0.0, 1.0)
        shadow *= 1.0 - 0.85 * lumen
        # A dye fills the lumen; without one the wall shows.
        light += _LUMEN * lumen if vessel.labelled else _WALL * np.exp(-0.5 * ((distance - 0.2) / 0.6) ** 2)
    for neuron in anatomy.neurons:
        if neuron.soma is not None:
            _blend(shadow, raster.cover_ball(neuron.soma, grid), 0.8)
    for nucleus in anatomy.nuclei:
        _blend(shadow, raster.cover_ball(nucleus.body, grid), 0.8)
        _paint_nucleus(light, nucleus, grid, rng)
    return np.asarray(light + neuropil * shadow, np.float32)


def _clouds(grid: raster.Grid, size_um: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field of unit variance, with lumps of `size_um`."""
    field = gaussian_filter(
        rng.standard_normal(grid.shape, dtype=np.float32), size_um / grid.voxel_um, mode="wrap"
    )
    return np.asarray(field / max(float(field.std()), 1e-9), np.float32)


def _blend(
    shadow: NDArray[np.float32],
    cover: tuple[tuple[slice, slice, slice], NDArray[np.float32]] | None,
    depth: float,
) -> None:
    """Darken `shadow` by the share `depth` where something covers it."""
    if cover is not None:
        shadow[cover[0]] *= 1.0 - depth * cover[1]


def _paint_nucleus(
    light: NDArray[np.float32], nucleus: Nucleus, grid: raster.Grid, rng: np.random.Generator
) -> None:
    """Add a nucleus with lumpy chromatin and dark nucleoli."""
    cover = raster.cover_ball(nucleus.body, grid)
    if cover is None:
        return
    window, coverage = cover
    lumps = gaussian_filter(rng.standard_normal(coverage.shape, dtype=np.float32), 0.55 / grid.voxel_um)
    lumps /= max(float(lumps.std()), 1e-9)
    body = np.clip(1.0 + 0.3 * lumps, 0.35, 1.9).astype(np.float32)
    depth, height, width = coverage.shape
    corner = np.array([axis[0] for axis in grid.centres(window)])
    inner = raster.Grid((depth, height, width), grid.voxel_um, corner)
    for nucleolus in nucleus.nucleoli:
        _blend(body, raster.cover_ball(nucleolus, inner), 0.65)
    light[window] += nucleus.brightness * coverage * body


def paint_active(anatomy: Anatomy, grid: raster.Grid, rng: np.random.Generator) -> Active:
    """Return what the neurons add."""
    voxels, compartments, glows = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    owners: list[int] = []
    delays: list[float] = []
    # Organelles: no real cytoplasm is smooth.
    grain = np.clip(1.0 + 0.2 * _clouds(grid, 0.7, rng).ravel(), 0.3, None)
    for number, neuron in enumerate(anatomy.neurons):
        pieces = [raster.cover_tubes(branch.tubes, grid, rng) for branch in neuron.branches]
        path = [branch.path_um for branch in neuron.branches]
        if neuron.soma is not None:
            voxel, soma = _ball_voxels(neuron.soma, grid)
            pieces.append((voxel, _SOMA * soma))
            path.append(0.0)
        where = np.concatenate([piece[0] for piece in pieces])
        cover = np.concatenate([piece[1] for piece in pieces]).astype(np.float64)
        who = np.repeat(np.arange(len(pieces)) + len(owners), [piece[0].size for piece in pieces])
        owners += [number] * len(pieces)
        delays += [length / _SIGNAL_UM_PER_S for length in path]
        if where.size == 0:
            continue
        # Where branches meet they share the voxel instead of filling it twice.
        unique, inverse = np.unique(where, return_inverse=True)
        total = np.bincount(inverse, weights=cover)
        share = np.minimum(1.0, 1.0 / np.maximum(total, 1e-9))
        if neuron.nucleus is not None:  # the indicator stays out of the nucleus
            dark, depth = _ball_voxels(neuron.nucleus, grid)
            at = np.minimum(np.searchsorted(unique, dark), unique.size - 1)
            hit = unique[at] == dark
            share[at[hit]] *= 1.0 - 0.7 * depth[hit]
        voxels.append(where)
        compartments.append(who.astype(np.int32))
        glows.append((cover * share[inverse] * grain[where] * neuron.brightness).astype(np.float32))
    order = np.argsort(np.concatenate(voxels), kind="stable")
    return Active(
        np.concatenate(voxels)[order],
        np.concatenate(compartments)[order],
        np.concatenate(glows)[order],
        np.array(owners, np.int64),
        np.array(delays, np.float64),
    )


def _ball_voxels(ball: Ball, grid: raster.Grid) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the voxels that a ball fills, flat and ascending, and its coverage there."""
    cover = raster.cover_ball(ball, grid)
    if cover is None:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    window, coverage = cover
    inside = np.nonzero(coverage > 0)
    where = tuple(index + part.start for index, part in zip(inside, window, strict=True))
    return np.ravel_multi_index(where, grid.shape), coverage[inside]
