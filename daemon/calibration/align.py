"""From many beads' traces to one profile: alignment below a step, and a robust mean.

A bead at depth z0 has the brightness ``A w(z0 - z)`` when the stage is at z: its trace runs through the
profile backwards. Depths, amplitudes and the common profile are found in turn; the profile is a chain of
straight lines through knots that are closer than the steps wherever there are beads enough, because each
bead samples it at places of its own. Pure functions in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.daemon.calibration.profile import Curve, crossing, lengths, maximum, smooth

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Aligned:
    """The common profile, and what it rests on.

    Attributes
    ----------
    curve : Curve
        Against depth minus stage position.
    used : (N_all,) bool
        Which of the traces.
    residual : float
        Root mean square of what is left of a trace, relative to its amplitude, over the beads (median).
    partial : int
        Used beads whose profile the stack does not show in full.
    """

    curve: Curve
    used: NDArray[np.bool_]
    residual: float
    partial: int


def align(
    traces: NDArray[np.float64], noise: NDArray[np.float64], z_um: NDArray[np.float64]
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
        depth[used], amplitude[used] = _place(traces[used], z_um, curve, depth[used], reach, weight[used])
        spacing = step * min(max(6.0 / np.count_nonzero(used), 0.25), 1.0)
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
    whole = used & (share > 0.98)
    if np.count_nonzero(whole) >= 3:
        stretch = _stretch(traces[whole], amplitude[whole], depth[whole], z_um, curve)
        curve = Curve(curve.u_um * stretch, curve.value)
    return Aligned(
        curve,
        used,
        float(np.median(left[used])),
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


def _first_look(
    traces: NDArray[np.float64], z_um: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return centre (µm), width (µm), whether both ends are seen, and peak of each trace."""
    count = len(traces)
    centre, width, peak = np.zeros(count), np.zeros(count), np.zeros(count)
    complete = np.zeros(count, bool)
    for number, trace in enumerate(traces):
        calm = _median3(trace)
        at = int(np.argmax(smooth(calm, 3)))
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
            else crossing(z_um[left - 1 : left + 1], calm[left - 1 : left + 1], 0.5 * top)
        )
        high = (
            z_um[right]
            if right == len(calm) - 1
            else crossing(z_um[right : right + 2], calm[right : right + 2], 0.5 * top)
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
    traces: NDArray[np.float64],
    z_um: NDArray[np.float64],
    curve: Curve,
    depth_um: NDArray[np.float64],
    reach_um: float,
    weight: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the depths and amplitudes (N,) with which the profile fits each trace best."""
    best, bead = depth_um, np.arange(len(traces))
    for scope in (reach_um, reach_um / 12.0):
        shifts = np.linspace(-scope, scope, 33)
        depths = best[:, None] + shifts
        model = curve.at(depths[:, :, None] - z_um)
        square = np.maximum(np.einsum("nz,ndz,ndz->nd", weight, model, model), 1e-12)
        along = np.einsum("nz,ndz,nz->nd", weight, model, traces)
        # What is left of the trace, but for a part that is the same at all depths.
        gain = np.where(along > 0, along**2 / square, 0.0)
        at = np.argmax(gain, axis=1)
        best = depths[bead, at]
        between = np.clip(at, 1, len(shifts) - 2)
        a, b, c = (gain[bead, between + side] for side in (-1, 0, 1))
        bend = a - 2 * b + c
        peaked = (at == between) & (bend < 0)
        moved = np.where(peaked, 0.5 * (a - c) / np.where(peaked, bend, 1.0), 0.0)
        best = best + moved * (shifts[1] - shifts[0])
    model = curve.at(best[:, None] - z_um)
    along, square = (weight * model * traces).sum(axis=1), (weight * model**2).sum(axis=1)
    return best, np.maximum(along / np.maximum(square, 1e-12), 1e-12)


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
    top, _ = maximum(curve)
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
