"""Beads in a z-stack: where they are, and how bright each is at every position of the stage.

Owns everything lateral. The beam does not change across its length, so all beads share one lateral spot, at
every depth; what changes along z is their brightness alone. A bead's trace is therefore a linear fit of that
spot, its neighbours' spots and a local background, the same fit for all frames. That copes with crowded
fields, gradients and an offset, and a spot of slightly wrong shape scales all values of a trace alike. Pure
functions on arrays (Z, Y, X) that are sorted by z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from skimage.feature import peak_local_max

SCALES = (0.8, 1.1, 1.6, 2.2, 3.1, 4.4, 6.2)
"""Standard deviations of a spot that are tried, pixels."""
MOST = 400
"""Beads that are used at most, the brightest; more make nothing better."""
_LEAST_SCORE = 4.0
_DRIFT_ROUNDS = 3

Spot = tuple[float, float]
"""Standard deviations (y, x) of the spot, pixels."""


@dataclass(frozen=True, slots=True)
class Traces:
    """Brightness of the beads of a stack along z.

    Attributes
    ----------
    brightness : (N, Z) float64
        Background-free; in units that differ from bead to bead.
    noise : (N,) float64
        Standard deviation of a value of each trace.
    drift_px : float
        Lateral drift that was taken out.
    overlapping, saturated : int
        Beads that were left out because of a close neighbour, or because the camera was at its limit.
    """

    brightness: NDArray[np.float64]
    noise: NDArray[np.float64]
    spot: Spot
    drift_px: float
    overlapping: int
    saturated: int


def without_hot_pixels(frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return (Z, Y, X) with single hot pixels replaced by their surroundings, and how many were hot always.

    A bead lights its neighbours too; a hot pixel, or a cosmic ray, does not.
    """
    always, _ = _hot(np.percentile(frames, 25, axis=0), 8.0)
    cleaned = np.array(frames, dtype=np.float32)
    for frame in cleaned:
        hot, around = _hot(frame, 10.0)
        hot |= always
        frame[hot] = around[hot]
    return cleaned, int(np.count_nonzero(always))


def _hot(image: NDArray[np.floating], sigmas: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which pixels stick out without their neighbours doing so, and the mean of the pixels around."""
    image = np.asarray(image, np.float64)
    near, wide = (ndimage.uniform_filter(image, width, mode="nearest") for width in (3, 5))
    beside = (9.0 * near - image) / 8.0
    around = (25.0 * wide - 9.0 * near) / 16.0
    above = image - around
    noise = max(_spread(image - beside), 1e-6)
    return (above > sigmas * noise) & (beside - around < 0.15 * above), around


def find_traces(frames: NDArray[np.float32], full: float | None) -> Traces:
    """Return the traces of all beads that can be told apart in `frames` (Z, Y, X), which are in order of z.

    `full` is the count from which on a pixel is saturated, None where unknown.
    """
    drift = np.zeros((len(frames), 2))
    steady = frames
    for turn in range(_DRIFT_ROUNDS):
        scale = _scale(steady)
        place, spot = _refined(steady, _detect(steady, scale), scale)
        if len(place) == 0:
            return Traces(np.zeros((0, len(frames))), np.zeros(0), spot, 0.0, 0, 0)
        step = _drift(steady, place, spot)
        if turn == _DRIFT_ROUNDS - 1 or np.abs(step).max() < 0.15:
            break
        drift += step
        moved = [
            ndimage.shift(frame, -shift, order=1, mode="nearest")
            for frame, shift in zip(frames, drift, strict=True)
        ]
        steady = np.stack(moved)
    brightness, noise = _photometry(steady, place, spot)
    apart = _apart(place, brightness.max(axis=1), spot)
    clipped = np.zeros(len(place), bool)
    if full is not None:
        at_limit = np.asarray((frames >= full).any(axis=0))
        reach = 1.5 * np.array(spot) + np.abs(drift).max()
        clipped = np.array([at_limit[_window(frames.shape, at, reach)].any() for at in place])
    kept = apart & ~clipped
    return Traces(
        brightness[kept],
        noise[kept],
        spot,
        float(np.ptp(drift, axis=0).max()),
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
    """Return the standard deviation of a spot, pixels: the scale at which the brightest stand out most."""
    image = _excess(frames)
    answers = np.stack([-(s**2) * ndimage.gaussian_laplace(image, s, mode="nearest") for s in SCALES])
    top = answers.max(axis=0)
    if top.max() <= 0:  # nothing in the stack differs from anything
        return SCALES[0]
    peaks = top == ndimage.maximum_filter(top, size=5)
    order = np.argsort(top[peaks])[::-1][:30]
    best, weight = answers.argmax(axis=0)[peaks][order], top[peaks][order]
    return SCALES[int(np.median(best[weight > 0.3 * weight[:5].mean()]))]


def _detect(frames: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    """Return the places (N, 2) of what is round, as large as a spot and brighter for a while."""

    def sieved(image: NDArray[np.float32]) -> NDArray[np.float32]:
        narrow, wide = (ndimage.gaussian_filter(image, size * scale, mode="nearest") for size in (0.8, 2.2))
        return np.asarray(narrow - wide)

    half = len(frames) // 2
    noise = _spread(sieved(frames[half] - frames[half - 1])) / math.sqrt(2.0)
    found = peak_local_max(  # type: ignore[no-untyped-call]
        sieved(_excess(frames)),
        min_distance=math.ceil(1.2 * scale),
        threshold_abs=_LEAST_SCORE * max(noise, 1e-6),
        exclude_border=math.ceil(2.0 * scale),
        num_peaks=MOST,
    )
    return np.asarray(found, np.float64)


def _refined(
    frames: NDArray[np.float32], place: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], Spot]:
    """Return better places (N, 2), and the spot, from each bead's own image."""
    refined = place.copy()
    widths = []
    for number, at in enumerate(place):
        window = _window(frames.shape, at, np.full(2, 3.0 * scale))
        corner = np.array([window[0].start, window[1].start])
        found = _fit_spot(_bead_image(frames, at, window, scale), at - corner, scale)
        if np.hypot(*(found[:2] + corner - at)) < 1.5 * scale:
            refined[number] = found[:2] + corner
            widths.append(found[2:4])
    sy, sx = np.median(widths[:60], axis=0) if widths else (scale, scale)
    return refined, (float(sy), float(sx))


def _bead_image(
    frames: NDArray[np.float32], place: NDArray[np.float64], window: tuple[slice, slice], scale: float
) -> NDArray[np.float64]:
    """Return the mean of a patch's frames where the bead is bright, less that of those where it is dark."""
    patch = frames[:, *window].astype(np.float64)
    inner = frames[:, *_window(frames.shape, place, np.full(2, max(round(scale), 1) - 1.0))]
    light = ndimage.median_filter(inner.mean(axis=(1, 2)), size=3, mode="nearest")
    low, high = np.percentile(light, 15), light.max()
    on, off = light > low + 0.6 * (high - low), light < low + 0.3 * (high - low)
    return np.asarray(patch[on].mean(axis=0) - patch[off].mean(axis=0))


def _fit_spot(image: NDArray[np.float64], start: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return place (y, x), standard deviations (y, x), height and floor of the spot on a patch (h, w)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    base = float(np.median(image))
    scaled = (image - base) / max(float(image.max()) - base, 1e-9)

    def misfit(p: NDArray[np.float64]) -> NDArray[np.float64]:
        y, x, sy, sx, height, floor = p
        shape = np.exp(-0.5 * (((rows - y) / sy) ** 2 + ((columns - x) / sx) ** 2))
        return np.asarray((height * shape + floor - scaled).ravel())

    low, high = min(0.35 * scale, 0.4), 2.5 * scale
    found = optimize.least_squares(
        misfit,
        [*np.clip(start, 0, np.array(image.shape) - 1.0), scale, scale, 1.0, 0.0],
        bounds=([-1, -1, low, low, 0, -2], [*image.shape, high, high, 4, 2]),
        loss="soft_l1",
        f_scale=0.1,
        max_nfev=20,
    )
    return np.asarray(found.x)


def _window(
    shape: tuple[int, ...], place: NDArray[np.float64], reach: NDArray[np.float64]
) -> tuple[slice, slice]:
    """Return the patch that reaches so far round a place, and one pixel farther, within (Z, Y, X)."""
    rows, columns = (
        slice(max(centre - far, 0), min(centre + far + 1, length))
        for centre, far, length in zip(
            np.rint(place).astype(int), np.ceil(reach).astype(int) + 1, shape[1:], strict=True
        )
    )
    return rows, columns


def _design(
    shape: tuple[int, ...], number: int, place: NDArray[np.float64], spot: Spot
) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
    """Return a bead's patch and the fit's columns (pixels, K).

    They are the bead, its slopes along y and x, a plane, and its neighbours. To first order a shifted spot is
    the spot plus the shift times these slopes.
    """
    window = _window(shape, place[number], 4.0 * np.array(spot))
    y, x = np.mgrid[window].astype(np.float64)
    near = np.all(np.abs(place - place[number]) < np.array(y.shape) / 2 + 2.5 * np.array(spot), axis=1)
    near[number] = False

    def image(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-0.5 * (((y - at[0]) / spot[0]) ** 2 + ((x - at[1]) / spot[1]) ** 2)))

    own, (y0, x0) = image(place[number]), place[number]
    slopes = [own * (y - y0) / spot[0] ** 2, own * (x - x0) / spot[1] ** 2]
    plane = [np.ones_like(y), (y - y.mean()) / y.shape[0], (x - x.mean()) / y.shape[1]]
    columns = [own, *slopes, *plane, *(image(other) for other in place[near])]
    return window, np.stack([column.ravel() for column in columns], axis=1)


def _fitted(
    frames: NDArray[np.float32], window: tuple[slice, slice], design: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the fit's coefficients (K, Z), and the standard deviation (K,) of each that noise makes."""
    pixels = frames[:, *window].reshape(len(frames), -1).T.astype(np.float64)
    # Neighbours that nearly coincide make the fit nearly singular; those beads are left out later.
    inverse = np.linalg.pinv(design, rcond=1e-3)
    coefficients = inverse @ pixels
    spread = np.sqrt(np.median(np.mean((pixels - design @ coefficients) ** 2, axis=0)))
    return coefficients, spread * np.linalg.norm(inverse, axis=1)


def _photometry(
    frames: NDArray[np.float32], place: NDArray[np.float64], spot: Spot
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return brightness (N, Z) and noise (N,) of every bead."""
    brightness, noise = np.zeros((len(place), len(frames))), np.zeros(len(place))
    for number in range(len(place)):
        window, design = _design(frames.shape, number, place, spot)
        coefficients, spread = _fitted(frames, window, np.delete(design, (1, 2), axis=1))
        brightness[number], noise[number] = coefficients[0], max(spread[0], 1e-9)
    return brightness, noise


def _drift(frames: NDArray[np.float32], place: NDArray[np.float64], spot: Spot) -> NDArray[np.float64]:
    """Return the lateral shift (Z, 2) of every frame, pixels, smooth along z."""
    shifts = np.zeros((len(frames), 2))
    weight = np.zeros(len(frames))
    for number in range(min(len(place), 100)):
        coefficients, spread = _fitted(frames, *_design(frames.shape, number, place, spot))
        light = coefficients[0]
        light[light < 4.0 * spread[0]] = 0.0
        most = 2.0 * max(spot)
        shift = np.clip(coefficients[1:3] / np.maximum(light, 1e-9), -most, most)
        shifts += (shift * light**2).T
        weight += light**2
    seen = np.flatnonzero(weight > 0.02 * weight.max())
    if len(seen) < 4:
        return np.zeros((len(frames), 2))
    # Outside of what was seen a polynomial runs away.
    index = np.clip(np.arange(len(frames)), seen[0], seen[-1])
    drift = np.empty((len(frames), 2))
    for axis in range(2):
        shift = shifts[seen, axis] / weight[seen]
        degree = min(3, len(seen) // 4)
        drift[:, axis] = np.polynomial.Polynomial.fit(seen, shift, degree, w=np.sqrt(weight[seen]))(index)
    return drift - np.median(drift, axis=0)


def _apart(place: NDArray[np.float64], peak: NDArray[np.float64], spot: Spot) -> NDArray[np.bool_]:
    """Return which beads have no neighbour so close that their light cannot be told apart."""
    scaled = place / np.array(spot)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    matters = peak[None, :] > 0.05 * peak[:, None]
    return np.asarray(~np.any((distance < 2.5) & matters, axis=1))
