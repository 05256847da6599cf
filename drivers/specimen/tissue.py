"""From anatomy to brightness: of each voxel and compartment, at rest and over time.

Constant parts (neuropil, vessels, nuclei) become a dense block, active parts (neurons) a sparse list.
Brightness is relative to a dendrite that fills its voxel. Everything is a function of seed and time alone.
Safe on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from microdiffusion.drivers.specimen.anatomy import Structure
from microdiffusion.drivers.specimen.raster import Grid, cover

_NEUROPIL = 0.035
_DISPLACED = {"neuron": 0.0, "vessel": 0.85, "nucleus": 0.8}
"""Share of the neuropil that is displaced."""
_HOLLOW = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Tissue:
    """Brightness at rest; `voxel` ascends, so that a range of slices is a range of the lists.

    Attributes
    ----------
    still : (Z, Y, X) float32
        Brightness of the constant parts.
    voxel, compartment, glow : (K,) int64, int32, float32
        The active parts: flat index in the grid, compartment, brightness.
    owner : (C,) int64
        Neuron of each compartment.
    """

    still: NDArray[np.float32]
    voxel: NDArray[np.int64]
    compartment: NDArray[np.int32]
    glow: NDArray[np.float32]
    owner: NDArray[np.int64]


def paint(anatomy: Sequence[Structure], grid: Grid, rng: np.random.Generator) -> Tissue:
    """Return the brightness of an anatomy on a grid; each piece of a neuron is a compartment."""
    grain = 1.0 + 0.25 * _clouds(grid, 0.8, rng)
    neuropil = _NEUROPIL * grain * np.maximum(1.0 + 0.35 * _clouds(grid, 14.0, rng), 0.3)
    still, filled = np.zeros(grid.size, np.float32), np.zeros(grid.size, np.float32)
    voxels, compartments, glows = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    owner: list[int] = []
    for piece in anatomy:
        voxel, coverage = cover(piece.tubes, grid, rng)
        glow = piece.brightness * coverage
        if piece.neuron is None:
            neuropil[voxel] *= 1.0 - _DISPLACED[piece.kind] * coverage
        else:
            filled[voxel] += coverage
        if piece.hollow:
            inside, core = cover(piece.hollow, grid, rng)
            voxel, glow = np.append(voxel, inside), np.append(glow, -_HOLLOW * piece.brightness * core)
        if piece.neuron is None:
            np.add.at(still, voxel, glow)
        else:
            voxels.append(voxel)
            compartments.append(np.full(voxel.size, len(owner), np.int32))
            glows.append(glow)
            owner.append(piece.neuron)
    voxel = np.concatenate(voxels)
    # Where branches meet they share the voxel instead of filling it twice.
    glow = np.concatenate(glows) * grain[voxel] / np.maximum(filled[voxel], 1.0)
    order = np.argsort(voxel, kind="stable")
    return Tissue(
        (np.maximum(still, 0.0) * grain + neuropil).reshape(grid.shape),
        voxel[order],
        np.concatenate(compartments)[order],
        glow[order].astype(np.float32),
        np.array(owner, np.int64),
    )


def _clouds(grid: Grid, size_um: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field (flat) of unit variance, between -3 and 3, with lumps of `size_um`."""
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    field = gaussian_filter(noise, size_um / grid.voxel_um, mode="wrap").ravel()
    return np.asarray(np.clip(field / max(float(field.std()), 1e-9), -3.0, 3.0), np.float32)


class Activity:
    """Calcium transients: fast rise, slow decay, some of the whole neuron, some of a single compartment.

    Events are drawn window by window, each from a generator of its own, so that any moment of an endless run
    can be asked for in any order.

    Parameters
    ----------
    seed : int
        Seed of the events.
    peak : float
        ΔF/F that strong activity approaches.
    owner : (C,) int
        Neuron of each compartment.
    """

    _WINDOW_S = 2.0
    _RISE_S, _DECAY_S, _MEMORY_S = 0.08, 0.8, 6.0
    _NEURON_RATE_HZ, _COMPARTMENT_RATE_HZ = 0.22, 0.03

    def __init__(self, seed: int, peak: float, owner: NDArray[np.int64]) -> None:
        self._seed, self._peak, self._owner = seed, peak, owner
        # A source of events is a neuron or, counted on from these, a compartment.
        self._neurons = int(owner.max()) + 1 if owner.size else 0
        rates = np.full(self._neurons + owner.size, self._COMPARTMENT_RATE_HZ)
        rates[: self._neurons] = self._NEURON_RATE_HZ
        self._expected = rates * self._WINDOW_S
        self._events = lru_cache(maxsize=16)(self._draw)

    def gains(self, time_s: float) -> NDArray[np.float64]:
        """Return the brightness (C,) of every compartment relative to rest."""
        if self._peak == 0 or self._owner.size == 0:
            return np.ones(self._owner.size)
        last = int(time_s // self._WINDOW_S)
        first = int((time_s - self._MEMORY_S) // self._WINDOW_S)
        drawn = [self._events(window) for window in range(first, last + 1)]
        at, source, strength = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        since = np.maximum(time_s - at, 0.0)
        response = strength * (np.exp(-since / self._DECAY_S) - np.exp(-since / self._RISE_S))
        calcium = np.bincount(source, weights=response, minlength=self._expected.size)
        calcium = calcium[self._owner] + calcium[self._neurons :]
        return np.asarray(1.0 + self._peak * (1.0 - np.exp(-1.5 * calcium)), np.float64)

    def _draw(self, window: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Return the events of a window: time (s), source, strength."""
        # Seeds cannot be negative, and the first frames already look back.
        rng = np.random.default_rng([self._seed, 102, window + 16])
        source = np.repeat(np.arange(self._expected.size), rng.poisson(self._expected))
        time_s = (window + rng.uniform(0.0, 1.0, source.size)) * self._WINDOW_S
        return time_s, source, rng.gamma(3.0, 0.35, source.size)
