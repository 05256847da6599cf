"""A camera's offset, read noise and gain, from a dark and a flat series (photon transfer).

The gain is the slope of variance on mean: ``var = gain * (mean - offset) + read_noise²`` where light is
Poisson (Janesick 2007). Variances are of differences of two frames in succession, which no fixed pattern
enters; each block of pixels is first brought to the same mean in both, so a lamp that drifts or flickers
adds nothing. Hot and saturated pixels are left out. Pure; any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.errors import InputFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 16
"""Edge of the blocks, pixels, in which light is taken to be even enough to be scaled."""
RESAMPLES = 300
_PAIRS = 200


@dataclass(frozen=True, slots=True)
class CameraResult:
    """The measured camera, counts; intervals of 95 %.

    Attributes
    ----------
    gain : float
        Counts per photon (photoelectron).
    signal : float
        Mean light of the flat series above the offset, counts.
    hot_pixels : int
        Pixels whose dark level or dark noise stands out.
    points : (P, 2) float64
        Signal and variance without read noise, counts and counts², of blocks and pairs: for a picture.
    """

    offset: float
    offset_interval: tuple[float, float]
    read_noise: float
    read_noise_interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    signal: float
    dark_frames: int
    flat_frames: int
    hot_pixels: int
    saturated_share: float
    points: NDArray[np.float64]
    warnings: tuple[str, ...]


def measure_camera(
    dark: NDArray[np.floating],
    flat: NDArray[np.floating],
    *,
    full: float | None = None,
    names: tuple[str, str] = ("the dark series", "the flat series"),
    seed: int = 0,
) -> CameraResult:
    """Return what two series (N, Y, X) of the same camera say of it, counts.

    Parameters
    ----------
    full : float or None
        Counts from which on a pixel is saturated; None: what many pixels share as the highest value.

    Raises
    ------
    InputFileError
        Too few frames, images of different sizes, no light, or nothing but saturated pixels.
    """
    _check(dark, flat, names)
    rng = np.random.default_rng(seed)
    level = np.asarray(np.mean(dark, axis=0, dtype=np.float64))
    steps = np.square(np.diff(dark.astype(np.float32), axis=0))
    noise2 = np.asarray(0.5 * np.mean(steps, axis=0, dtype=np.float64))
    hot = _stands_out(level) | _stands_out(np.sqrt(noise2))
    calm = ~hot
    offset, offset_interval = _mean_with_interval(level, calm, rng)
    read2, read2_interval = _mean_with_interval(noise2, calm, rng)
    if full is None:
        top = float(flat.max())
        full = top if np.count_nonzero(flat == top) >= max(50, len(flat)) else np.inf
    points, saturated_share = _points(dark, flat, level, noise2, calm, float(full))
    if float(np.median(flat)) < offset + max(float(np.sqrt(read2)), 1.0):
        raise InputFileError(
            f"{names[1]} is no brighter than {names[0]} ({float(np.median(flat)):.4g} against {offset:.4g} "
            "counts): take it with light, and name the dark series first."
        )
    if len(points) < 4:
        raise InputFileError(
            f"{names[1]}: {saturated_share:.0%} of the pixels are saturated or dark: choose a light that "
            "gives a quarter to three quarters of the camera's range."
        )
    signal, excess, weight = points.T
    gain = _slope(signal, excess, weight)
    draws = rng.integers(0, len(points), size=(RESAMPLES, len(points)))
    gains = [_slope(signal[row], excess[row], weight[row]) for row in draws]
    low, high = np.percentile(gains, (2.5, 97.5))
    if gain <= 0:
        raise InputFileError(
            f"The noise of {names[1]} does not grow with its light: was it averaged, or filtered? Take raw "
            "frames."
        )
    warnings = _warnings(
        dark, flat, gain, signal, excess, weight, float(np.sqrt(read2)), hot, saturated_share
    )
    known_to = 0.5 * float(high - low) / gain
    if known_to > 0.1:
        warnings += (f"the gain is known to ±{known_to:.0%} only: take more frames, or a brighter scene",)
    return CameraResult(
        offset=offset,
        offset_interval=offset_interval,
        read_noise=float(np.sqrt(read2)),
        read_noise_interval=(float(np.sqrt(read2_interval[0])), float(np.sqrt(read2_interval[1]))),
        gain=gain,
        gain_interval=(float(low), float(high)),
        signal=float(np.average(signal, weights=weight)),
        dark_frames=len(dark),
        flat_frames=len(flat),
        hot_pixels=int(np.count_nonzero(hot)),
        saturated_share=saturated_share,
        points=points[:, :2],
        warnings=warnings,
    )


def _check(dark: NDArray[np.floating], flat: NDArray[np.floating], names: tuple[str, str]) -> None:
    for series, name in ((dark, names[0]), (flat, names[1])):
        if len(series) < 2:
            raise InputFileError(
                f"{name} has {len(series)} frame: noise shows in at least 2, better 20, of the same scene."
            )
    if dark.shape[1:] != flat.shape[1:]:
        raise InputFileError(
            f"{names[0]} has images of {dark.shape[1:]} and {names[1]} of {flat.shape[1:]} pixels: take both "
            "with the same region and binning."
        )


def _stands_out(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pixels are far above the bulk (Y, X); spreads of whole counts are no news."""
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), 0.05 * abs(float(middle)) * 0.1, 0.3)
    return np.asarray(values > middle + 7.0 * spread)


def _mean_with_interval(
    values: NDArray[np.float64], chosen: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """Return the mean over chosen pixels, and its interval from blocks drawn with replacement."""
    sums, counts = _blocks(np.where(chosen, values, 0.0)), _blocks(chosen.astype(np.float64))
    draws = rng.integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / np.maximum(counts[draws].sum(axis=1), 1.0)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(sums.sum() / max(counts.sum(), 1.0)), (float(low), float(high))


def _blocks(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over blocks (B,) of an image (Y, X)."""
    rows = np.arange(0, image.shape[0], BLOCK)
    columns = np.arange(0, image.shape[1], BLOCK)
    return np.asarray(np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1).ravel())


def _spread_out(blocks: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an image (Y, X) from one value for each block."""
    rows, columns = -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)
    grid = blocks.reshape(rows, columns)
    return grid.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[: shape[0], : shape[1]]


def _points(
    dark: NDArray[np.floating],
    flat: NDArray[np.floating],
    level: NDArray[np.float64],
    noise2: NDArray[np.float64],
    calm: NDArray[np.bool_],
    full: float,
) -> tuple[NDArray[np.float64], float]:
    """Return (P, 3): signal, variance less read noise, pixels of each block and pair; share saturated."""
    found = []
    saturated = pairs = 0
    starts = np.arange(0, len(flat) - 1, 2)
    if len(starts) > _PAIRS:
        starts = starts[np.linspace(0, len(starts) - 1, _PAIRS).astype(int)]
    read2 = _blocks(np.where(calm, noise2, 0.0))
    for start in starts:
        first, second = (flat[n].astype(np.float64) - level for n in (start, start + 1))
        at_limit = (flat[start] >= full) | (flat[start + 1] >= full)
        saturated += int(np.count_nonzero(at_limit))
        pairs += 1
        good = calm & ~at_limit
        count = _blocks(good.astype(np.float64))
        one, two = (_blocks(np.where(good, light, 0.0)) / np.maximum(count, 1.0) for light in (first, second))
        mean = 0.5 * (one + two)
        # Where some pixels of a block are at the limit, the others are those that noise kept below it.
        limited = _blocks(at_limit.astype(np.float64)) > 0
        usable = (count > 0.5 * BLOCK) & (mean > 0) & (one > 0) & (two > 0) & ~limited
        if not usable.any():
            continue
        scales = [
            _spread_out(np.where(usable, mean / np.where(usable, x, 1.0), 1.0), level.shape)
            for x in (one, two)
        ]
        difference = np.where(good, first * scales[0] - second * scales[1], 0.0)
        # Each block's two means are set equal, which takes one degree of freedom.
        variance = 0.5 * _blocks(difference**2) / np.maximum(count - 1.0, 1.0)
        # What is scaled brings its read noise along, as the square, and its photons' noise in proportion.
        ratio = [np.where(usable, mean / np.where(usable, x, 1.0), 1.0) for x in (one, two)]
        # The dark level that was taken off has noise of its own, which unequal factors do not cancel.
        own = (ratio[0] - ratio[1]) ** 2 / len(dark)
        dark_part = 0.5 * (ratio[0] ** 2 + ratio[1] ** 2 + own) * read2
        dark_part /= np.maximum(_blocks(calm.astype(np.float64)), 1.0)
        excess = (variance - dark_part) / (0.5 * (ratio[0] + ratio[1]))
        found.append(np.stack([mean, excess, count], axis=1)[usable])
    points = np.concatenate(found) if found else np.zeros((0, 3))
    return points, saturated / max(pairs * level.size, 1)


def _slope(signal: NDArray[np.float64], excess: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return the slope through the origin, where a variance's own spread grows with it."""
    typical = 0.1 * float(np.average(signal, weights=weight))
    trust = weight / np.maximum(signal, typical) ** 2
    return float(np.sum(trust * signal * excess) / np.sum(trust * signal**2))


def _warnings(
    dark: NDArray[np.floating],
    flat: NDArray[np.floating],
    gain: float,
    signal: NDArray[np.float64],
    excess: NDArray[np.float64],
    weight: NDArray[np.float64],
    read_noise: float,
    hot: NDArray[np.bool_],
    saturated_share: float,
) -> tuple[str, ...]:
    warnings = []
    if min(len(dark), len(flat)) < 10:
        warnings.append(f"{len(dark)} dark and {len(flat)} flat frames are few: take 20 of each or more")
    if saturated_share > 0.001:
        warnings.append(
            f"{saturated_share:.1%} of the flat series is saturated and was left out: lower the light"
        )
    if read_noise < 0.5:
        warnings.append(
            f"a read noise of {read_noise:.2g} counts is below the step of a count: the camera's numbers "
            "hide it, so it is an upper limit"
        )
    if hot.mean() > 0.01:
        warnings.append(f"{hot.mean():.1%} of the pixels are hot: cool the camera, or shorten the exposure")
    low, high = np.percentile(signal, (20, 80))
    if high > 1.5 * max(low, 1e-9):
        dim, bright = signal <= low, signal >= high
        slopes = [
            np.average(excess[part], weights=weight[part]) / np.average(signal[part], weights=weight[part])
            for part in (dim, bright)
        ]
        if abs(slopes[1] / gain - slopes[0] / gain) > 0.15:
            warnings.append(
                f"variance does not follow the mean in a straight line ({slopes[0]:.3g} counts a photon "
                f"where dim, {slopes[1]:.3g} where bright): the camera is not linear, or processes its images"
            )
    return tuple(warnings)
