"""A camera's offset, read noise and gain, from a dark and a flat series (photon transfer).

The gain is the slope of variance on mean: ``var = gain * (mean - offset) + read_noise²`` where light is
Poisson (Janesick 2007). Variances are of differences of two frames in succession, which no fixed pattern
enters; each block of pixels is first brought to the same mean in both, so a lamp that drifts or flickers
adds nothing. Hot and saturated pixels are left out. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.metrics import saturation_level

BLOCK = 16
"""Edge of the blocks, pixels, in which light is taken to be even enough to be scaled."""
RESAMPLES = 300
_PAIRS = 200

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CameraResult:
    """The measured camera, counts; intervals of 95 %. Its file has fields of the same names.

    Attributes
    ----------
    gain : float
        Counts per photon (photoelectron).
    figures : mapping
        signal (mean light of the flat series above the offset), hot_pixels (whose dark level or noise stands
        out), saturated_share ...
    """

    offset: float
    offset_interval: Interval
    read_noise: float
    read_noise_interval: Interval
    gain: float
    gain_interval: Interval
    figures: dict[str, Any]
    warnings: tuple[str, ...]


def measure_camera(
    dark: NDArray[np.floating],
    flat: NDArray[np.floating],
    *,
    full: float | None = None,
    names: tuple[str, str] = ("the dark series", "the flat series"),
    seed: int = 0,
) -> CameraResult:
    """Return what two series (N, Y, X) of the same camera say about it, counts.

    `full` is the count from which on a pixel is saturated; None: what many pixels share as the highest value.

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
    calm = _blocks(~hot)
    offset, offset_interval = _mean(_blocks(level), calm, rng)
    read2, (read2_low, read2_high) = _mean(_blocks(noise2), calm, rng)
    read_noise = float(np.sqrt(read2))
    if full is None:
        full = saturation_level(flat, least=max(50, len(flat))) or np.inf
    points = _points(flat, _blocks(level), _blocks(noise2), calm, len(dark), float(full))
    typical = float(np.median(flat))
    if typical < offset + max(read_noise, 1.0):
        raise InputFileError(
            f"{names[1]} is no brighter than {names[0]} ({typical:.4g} against {offset:.4g} counts): take it "
            "with light, and name the dark series first."
        )
    saturated_share = float(np.mean(flat >= full))
    if len(points) < 4:
        raise InputFileError(
            f"{names[1]}: {saturated_share:.0%} of the pixels are saturated or dark: choose a light that "
            "gives a quarter to three quarters of the camera's range."
        )
    gain = _slope(points)
    if gain <= 0:
        raise InputFileError(
            f"The noise of {names[1]} does not grow with its light: was it averaged, or filtered? Take raw "
            "frames."
        )
    draws = rng.integers(0, len(points), size=(RESAMPLES, len(points)))
    low, high = np.percentile([_slope(points[row]) for row in draws], (2.5, 97.5))
    known_to, frames = 0.5 * float(high - low) / gain, (len(dark), len(flat))
    return CameraResult(
        offset=offset,
        offset_interval=offset_interval,
        read_noise=read_noise,
        read_noise_interval=(float(np.sqrt(read2_low)), float(np.sqrt(read2_high))),
        gain=gain,
        gain_interval=(float(low), float(high)),
        figures={
            "signal": float(np.average(points[:, 0], weights=points[:, 2])),
            "dark_frames": len(dark),
            "flat_frames": len(flat),
            "hot_pixels": int(np.count_nonzero(hot)),
            "saturated_share": saturated_share,
        },
        warnings=tuple(
            _warnings(points, gain, known_to, frames, read_noise, float(hot.mean()), saturated_share)
        ),
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
    """Return which pixels (Y, X) are far above the bulk, which may be of equal whole counts."""
    middle = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), 0.005 * abs(middle), 0.3)
    return np.asarray(values > middle + 7.0 * spread)


def _blocks(image: NDArray[Any]) -> NDArray[Any]:
    """Return an image (Y, X) as blocks (B, pixels); what does not fill a block is left out."""
    edges = [length // max(round(length / BLOCK), 1) for length in image.shape]
    rows, columns = (length // edge for length, edge in zip(image.shape, edges, strict=True))
    whole = image[: rows * edges[0], : columns * edges[1]]
    return whole.reshape(rows, edges[0], columns, edges[1]).swapaxes(1, 2).reshape(rows * columns, -1)


def _mean(
    values: NDArray[np.float64], chosen: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, Interval]:
    """Return the mean over chosen pixels (B, pixels), and its interval from resampled blocks."""
    sums, counts = (values * chosen).sum(axis=1), chosen.sum(axis=1)
    draws = rng.integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / np.maximum(counts[draws].sum(axis=1), 1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(sums.sum() / max(counts.sum(), 1)), (float(low), float(high))


def _points(
    flat: NDArray[np.floating],
    level: NDArray[np.float64],
    noise2: NDArray[np.float64],
    calm: NDArray[np.bool_],
    dark_frames: int,
    full: float,
) -> NDArray[np.float64]:
    """Return (P, 3): signal, variance less read noise, and pixels of each block and pair of frames."""
    found = [np.zeros((0, 3))]
    starts = np.arange(0, len(flat) - 1, 2)
    if len(starts) > _PAIRS:
        starts = starts[np.linspace(0, len(starts) - 1, _PAIRS).astype(int)]
    for start in starts:
        pair = np.stack([_blocks(flat[n].astype(np.float64)) for n in (start, start + 1)])
        good = calm & (pair < full).all(axis=0)
        count = good.sum(axis=1)
        light = ((pair - level) * good).sum(axis=2) / np.maximum(count, 1)
        # Where some pixels of a block are at the limit, the others are those that noise kept below it.
        usable = (count > 0.5 * BLOCK) & (light > 0).all(axis=0) & (pair < full).all(axis=(0, 2))
        pair, good, count, light = pair[:, usable], good[usable], count[usable], light[:, usable]
        mean = light.mean(axis=0)
        ratio = mean / light
        # Each block's two means are set equal, which takes one degree of freedom.
        scaled = (pair - level[usable]) * ratio[:, :, None]
        variance = 0.5 * (good * (scaled[0] - scaled[1]) ** 2).sum(axis=1) / (count - 1)
        # What is scaled brings its read noise along, as the square, and its photons' noise in proportion. The
        # dark level that was taken off has noise of its own, which unequal factors do not cancel.
        own = (ratio[0] - ratio[1]) ** 2 / dark_frames
        read2 = (noise2[usable] * calm[usable]).sum(axis=1) / calm[usable].sum(axis=1)
        excess = (variance - 0.5 * (ratio[0] ** 2 + ratio[1] ** 2 + own) * read2) / ratio.mean(axis=0)
        found.append(np.stack([mean, excess, count], axis=1))
    return np.concatenate(found)


def _slope(points: NDArray[np.float64]) -> float:
    """Return the slope of variance on signal through the origin; a variance's own spread grows with it."""
    signal, excess, pixels = points.T
    typical = 0.1 * float(np.average(signal, weights=pixels))
    trust = pixels / np.maximum(signal, typical) ** 2
    return float(np.sum(trust * signal * excess) / np.sum(trust * signal**2))


def _warnings(
    points: NDArray[np.float64],
    gain: float,
    known_to: float,
    frames: tuple[int, int],
    read_noise: float,
    hot_share: float,
    saturated_share: float,
) -> Iterator[str]:
    if min(frames) < 10:
        yield f"{frames[0]} dark and {frames[1]} flat frames are few: take 20 of each or more"
    if saturated_share > 0.001:
        yield f"{saturated_share:.1%} of the flat series is saturated and was left out: lower the light"
    if read_noise < 0.5:
        yield (
            f"a read noise of {read_noise:.2g} counts is below the step of a count: rounding hides it, so it "
            "is an upper limit"
        )
    if hot_share > 0.01:
        yield f"{hot_share:.1%} of the pixels are hot: cool the camera, or shorten the exposure"
    signal = points[:, 0]
    low, high = np.percentile(signal, (20, 80))
    if high > 1.5 * max(low, 1e-9):
        dim, bright = (
            np.sum(part[:, 1] * part[:, 2]) / np.sum(part[:, 0] * part[:, 2])
            for part in (points[signal <= low], points[signal >= high])
        )
        if abs(bright - dim) > 0.15 * gain:
            yield (
                f"variance does not follow the mean in a straight line ({dim:.3g} counts per photon where "
                f"dim, {bright:.3g} where bright): the camera is not linear, or processes its images"
            )
    if known_to > 0.1:
        yield f"the gain is known to ±{known_to:.0%} only: take more frames, or a brighter scene"
