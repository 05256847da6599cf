"""Beads in a z-stack: where they are, and how bright each is at every position of the stage.

Owns everything lateral. The beam does not change across its length, so all beads share one lateral
spot, at every depth; what changes along z is their brightness alone. So a bead's trace is a linear fit of
that spot, its neighbours' spots and a local background, the same fit for all frames. That takes care of
crowded fields, of gradients and of an offset, and a spot of slightly wrong shape scales all values of a
trace alike. Pure functions on arrays (Z, Y, X) that are sorted by z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, optimize

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALES = (0.8, 1.1, 1.6, 2.2, 3.1, 4.4, 6.2)
"""Standard deviations of a spot that are tried, pixels."""
MOST = 400
"""Beads that are used at most, the brightest; more make nothing better."""
_LEAST_SCORE = 7.0
_DRIFT_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Traces:
    """What the beads of a stack looked like along z.

    Attributes
    ----------
    place : (N, 2) float64
        y, x of each bead, pixels.
    brightness : (N, Z) float64
        Background-free; in units that differ from bead to bead by their brightness only.
    noise : (N,) float64
        Standard deviation of a value of each trace.
    spot : (y, x)
        Standard deviations of the spot, pixels.
    drift : (Z, 2) float64
        Lateral drift that was taken out, pixels.
    overlapping, saturated : int
        Beads that were left out because of a close neighbour, or because the camera was at its limit.
    """

    place: NDArray[np.float64]
    brightness: NDArray[np.float64]
    noise: NDArray[np.float64]
    spot: tuple[float, float]
    drift: NDArray[np.float64]
    overlapping: int
    saturated: int


def without_hot_pixels(frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return (Z, Y, X) with single hot pixels replaced by their neighbourhood, and how many were hot always.

    A bead lights its neighbours too; a hot pixel, or a cosmic ray, does not.
    """
    cleaned = np.array(frames, dtype=np.float32)
    dark = np.percentile(frames, 25, axis=0)
    rows, columns, _ = _lonely(dark, 8.0)
    always = len(rows)
    for frame in cleaned:
        frame[rows, columns] = _around(frame, rows, columns)
        y, x, around = _lonely(frame, 10.0)
        frame[y, x] = around
    return cleaned, always


def _lonely(
    image: NDArray[np.floating], sigmas: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]:
    """Return rows, columns and surroundings of pixels that stick out without their neighbours doing so."""
    padded = np.pad(image, 1, mode="edge")
    beside = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4.0
    excess = image - beside
    noise = max(_spread(excess), 1e-6)
    rows, columns = np.nonzero(excess > 0.8 * sigmas * noise)
    around = _around(image, rows, columns)
    above, next_to = image[rows, columns] - around, beside[rows, columns] - around
    found = (above > sigmas * noise) & (next_to < 0.15 * above)
    return rows[found], columns[found], around[found]


def _around(
    image: NDArray[np.floating], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Return the median of the 5 x 5 pixels round each of some places."""
    if len(rows) == 0:
        return np.zeros(0)
    padded = np.pad(image, 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return np.asarray(np.median(windows[rows, columns], axis=(1, 2)))


def find_traces(frames: NDArray[np.float32], full: float | None) -> Traces:
    """Return the traces of all beads that can be told apart in `frames` (Z, Y, X), which are in order of z.

    Parameters
    ----------
    full : float or None
        Counts from which on a pixel is saturated.
    """
    drift = np.zeros((len(frames), 2))
    steady = frames
    for turn in range(_DRIFT_ROUNDS):
        scale = _scale(steady)
        place, score = _detect(steady, scale)
        if len(place) == 0:
            break
        place, spot = _refine(steady, place, score, scale)
        step = _drift(steady, place, spot)
        if turn == _DRIFT_ROUNDS - 1 or np.abs(step).max() < 0.15:
            break
        drift += step
        steady = np.stack(
            [
                ndimage.shift(frame, -shift, order=1, mode="nearest")
                for frame, shift in zip(frames, drift, strict=True)
            ]
        )
    if len(place) == 0:
        none = np.zeros((0, len(frames)))
        return Traces(np.zeros((0, 2)), none, np.zeros(0), (1.0, 1.0), drift, 0, 0)
    brightness, noise = _photometry(steady, place, spot)
    peak = brightness.max(axis=1)
    apart = _apart(place, peak, spot)
    clipped = _clipped(frames, place, drift, spot, full) if full is not None else np.zeros(len(place), bool)
    kept = apart & ~clipped
    return Traces(
        place[kept],
        brightness[kept],
        noise[kept],
        spot,
        drift,
        int(np.count_nonzero(~apart)),
        int(np.count_nonzero(apart & clipped)),
    )


def _spread(values: NDArray[np.floating]) -> float:
    """Return the standard deviation of the bulk of `values`."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _excess(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (Y, X): how much brighter each pixel is for some frames in a row than in its dark ones."""
    window = max(min(5, len(frames) // 4), 1)
    top = ndimage.uniform_filter1d(frames, window, axis=0, mode="nearest").max(axis=0)
    return np.asarray(top - np.percentile(frames, 20, axis=0), np.float32)


def _scale(frames: NDArray[np.float32]) -> float:
    """Return the standard deviation of a spot, pixels, from the scale at which the brightest answer best."""
    image = _excess(frames)
    answers = np.stack([-(s**2) * ndimage.gaussian_laplace(image, s, mode="nearest") for s in SCALES])
    top = answers.max(axis=0)
    if top.max() <= 0:  # nothing in the stack differs from anything
        return SCALES[0]
    peaks = top == ndimage.maximum_filter(top, size=5)
    order = np.argsort(top[peaks])[::-1][:30]
    best = answers.argmax(axis=0)[peaks][order]
    weight = top[peaks][order]
    good = weight > 0.3 * weight[:5].mean()
    return float(SCALES[int(np.median(best[good]))])


def _detect(frames: NDArray[np.float32], scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return places (N, 2) and scores (N,) of what is round, as large as a spot and brighter for a while."""
    narrow, wide = 0.8 * scale, 2.2 * scale
    sieved = np.empty_like(frames)
    for frame, out in zip(frames, sieved, strict=True):
        np.subtract(
            ndimage.gaussian_filter(frame, narrow, mode="nearest"),
            ndimage.gaussian_filter(frame, wide, mode="nearest"),
            out=out,
        )
    noise = np.median(np.abs(np.diff(sieved, axis=0)), axis=0) / (0.6745 * np.sqrt(2.0))
    noise = np.maximum(_calm(noise, int(8 * scale)), 1e-6)
    sieved -= np.percentile(sieved, 20, axis=0)
    sieved /= noise
    score = np.full(frames.shape[1:], -np.inf)
    window = 2
    while window <= max(len(frames) // 2, 2):
        longest = ndimage.uniform_filter1d(sieved, window, axis=0, mode="nearest").max(axis=0) * np.sqrt(
            window
        )
        score = np.maximum(score, (longest - np.median(longest)) / max(_spread(longest), 1e-6))
        window *= 2
    size = int(2 * np.ceil(1.2 * scale) + 1)
    peaks = (score == ndimage.maximum_filter(score, size=size)) & (score > _LEAST_SCORE)
    margin = int(np.ceil(2.0 * scale))
    peaks[:margin], peaks[-margin:], peaks[:, :margin], peaks[:, -margin:] = False, False, False, False
    place = np.argwhere(peaks).astype(np.float64)
    order = np.argsort(score[peaks])[::-1][:MOST]
    return place[order], score[peaks][order]


def _calm(noise: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return (Y, X): the noise of each neighbourhood, from tiles, so that no bead counts as noise."""
    coarse = noise[: len(noise) // size * size, : noise.shape[1] // size * size]
    if coarse.size == 0:
        return np.full_like(noise, np.median(noise))
    tiles = coarse.reshape(len(coarse) // size, size, -1, size)
    medians = ndimage.median_filter(np.median(tiles, axis=(1, 3)), size=3, mode="nearest")
    rows = np.minimum(np.arange(len(noise)) // size, len(medians) - 1)
    columns = np.minimum(np.arange(noise.shape[1]) // size, medians.shape[1] - 1)
    return np.asarray(medians[np.ix_(rows, columns)], np.float32)


def _refine(
    frames: NDArray[np.float32], place: NDArray[np.float64], score: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return better places (N, 2), and the spot's standard deviations (y, x), from each bead's own image."""
    radius = int(np.ceil(3.0 * scale)) + 1
    image_of = [_bead_image(frames, spot, radius, scale) for spot in place]
    refined = place.copy()
    widths = []
    for number, (image, corner) in enumerate(image_of):
        y, x, sy, sx = _fit_spot(image, place[number] - corner, scale)
        if np.hypot(y - (place[number] - corner)[0], x - (place[number] - corner)[1]) < 1.5 * scale:
            refined[number] = corner + np.array([y, x])
            if number < 60:
                widths.append((sy, sx))
    if not widths:
        return refined, (scale, scale)
    sy, sx = np.median(np.array(widths), axis=0)
    return refined, (float(sy), float(sx))


def _bead_image(
    frames: NDArray[np.float32], place: NDArray[np.float64], radius: int, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a patch (h, w) of the frames where the bead is bright less those where not, and its corner."""
    y, x = np.rint(place).astype(int)
    top, left = max(y - radius, 0), max(x - radius, 0)
    patch = frames[:, top : y + radius + 1, left : x + radius + 1].astype(np.float64)
    near = max(round(scale), 1)
    inner = frames[:, max(y - near, 0) : y + near + 1, max(x - near, 0) : x + near + 1].mean(axis=(1, 2))
    light = ndimage.median_filter(inner, size=3, mode="nearest")
    low, high = np.percentile(light, 15), light.max()
    on, off = light > low + 0.6 * (high - low), light < low + 0.3 * (high - low)
    image = patch[on].mean(axis=0) - patch[off].mean(axis=0)
    return image, np.array([top, left], np.float64)


def _fit_spot(
    image: NDArray[np.float64], start: NDArray[np.float64], scale: float
) -> tuple[float, float, float, float]:
    """Return place (y, x) and standard deviations (y, x) of the spot on a patch (h, w)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]

    def parts(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        y, x = (rows - p[0]) / p[2], (columns - p[1]) / p[3]
        return y, x, np.exp(-0.5 * (y**2 + x**2))

    def misfit(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((p[4] * parts(p)[2] + p[5] - scaled).ravel())

    def slopes(p: NDArray[np.float64]) -> NDArray[np.float64]:
        y, x, shape = parts(p)
        light = p[4] * shape
        columns_ = [light * y / p[2], light * x / p[3], light * y**2 / p[2], light * x**2 / p[3], shape]
        return np.stack([*(c.ravel() for c in columns_), np.ones(scaled.size)], axis=1)

    base = float(np.median(image))
    scaled = (image - base) / max(float(image.max()) - base, 1e-9)
    low, high = min(0.35 * scale, 0.4), 2.5 * scale
    start = np.clip(start, 0, np.array(image.shape) - 1.0)
    found = optimize.least_squares(
        misfit,
        [*start, scale, scale, 1.0, 0.0],
        slopes,
        bounds=([-1, -1, low, low, 0, -2], [*image.shape, high, high, 4, 2]),
        loss="soft_l1",
        f_scale=0.1,
        max_nfev=20,
    )
    y, x, sy, sx = found.x[:4]
    return float(y), float(x), float(sy), float(sx)


def _spot(
    shape: tuple[int, int], corner: NDArray[np.int64], place: NDArray[np.float64], spot: tuple[float, float]
) -> NDArray[np.float64]:
    """Return a spot's image on a patch, integrated over the pixels, unit peak."""
    from scipy.special import erf

    def line(length: int, centre: float, sigma: float) -> NDArray[np.float64]:
        edges = (np.arange(length + 1) - 0.5 - centre) / (np.sqrt(2.0) * sigma)
        return np.asarray(np.diff(erf(edges)) * sigma * np.sqrt(np.pi / 2.0))

    y, x = place - corner
    return np.outer(line(shape[0], y, spot[0]), line(shape[1], x, spot[1]))


def _patch(
    shape: tuple[int, ...], place: NDArray[np.float64], spot: tuple[float, float]
) -> tuple[slice, slice]:
    reach = [int(np.ceil(4.0 * sigma)) + 1 for sigma in spot]
    slices = []
    for centre, far, length in zip(np.rint(place).astype(int), reach, shape[1:], strict=True):
        slices.append(slice(max(centre - far, 0), min(centre + far + 1, length)))
    return slices[0], slices[1]


def _design(
    shape: tuple[int, ...], number: int, place: NDArray[np.float64], spot: tuple[float, float]
) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
    """Return a bead's patch and the fit's columns (pixels, K): the bead, a plane, its neighbours."""
    rows, columns = _patch(shape, place[number], spot)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    corner = np.array([rows.start, columns.start])
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    parts = [
        _spot(size, corner, place[number], spot),
        np.ones(size),
        (y - y.mean()) / size[0],
        (x - x.mean()) / size[1],
    ]
    reach = np.array(size) / 2 + 2.5 * np.array(spot)
    near = np.all(np.abs(place - place[number]) < reach, axis=1)
    near[number] = False
    parts += [_spot(size, corner, place[other], spot) for other in np.flatnonzero(near)]
    return (rows, columns), np.stack([part.ravel() for part in parts], axis=1)


def _photometry(
    frames: NDArray[np.float32], place: NDArray[np.float64], spot: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return brightness (N, Z) and noise (N,) of every bead."""
    brightness = np.empty((len(place), len(frames)))
    noise = np.empty(len(place))
    for number in range(len(place)):
        (rows, columns), design = _design(frames.shape, number, place, spot)
        pixels = frames[:, rows, columns].reshape(len(frames), -1).T.astype(np.float64)
        # Neighbours that nearly coincide make the fit nearly singular; those beads are left out later.
        inverse = np.linalg.pinv(design, rcond=1e-3)
        fitted = inverse @ pixels
        brightness[number] = fitted[0]
        left = pixels - design @ fitted
        spread = np.sqrt(np.median(np.mean(left**2, axis=0)))
        noise[number] = max(spread * float(np.linalg.norm(inverse[0])), 1e-9)
    return brightness, noise


def _drift(
    frames: NDArray[np.float32], place: NDArray[np.float64], spot: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the lateral shift (Z, 2) of every frame, pixels, smooth along z.

    First order: a shifted spot is the spot and a little of its derivative.
    """
    top = np.zeros((len(frames), 2))
    weight = np.zeros(len(frames))
    for number in range(min(len(place), 100)):
        (rows, columns), design = _design(frames.shape, number, place, spot)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        corner = np.array([rows.start, columns.start])
        slopes = []
        for axis in range(2):
            step = np.eye(2)[axis] * 0.25
            ahead = _spot(size, corner, place[number] + step, spot)
            behind = _spot(size, corner, place[number] - step, spot)
            slopes.append((ahead - behind).ravel() / 0.5)
        inverse = np.linalg.pinv(np.column_stack([design, *slopes]), rcond=1e-3)
        pixels = frames[:, rows, columns].reshape(len(frames), -1).T.astype(np.float64)
        fitted = inverse @ pixels
        light = np.maximum(fitted[0], 0.0)
        noise = np.median(np.abs(np.diff(fitted[0]))) / 0.95
        light[light < 4.0 * noise] = 0.0
        shift = np.clip(fitted[-2:] / np.maximum(light, 1e-9), -2.0 * max(spot), 2.0 * max(spot))
        top += (shift * light**2).T
        weight += light**2
    seen = weight > 0.02 * weight.max()
    if np.count_nonzero(seen) < 4 or weight.max() <= 0:
        return np.zeros((len(frames), 2))
    index = np.arange(len(frames), dtype=np.float64)
    drift = np.empty((len(frames), 2))
    for axis in range(2):
        shift = top[seen, axis] / weight[seen]
        degree = min(3, int(np.count_nonzero(seen)) // 4)
        curve = np.polynomial.Polynomial.fit(index[seen], shift, degree, w=np.sqrt(weight[seen]))
        # Outside of what was seen a polynomial runs away.
        drift[:, axis] = curve(np.clip(index, index[seen][0], index[seen][-1]))
    return drift - np.median(drift, axis=0)


def _apart(
    place: NDArray[np.float64], peak: NDArray[np.float64], spot: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return which beads have no neighbour so close that their light cannot be told apart."""
    scaled = place / np.array(spot)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    matters = peak[None, :] > 0.05 * peak[:, None]
    return np.asarray(~np.any((distance < 2.5) & matters, axis=1))


def _clipped(
    frames: NDArray[np.float32],
    place: NDArray[np.float64],
    drift: NDArray[np.float64],
    spot: tuple[float, float],
    full: float,
) -> NDArray[np.bool_]:
    reach = [int(np.ceil(1.5 * sigma + np.abs(drift).max())) for sigma in spot]
    at_limit = np.asarray((frames >= full).any(axis=0))
    clipped = np.zeros(len(place), bool)
    for number, (y, x) in enumerate(np.rint(place).astype(int)):
        patch = at_limit[max(y - reach[0], 0) : y + reach[0] + 1, max(x - reach[1], 0) : x + reach[1] + 1]
        clipped[number] = bool(patch.any())
    return clipped
