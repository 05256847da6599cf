"""From many beads' traces to one profile: alignment below a step, a robust mean, lengths, resampling.

A bead at depth z0 has the brightness ``A w(z0 - z)`` when the stage is at z: its trace runs through the
profile backwards. Depths, amplitudes and the common profile are found in turn; the profile is a chain of
straight lines through knots that are closer than the steps wherever there are beads enough, because each
bead samples it at places of its own. Pure functions in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 8
RESAMPLES = 200
_FINE = 12
"""Points per knot on which profiles are compared."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A profile (K,) on an even grid of knots `u_um`, µm from its centre; its peak is about 1."""

    u_um: NDArray[np.float64]
    value: NDArray[np.float64]

    def at(self, u_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values at any places; zero outside of the knots."""
        return np.asarray(np.interp(u_um, self.u_um, self.value, left=0.0, right=0.0))

    @property
    def spacing_um(self) -> float:
        """Distance of the knots, µm."""
        return float(self.u_um[1] - self.u_um[0])


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a profile is, µm.

    Attributes
    ----------
    fwhm_um : float
        Full width at half of the maximum.
    equivalent_um : float
        Length of the box with the same sum and the same sum of squares, (∫w)² / ∫w².
    left_um, right_um : float
        Where it crosses half of its maximum.
    """

    fwhm_um: float
    equivalent_um: float
    left_um: float
    right_um: float


@dataclass(frozen=True, slots=True)
class Aligned:
    """The common profile, and what it rests on.

    Attributes
    ----------
    curve : Curve
        Against depth minus stage position.
    depth_um, amplitude : (N,) float64
        Of the beads that were used.
    used : (N_all,) bool
        Which of the traces.
    residual : float
        Root mean square of what is left of a trace, relative to its amplitude, over the beads (median).
    samples : (R, K) float64
        The profile again, from beads drawn with replacement.
    partial : int
        Used beads whose profile the stack does not show in full.
    """

    curve: Curve
    depth_um: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    used: NDArray[np.bool_]
    residual: float
    samples: NDArray[np.float64] = field(repr=False)
    partial: int


def align(
    traces: NDArray[np.float64], noise: NDArray[np.float64], z_um: NDArray[np.float64], *, seed: int = 0
) -> Aligned | None:
    """Return the profile that all traces share, or None where no trace shows one.

    Parameters
    ----------
    traces : (N, Z)
        Background-free brightness; z ascending.
    noise : (N,)
        Standard deviation of a value.
    z_um : (Z,)
        Stage positions; they need not be even.
    """
    step = typical_step(z_um)
    centre, width, complete, peak = _first_look(traces, z_um)
    bright = peak > 6.0 * noise
    inside = (centre > z_um[0]) & (centre < z_um[-1])
    good = bright & inside & complete
    if np.count_nonzero(good) < 3:
        good = bright & inside
    if not good.any():
        return None
    length = _common_length(width[good & complete] if (good & complete).any() else width[good])
    # Two beads above one another look like one long one; noise looks short.
    used = good & (width > 0.5 * length) & (width < 1.6 * length)
    if not used.any():
        used = good
    depth, amplitude = centre.copy(), np.maximum(peak, 1e-12)
    curve = _trapezoid(length, step)
    weight = np.ones_like(traces)
    for turn in range(ROUNDS):
        reach = length if turn == 0 else (0.25 * length if turn < 3 else 1.0 * step)
        numbers = np.flatnonzero(used)
        for number in numbers:
            depth[number], amplitude[number] = _place(
                traces[number], z_um, curve, depth[number], reach, weight[number]
            )
        spacing = step * min(max(6.0 / len(numbers), 0.25), 1.0)
        half = 0.5 * (z_um[-1] - z_um[0])
        span = (
            min(2.5 * length + 4.0 * step, max(half, 1.2 * length))
            if turn < 3
            else min(3.5 * length + 4.0 * step, 1.8 * half)
        )
        knots = _knots(span, spacing)
        before = _misfit(traces[used], z_um, curve, depth[used], amplitude[used]) if turn > 1 else None
        curve, weight_used = _fit(
            traces[used], amplitude[used], noise[used], depth[used], z_um, knots, before
        )
        weight[used] = weight_used
        curve, shift, scale = _centred(curve)
        depth += shift
        amplitude *= scale
        length = lengths(curve).fwhm_um
        if turn >= 2:
            used = _without_outliers(traces, noise, z_um, curve, depth, amplitude, used)
    left = _misfit(traces, z_um, curve, depth, amplitude)
    share = _seen_share(curve, depth, z_um)
    bead = _weights(amplitude[used], noise[used], left[used])
    samples = _resampled(
        traces[used], amplitude[used], depth[used], z_um, curve.u_um, bead[:, None] * weight[used], seed
    )
    whole = used & (share > 0.98)
    if np.count_nonzero(whole) >= 3:
        stretch = _stretch(traces[whole], amplitude[whole], depth[whole], z_um, curve)
        curve = Curve(curve.u_um * stretch, curve.value)
    return Aligned(
        curve,
        depth[used],
        amplitude[used],
        used,
        float(np.median(left[used])),
        samples,
        int(np.count_nonzero(share[used] < 0.98)),
    )


def _stretch(
    traces: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    depth: NDArray[np.float64],
    z_um: NDArray[np.float64],
    curve: Curve,
) -> float:
    """Return the factor by which a profile is too short, from the light of whole beads.

    A steep edge that falls between two images may lie anywhere there, and beads that are all moved alike fit
    as well. But beads lie at any phase of the steps, so the mean of their sums is the profile's integral,
    wherever its edges were put.
    """
    lit = np.flatnonzero(curve.value > 0.02)
    edge = typical_step(z_um)
    low, high = curve.u_um[lit[0]] - edge, curve.u_um[lit[-1]] + edge
    u = depth[:, None] - z_um[None, :]
    inside = (u > low) & (u < high)
    sums = (np.where(inside, traces, 0.0) * np.gradient(z_um)).sum(axis=1) / amplitude
    area = float(curve.value[(curve.u_um >= low) & (curve.u_um <= high)].sum()) * curve.spacing_um
    most = edge / max(lengths(curve).fwhm_um, edge)
    return float(np.clip(np.median(sums) / area if len(sums) < 8 else sums.mean() / area, 1 - most, 1 + most))


def typical_step(z_um: NDArray[np.float64]) -> float:
    """Return the distance of neighbouring stage positions, µm."""
    steps = np.diff(z_um)
    return float(np.median(steps[steps > 1e-6 * max(float(np.ptp(z_um)), 1e-12)]))


def lengths(curve: Curve) -> Lengths:
    """Return how long a profile is."""
    value, u = curve.value, curve.u_um
    top, at = _maximum(curve)
    half = 0.5 * top
    left = right = at
    while left > 0 and value[left - 1] >= half:
        left -= 1
    while right < len(value) - 1 and value[right + 1] >= half:
        right += 1
    low = u[left] if left == 0 else _crossing(u[left - 1 : left + 1], value[left - 1 : left + 1], half)
    high = (
        u[right]
        if right == len(value) - 1
        else _crossing(u[right : right + 2], value[right : right + 2], half)
    )
    square = float(np.sum(value**2)) * curve.spacing_um
    whole = float(np.sum(value)) * curve.spacing_um
    return Lengths(high - low, whole**2 / max(square, 1e-300), low, high)


def _crossing(u: NDArray[np.float64], value: NDArray[np.float64], level: float) -> float:
    if value[1] == value[0]:
        return float(u.mean())
    share = (level - value[0]) / (value[1] - value[0])
    return float(u[0] + share * (u[1] - u[0]))


def _maximum(curve: Curve) -> tuple[float, int]:
    """Return the peak's height, which noise must not raise, and where it is.

    A parabola through a seventh of the length on either side follows a rounded top and averages a flat one.
    """
    value = curve.value
    at = int(np.argmax(_smooth(value, 3)))
    above = int(np.count_nonzero(value > 0.5 * value[at]))
    near = max(above // 7, 1)
    if near < 2:
        return float(_smooth(value, 3)[at] if above > 6 else value[at]), at
    low, high = max(at - near, 0), min(at + near + 1, len(value))
    x = np.arange(low, high) - at
    c = np.polynomial.polynomial.polyfit(x, value[low:high], 2)
    fitted = np.polynomial.polynomial.polyval(x, c)
    return float(fitted.max()), at


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _first_look(
    traces: NDArray[np.float64], z_um: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return centre (µm), width (µm), whether both ends are seen, and peak of each trace."""
    count = len(traces)
    centre, width, peak = np.zeros(count), np.zeros(count), np.zeros(count)
    complete = np.zeros(count, bool)
    for number, trace in enumerate(traces):
        calm = _median3(trace)
        at = int(np.argmax(_smooth(calm, 3)))
        near = calm[max(at - 1, 0) : at + 2]
        peak[number] = top = float(near.mean())
        if top <= 0:
            continue
        left = right = at
        while left > 0 and calm[left - 1] >= 0.5 * top:
            left -= 1
        while right < len(calm) - 1 and calm[right + 1] >= 0.5 * top:
            right += 1
        complete[number] = left > 0 and right < len(calm) - 1
        low = (
            z_um[left]
            if left == 0
            else _crossing(z_um[left - 1 : left + 1], calm[left - 1 : left + 1], 0.5 * top)
        )
        high = (
            z_um[right]
            if right == len(calm) - 1
            else _crossing(z_um[right : right + 2], calm[right : right + 2], 0.5 * top)
        )
        centre[number], width[number] = 0.5 * (low + high), high - low
    return centre, width, complete, peak


def _median3(trace: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(trace, 1, mode="edge")
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def _common_length(width: NDArray[np.float64]) -> float:
    """Return the width that most traces agree on: the middle of the closest half of them."""
    ordered = np.sort(width)
    half = max(len(ordered) // 2, 1)
    spans = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    first = int(np.argmin(spans / np.maximum(ordered[: len(spans)], 1e-9)))
    return float(np.median(ordered[first : first + half]))


def _knots(span_um: float, spacing_um: float) -> NDArray[np.float64]:
    half = max(int(np.ceil(0.5 * span_um / spacing_um)), 2)
    return np.asarray(np.arange(-half, half + 1) * spacing_um, np.float64)


def _trapezoid(length_um: float, step_um: float) -> Curve:
    knots = _knots(2.0 * length_um + 4.0 * step_um, 0.5 * step_um)
    slope = max(0.25 * length_um, step_um)
    return Curve(knots, np.clip(0.5 + (0.5 * length_um - np.abs(knots)) / slope, 0.0, 1.0))


def _place(
    trace: NDArray[np.float64],
    z_um: NDArray[np.float64],
    curve: Curve,
    depth_um: float,
    reach_um: float,
    weight: NDArray[np.float64],
) -> tuple[float, float]:
    """Return the depth and amplitude with which the profile fits a trace best."""
    best, amplitude = depth_um, 0.0
    for scope in (reach_um, reach_um / 12.0):
        depths = best + np.linspace(-scope, scope, 33)
        model = curve.at(depths[:, None] - z_um[None, :])
        square = np.maximum((weight * model**2).sum(axis=1), 1e-12)
        along = (weight * model * trace).sum(axis=1)
        # What is left of the trace, but for a part that is the same at all depths.
        gain = np.where(along > 0, along**2 / square, 0.0)
        at = int(np.argmax(gain))
        best = float(depths[at])
        if 0 < at < len(depths) - 1:
            a, b, c = gain[at - 1 : at + 2]
            bend = a - 2 * b + c
            if bend < 0:
                best += 0.5 * (a - c) / bend * (depths[1] - depths[0])
    model = curve.at(best - z_um)
    amplitude = float((weight * model * trace).sum() / max((weight * model**2).sum(), 1e-12))
    return best, max(amplitude, 1e-12)


def _basis(
    u: NDArray[np.float64], knots: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the knot to the left of each place, and how far between it and the next; -1 where outside."""
    place = (u - knots[0]) / (knots[1] - knots[0])
    index = np.floor(place).astype(np.int64)
    outside = (index < 0) | (index >= len(knots) - 1)
    return np.where(outside, -1, index), place - index


def _normal(
    u: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64], knots: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the normal equations (K, K), (K,) of straight lines through knots."""
    index, share = _basis(u, knots)
    seen = index >= 0
    index, share, y, w = index[seen], share[seen], y[seen], w[seen]
    size = len(knots)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (index, index), w * (1 - share) ** 2)
    np.add.at(matrix, (index + 1, index + 1), w * share**2)
    np.add.at(matrix, (index, index + 1), w * share * (1 - share))
    matrix += np.triu(matrix, 1).T
    vector = np.bincount(index, w * (1 - share) * y, size) + np.bincount(index + 1, w * share * y, size)
    return matrix, np.asarray(vector, np.float64)


def _penalty(size: int) -> NDArray[np.float64]:
    bend = np.diff(np.eye(size), 2, axis=0)
    return np.asarray(bend.T @ bend)


def _solve(matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    typical = max(float(np.median(np.diag(matrix))), 1e-12)
    size = len(vector)
    # A little stiffness bridges knots that no frame met; a very little pull towards zero holds the far ends.
    stiff = matrix + 0.02 * typical * _penalty(size) + 1e-4 * typical * np.eye(size)
    return np.asarray(np.linalg.solve(stiff, vector))


def _weights(
    amplitude: NDArray[np.float64], noise: NDArray[np.float64], left: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return each bead's weight (N,): bright ones count more, but none counts for many."""
    signal = amplitude / noise
    limit = 2.0 * np.median(signal)
    weight = np.minimum(signal, limit) ** 2
    if left is not None:  # a bead that is two, or moves, is bright and wrong all along
        excess = np.sqrt(np.maximum(left**2 - 1.0 / signal**2, 0.0))
        weight *= np.minimum(
            1.0, (1.5 * max(float(np.median(excess)), 0.004) / np.maximum(excess, 1e-9)) ** 2
        )
    return np.asarray(weight / weight.mean())


def _fit(
    traces: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    noise: NDArray[np.float64],
    depth: NDArray[np.float64],
    z_um: NDArray[np.float64],
    knots: NDArray[np.float64],
    misfit: NDArray[np.float64] | None = None,
) -> tuple[Curve, NDArray[np.float64]]:
    """Return the profile through all traces, and the weight (N, Z) that each value had in the end."""
    u = depth[:, None] - z_um[None, :]
    y = traces / amplitude[:, None]
    bead = np.broadcast_to(_weights(amplitude, noise, misfit)[:, None], y.shape)
    robust = np.ones_like(y)
    curve = Curve(knots, np.zeros(len(knots)))
    for _ in range(3):
        matrix, vector = _normal(u.ravel(), y.ravel(), (bead * robust).ravel(), knots)
        curve = Curve(knots, _solve(matrix, vector))
        left = np.abs(y - curve.at(u))
        scale = np.maximum(1.4826 * np.median(left, axis=1), 1e-3)[:, None]
        robust = np.minimum(1.0, 3.0 * scale / np.maximum(left, 1e-12))
    return curve, robust


def _centred(curve: Curve) -> tuple[Curve, float, float]:
    """Return the profile, middle at 0 and peak 1; what to add to depths; what to multiply amplitudes by."""
    found = lengths(curve)
    top, _ = _maximum(curve)
    middle = 0.5 * (found.left_um + found.right_um)
    moved = Curve(curve.u_um, curve.at(curve.u_um + middle) / top)
    return moved, -middle, top


def _misfit(
    traces: NDArray[np.float64],
    z_um: NDArray[np.float64],
    curve: Curve,
    depth: NDArray[np.float64],
    amplitude: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (N,) what is left of each trace, root mean square relative to its amplitude."""
    left = traces / amplitude[:, None] - curve.at(depth[:, None] - z_um[None, :])
    return np.asarray(np.sqrt(np.mean(left**2, axis=1)))


def _seen_share(curve: Curve, depth: NDArray[np.float64], z_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) the share of the profile that lies within the stack."""
    value = np.maximum(curve.value, 0.0)
    below = np.concatenate([[0.0], np.cumsum(value)]) / max(value.sum(), 1e-12)
    edges = np.append(curve.u_um, curve.u_um[-1] + curve.spacing_um) - 0.5 * curve.spacing_um
    return np.asarray(np.interp(depth - z_um[0], edges, below) - np.interp(depth - z_um[-1], edges, below))


def _without_outliers(
    traces: NDArray[np.float64],
    noise: NDArray[np.float64],
    z_um: NDArray[np.float64],
    curve: Curve,
    depth: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    used: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return the beads that the profile explains and that the stack shows for the most part."""
    left = np.sqrt(
        np.maximum(_misfit(traces, z_um, curve, depth, amplitude) ** 2 - (noise / amplitude) ** 2, 0.0)
    )
    share = _seen_share(curve, depth, z_um)
    typical = float(np.median(left[used]))
    spread = 1.4826 * np.median(np.abs(left[used] - typical))
    kept = used & (left < typical + 4.0 * spread + 0.01) & (share > 0.6)
    enough = max(3, int(np.count_nonzero(used)) // 3)
    return kept if int(np.count_nonzero(kept)) >= enough else used


def _resampled(
    traces: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    depth: NDArray[np.float64],
    z_um: NDArray[np.float64],
    knots: NDArray[np.float64],
    weight: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Return profiles (R, K), each from as many beads, drawn with replacement."""
    count = len(traces)
    parts = [_normal(depth[n] - z_um, traces[n] / amplitude[n], weight[n], knots) for n in range(count)]
    matrices = np.stack([part[0] for part in parts]).reshape(count, -1)
    vectors = np.stack([part[1] for part in parts])
    rng = np.random.default_rng(seed)
    if count > 1:
        times = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES).astype(np.float64)
    else:  # one bead alone: what its own values allow
        times = np.ones((1, 1))
    size = len(knots)
    return np.stack([_solve((row @ matrices).reshape(size, size), row @ vectors) for row in times])
