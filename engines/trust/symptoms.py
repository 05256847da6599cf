"""Symptoms: numbers about a sweep that tell, without a reference, that something is wrong with it.

Two sources. Its *appearance*: spectrum, histogram, correlation of neighbouring slabs, camera columns, all of
which any sweep has. And the *surprise*: how it differs from what the sweeps before it foretold, in units of
what their covariances allow (the normalised innovation of a Kalman filter, Bar-Shalom, Li and Kirubarajan
2001, section 5.4), over the whole, slab by slab and place by place. A slab that lies elsewhere than the stage
said is foretold better from another depth.

All are logarithms or shares, larger is worse for those in `SYMPTOMS`; `quality_watch.py` has the levels. Pure
functions; some thousand pixels of some slabs are enough.
"""

from __future__ import annotations

import itertools
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
_PERCENTILES = (1.0, 99.9)
_WINDOW = 9  # pixels, of a place
_DEPTHS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # steps, either way, at which a slab may lie
_WITHIN = 0.98  # of a slab, that must lie within the volume to be foretold
_NOISE = 0.3  # of the noise's power: smaller misfits are none
_LEAST = 1e-4


def appearance(projections: NDArray[np.float32]) -> dict[str, float]:
    """Return the appearance of a sweep (M, Y, X), counts: `APPEARANCE` and `column`."""
    frames = _some(projections)
    part = _part(frames)
    low, high = np.percentile(part, _PERCENTILES)
    shown = (part - low) / max(high - low, 1e-9)
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
        "median": float(np.median(shown)),
        "bright": float(np.percentile(shown, 90)),
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
        lacking, `softened` the fine detail that is.
    """
    operator = torch.from_numpy(matrix).to(field)
    foretold = (operator @ field).view_as(seen)
    relative = (seen - foretold).square() / spread.view_as(seen)
    # A bubble, or what swims by, is in neighbouring slabs.
    near = torch.stack([relative[max(0, m - 1) : m + 2].mean(0) for m in range(len(relative))])
    better = _better_elsewhere(seen, field, noise, matrix, step)
    light = foretold.sum().clamp_min(1e-12) / seen.sum().clamp_min(1e-12)
    logarithms = torch.stack(
        [
            relative.mean((1, 2)).median().clamp_min(_LEAST).log(),
            local_mean(near, _WINDOW).max().clamp_min(_LEAST).log(),
            better.max(),
            better.median(),
            light.log(),
        ]
    )
    names = ("innovation", "spot", "misplaced", "all_misplaced", "dimmed")
    soft, sharp = (_bands(_part(each.cpu().numpy())) for each in (seen, foretold))
    result = dict(zip(names, logarithms.tolist(), strict=True))
    return result | {"softened": float((sharp[2] - sharp[0]) - (soft[2] - soft[0]))}


def _better_elsewhere(
    seen: Tensor, field: Tensor, noise: Tensor, matrix: NDArray[np.float64], step: float
) -> Tensor:
    """Return by how much (logarithm) each slab (M,) is foretold better from another depth."""
    every = max(1, seen[0].numel() // _PIXELS)
    some, part = seen.flatten(1)[:, ::every], field[:, ::every]

    def misfit(operator: NDArray[np.float64]) -> Tensor:
        apart = some - torch.from_numpy(operator).to(part) @ part
        return (apart.square().mean(1) - noise).clamp_min(0.0) + _NOISE * noise

    here, best = misfit(matrix), torch.full_like(noise, torch.inf)
    for part_of_step in _DEPTHS:
        for deeper in (-part_of_step * step, part_of_step * step):
            moved = _deeper(matrix, deeper)
            outside = torch.from_numpy(moved.sum(1) < _WITHIN * matrix.sum(1)).to(best.device)
            best = torch.minimum(best, misfit(moved).masked_fill(outside, torch.inf))
    return (here / best).log()


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
    window = np.hanning(rows + 2)[1:-1, None] * np.hanning(columns + 2)[None, 1:-1]
    power = (np.abs(np.fft.rfft2((images - images.mean((1, 2), keepdims=True)) * window)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    means = []
    for low, high in itertools.pairwise(_BANDS):
        inside = (frequency >= low) & (frequency < high)
        means.append(power[inside].mean() if inside.any() else power.mean())
    return np.log(np.array(means) + 1e-12)


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
