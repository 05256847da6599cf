"""Symptoms: numbers about a sweep that tell, without a reference, that something is wrong with it.

Two sources. Its *appearance*: spectrum, histogram, correlation of neighbouring slabs, camera columns, all of
which any sweep has. And the *surprise*: how it differs from what the sweeps before it foretold, in units of
what their covariances allow (the normalised innovation of a Kalman filter, Bar-Shalom, Li and Kirubarajan
2001, section 5.4), over the whole, slab by slab and place by place. A slab that lies elsewhere than the stage
said is foretold better from another depth. And a third, two sweeps alone (`Glance`): slabs taken in the
reverse order of what the stage said are foretold better by the sweep before as it would then lie, from the
first sweep on, where a session expects what it has always seen.

All are logarithms or shares, larger is worse for those in `SYMPTOMS`; `quality_watch.py` has the levels. Pure
functions; some thousand pixels of some slabs are enough.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microdiffusion.engines.projections import local_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

APPEARANCE = ("coarse", "middle", "fine", "median", "bright", "spread", "alike", "uneven", "oriented")
"""Parts of a sweep's appearance that are compared with the training's specimens; no noise, no brightness."""
_FRAMES, _EDGE = 16, 192  # of a sweep, and pixels of the middle of the field
_PIXELS = 4096  # of an image, for the depths
_BANDS = (0.02, 0.06, 0.12, 0.25, 0.5)  # cycles per pixel
_PERCENTILES = (1.0, 50.0, 90.0, 99.9)
_WINDOW = 9  # pixels, of a place
_DEPTHS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # steps, either way, at which a slab may lie
_WITHIN = 0.98  # of a slab, that must lie within the volume to be foretold
_NOISE = 0.3  # of the noise's power: smaller misfits are none
_LEAST = 1e-4
_SHADE = 5  # pixels, of a place that a bubble shades
_DARK = 0.2  # of the mean light: a place with less is not said to have lost any
_LOST = 0.05  # of the detail: more than the rest is not told apart from all


@dataclass(frozen=True, slots=True, eq=False)
class Glance:
    """Glance at a sweep, to hold the next one against: some pixels (M, P) of its images at depths (M,)."""

    depths: NDArray[np.float64]
    images: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Of what it keeps."""
        return self.depths.nbytes + self.images.nbytes


def glance(projections: NDArray[np.float32], depths: NDArray[np.float64]) -> Glance:
    """Return some pixels of a sweep (M, Y, X), in the order of its depths (M,)."""
    order = np.argsort(depths, kind="stable")
    flat = projections.reshape(len(projections), -1)
    every = max(1, flat.shape[1] // _PIXELS)
    images = flat[order, ::every]
    return Glance(np.asarray(depths, np.float64)[order], images - np.median(images))


def in_reverse(now: Glance, before: Glance) -> float:
    """Return how much better (logarithm) a sweep before foretells this one if both ran the other way; or NaN.

    Slabs at depths z that lie at `first + last - z` instead show what the other sweep said to be deeper, by
    as much as its own `first + last` is larger. With golden offsets these differ from sweep to sweep; where
    they do not, nothing tells.
    """
    if now.images.shape[1:] != before.images.shape[1:] or min(len(now.depths), len(before.depths)) < 3:
        return math.nan
    deeper = (before.depths[[0, -1]].sum() - now.depths[[0, -1]].sum()).item()
    step = (now.depths[-1] - now.depths[0]) / (len(now.depths) - 1)
    if abs(deeper) < _DEPTHS[0] * step:
        return math.nan
    ends = before.depths[[0, -1]]
    inside = [
        (now.depths + by >= ends[0] - 1e-6) & (now.depths + by <= ends[1] + 1e-6) for by in (0.0, deeper)
    ]
    both = inside[0] & inside[1]
    if both.sum() < 2:
        return math.nan
    straight, reverse = (
        float(np.square(now.images[both] - _between(before, now.depths[both] + by)).mean())
        for by in (0.0, deeper)
    )
    return math.log((straight + 1e-12) / (reverse + 1e-12))


def _between(seen: Glance, depths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a sweep's pixels (N, P) at other depths (N,) within its own, linearly interpolated."""
    upper = np.clip(np.searchsorted(seen.depths, depths), 1, len(seen.depths) - 1)
    gap = np.maximum(seen.depths[upper] - seen.depths[upper - 1], 1e-9)
    weight = np.clip((depths - seen.depths[upper - 1]) / gap, 0.0, 1.0)[:, None]
    return np.asarray((1 - weight) * seen.images[upper - 1] + weight * seen.images[upper], np.float64)


def appearance(projections: NDArray[np.float32]) -> dict[str, float]:
    """Return the appearance of a sweep (M, Y, X), counts: `APPEARANCE` and `column`."""
    frames = _some(projections)
    part = _part(frames)
    low, median, bright, high = np.percentile(part, _PERCENTILES)
    span = max(high - low, 1e-9)
    shown = (part - low) / span
    power = _bands(shown)
    flat = shown.reshape(len(shown), -1)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1) + 1e-12
    alike = [float(a @ b) / (m * n) for a, b, m, n in zip(flat, flat[1:], norms, norms[1:], strict=False)]
    means = shown.mean((1, 2))
    return {
        "coarse": float(power[1] - power[0]),
        "middle": float(power[2] - power[1]),
        "fine": float(power[3] - power[2]),
        "median": float((median - low) / span),
        "bright": float((bright - low) / span),
        "spread": float(np.log(shown.std() + 1e-9)),
        "alike": float(np.mean(alike)) if alike else 1.0,
        "uneven": float(np.log(max(means.std() / max(means.mean(), 1e-3), 1e-3))),
        "oriented": _oriented(shown),
        "column": max(_odd_line(frames, 2), _odd_line(frames, 1)),
    }


def surprise(
    seen: Tensor,
    field: Tensor,
    spread: Tensor,
    noise: Tensor,
    matrix: NDArray[np.float64],
    step: float,
) -> dict[str, float]:
    """Return the surprise of a sweep.

    Parameters
    ----------
    seen : (M, Y, X)
        Its projections above the level of no light, in the frame of the specimen.
    field : (Z, Y X)
        The specimen, as it was expected.
    spread : (M, Y X)
        Variance that the projections were expected to have about what `field` foretells.
    noise : (M,)
        Variance of the noise, part of it.
    matrix : (M, Z)
        Operator of the sweep.
    step : float
        Distance of its slabs, slices.

    Returns
    -------
    dict
        `innovation` of the median slab, `spot` the largest of a place, `misplaced` and `all_misplaced` how
        much better the worst and the median slab are foretold from another depth, `dimmed` the light that is
        lacking, `shaded` what a place lacks beyond that, `softened` the fine detail that is lacking.
    """
    operator = torch.from_numpy(matrix).to(field)
    foretold = (operator @ field).view_as(seen)
    relative = (seen - foretold).square() / spread.view_as(seen)
    # A bubble, or what swims by, is in neighbouring slabs.
    near = _with_neighbours(relative)
    better = _better_elsewhere(seen, field, noise, matrix, step)
    light = foretold.sum().clamp_min(1e-12) / seen.sum().clamp_min(1e-12)
    logarithms = torch.stack(
        [
            relative.mean((1, 2)).median().clamp_min(_LEAST).log(),
            local_mean(near, _WINDOW).max().clamp_min(_LEAST).log(),
            better.max(),
            better.median(),
            light.log(),
            _shade(seen, foretold) - light.log(),
        ]
    )
    names = ("innovation", "spot", "misplaced", "all_misplaced", "dimmed", "shaded")
    shown, sharp = (_part(each.cpu().numpy()) for each in (seen, foretold))
    return dict(zip(names, logarithms.tolist(), strict=True)) | {
        "softened": _softened(shown, sharp, float(noise.mean()))
    }


def _with_neighbours(slabs: Tensor) -> Tensor:
    """Return the mean of each slab (M, Y, X) and those next to it."""
    total, count = slabs.clone(), slabs.new_ones(len(slabs), 1, 1)
    total[1:] += slabs[:-1]
    total[:-1] += slabs[1:]
    count[1:] += 1
    count[:-1] += 1
    return total / count


def _shade(seen: Tensor, foretold: Tensor) -> Tensor:
    """Return the largest loss of light (logarithm) of a place in neighbouring slabs."""
    light = [local_mean(_with_neighbours(each), _SHADE) for each in (seen, foretold)]
    dark = _DARK * light[1].mean().clamp_min(1e-12)
    there, expected = (each.clamp_min(0.0) + dark for each in light)
    return (expected / there).log().max()


def _softened(seen: NDArray[np.float64], foretold: NDArray[np.float64], noise: float) -> float:
    """Return the fine detail that is lacking (logarithm) beside the coarse.

    By the cross-spectrum, in which the noise of what is seen averages out: which part of each band's detail
    is there. Detail that the noise would drown is taken to be there.
    """
    rows, columns = seen.shape[1:]
    window = _window(rows, columns)
    spectra = [np.fft.rfft2((each - each.mean((1, 2), keepdims=True)) * window) for each in (seen, foretold)]
    shared = (spectra[0] * spectra[1].conj()).real.mean(0)
    power = (np.abs(spectra[1]) ** 2).mean(0)
    floor = noise * float((window**2).sum()) + 1e-12
    inside = _in_bands(rows, columns)
    coarse, fine = (
        max((shared[inside[band]].mean() + floor) / (power[inside[band]].mean() + floor), _LOST)
        for band in (0, 2)
    )
    return math.log(coarse / fine)


def _better_elsewhere(
    seen: Tensor, field: Tensor, noise: Tensor, matrix: NDArray[np.float64], step: float
) -> Tensor:
    """Return by how much (logarithm) each slab (M,) is foretold better from another depth."""
    every = max(1, seen[0].numel() // _PIXELS)
    some, part = seen.flatten(1)[:, ::every], field[:, ::every]
    depths = [sign * part_of_step * step for part_of_step in _DEPTHS for sign in (-1, 1)]
    operators = np.stack([matrix, *(_deeper(matrix, deeper) for deeper in depths)])
    foretold = (torch.from_numpy(operators).to(part).flatten(0, 1) @ part).unflatten(0, operators.shape[:2])
    misfit = ((some - foretold).square_().mean(2) - noise).clamp_min(0.0) + _NOISE * noise
    outside = torch.from_numpy(operators.sum(2) < _WITHIN * matrix.sum(1)).to(misfit.device)
    best = misfit.masked_fill(outside, torch.inf)[1:].amin(0)
    better: Tensor = (misfit[0] / best).log()
    return better


def _deeper(matrix: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Return the operator (M, Z) of slabs that lie `by` slices deeper, linearly interpolated."""
    slices = matrix.shape[1]
    source = np.arange(slices) - by
    lower = np.floor(source).astype(int)
    moved = np.zeros_like(matrix)
    for place, weight in ((lower, 1.0 - (source - lower)), (lower + 1, source - lower)):
        inside = (place >= 0) & (place < slices)
        moved[:, inside] += matrix[:, place[inside]] * weight[inside]
    return moved


def _some(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return some of many images."""
    most = min(_FRAMES, len(images))
    chosen = np.unique(np.linspace(0, len(images) - 1, most).round().astype(int))
    return np.asarray(images[chosen], np.float64)


def _part(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the middle of some of the images."""
    top, left = (max(0, (edge - _EDGE) // 2) for edge in images.shape[1:])
    return _some(images)[:, top : top + _EDGE, left : left + _EDGE]


def _bands(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the mean power in four bands of lateral frequency."""
    rows, columns = images.shape[1:]
    apart = (images - images.mean((1, 2), keepdims=True)) * _window(rows, columns)
    power = (np.abs(np.fft.rfft2(apart)) ** 2).mean(0)
    return np.log(np.array([power[inside].mean() for inside in _in_bands(rows, columns)]) + 1e-12)


def _window(rows: int, columns: int) -> NDArray[np.float64]:
    return np.hanning(rows + 2)[1:-1, None] * np.hanning(columns + 2)[None, 1:-1]


def _in_bands(rows: int, columns: int) -> list[NDArray[np.bool_]]:
    """Return which lateral frequencies are in each band; all of them where there are none."""
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    bands = [(frequency >= low) & (frequency < high) for low, high in itertools.pairwise(_BANDS)]
    return [inside if inside.any() else np.ones_like(inside) for inside in bands]


def _oriented(images: NDArray[np.float64]) -> float:
    """Return how far gradients prefer one direction, 0 to 1 (coherence of the structure tensor)."""
    down, right = np.diff(images, axis=1)[:, :, :-1], np.diff(images, axis=2)[:, :-1]
    if not down.size:
        return 0.0
    a, b, c = (down**2).mean(), (right**2).mean(), (down * right).mean()
    return float(np.sqrt((a - b) ** 2 + 4 * c**2) / max(a + b, 1e-12))


def _odd_line(frames: NDArray[np.float64], axis: int) -> float:
    """Return how far (logarithm) a camera column or row varies otherwise than its neighbours do."""
    variance = np.log(frames.var(axis=(0, 3 - axis)) + 1e-9)
    if variance.size < 5:
        return 0.0
    beside = (variance[:-4] + variance[1:-3] + variance[3:-1] + variance[4:]) / 4
    return float(np.abs(variance[2:-2] - beside).max())
