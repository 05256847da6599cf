"""From the traces of many beads to one profile: alignment below a step, and a robust mean.

A bead at depth z0 has the brightness ``A w(z0 - z)`` when the stage is at z: its trace runs through the
profile backwards. Depths, amplitudes and the common profile are found in turn. The profile's knots are closer
than the steps wherever there are enough beads, because each bead samples it at places of its own. Pure
functions in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.calibration.profile import Curve, half_maximum, maximum, smooth

ROUNDS = 6


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
        Root mean square of what is left of a trace, relative to its amplitude (median over the beads).
    partial : int
        Used beads whose profile the stack does not show in full.
    """

    curve: Curve
    used: NDArray[np.bool_]
    residual: float
    partial: int


@dataclass(slots=True)
class _Beads:
    """Traces (N, Z), their noise (N,), and each bead's depth (N,), µm, and amplitude (N,) so far."""

    traces: NDArray[np.float64]
    noise: NDArray[np.float64]
    z_um: NDArray[np.float64]
    depth: NDArray[np.float64]
    amplitude: NDArray[np.float64]

    def of(self, chosen: NDArray[np.bool_]) -> _Beads:
        return _Beads(
            self.traces[chosen], self.noise[chosen], self.z_um, self.depth[chosen], self.amplitude[chosen]
        )

    @property
    def u_um(self) -> NDArray[np.float64]:
        """Depth minus stage position (N, Z) of every value."""
        return self.depth[:, None] - self.z_um

    def misfit(self, curve: Curve) -> NDArray[np.float64]:
        """Return (N,) the root mean square of what a curve leaves of each trace, of its amplitude."""
        left = self.traces / self.amplitude[:, None] - curve.at(self.u_um)
        return np.asarray(np.sqrt(np.mean(left**2, axis=1)))

    def seen(self, curve: Curve) -> NDArray[np.float64]:
        """Return (N,) the share of the profile that lies within the stack."""
        value = np.maximum(curve.value, 0.0)
        below = np.concatenate([[0.0], np.cumsum(value)]) / max(value.sum(), 1e-12)
        edges = np.append(curve.u_um, curve.u_um[-1] + curve.spacing_um) - 0.5 * curve.spacing_um
        top, bottom = self.depth - self.z_um[0], self.depth - self.z_um[-1]
        return np.asarray(np.interp(top, edges, below) - np.interp(bottom, edges, below))


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
    good = (peak > 6.0 * noise) & (centre > z_um[0]) & (centre < z_um[-1])
    if np.count_nonzero(good & complete) >= 3:
        good &= complete
    if not good.any():
        return None
    length = _common_length(width[good & complete] if (good & complete).any() else width[good])
    # Two beads above one another look like one long one; noise looks short.
    used = good & (width > 0.5 * length) & (width < 1.6 * length)
    if not used.any():
        used = good
    beads = _Beads(traces, noise, z_um, centre, np.maximum(peak, 1e-12))
    knots = _knots(2.0 * length + 4.0 * step, 0.5 * step)
    slope = max(0.25 * length, step)
    curve = Curve(knots, np.clip(0.5 + (0.5 * length - np.abs(knots)) / slope, 0.0, 1.0))
    weight = np.ones_like(traces)
    for turn in range(ROUNDS):
        reach = length if turn == 0 else 0.25 * length if turn < 3 else step
        beads.depth[used], beads.amplitude[used] = _place(beads.of(used), curve, reach, weight[used])
        spacing = step * min(max(6.0 / np.count_nonzero(used), 0.25), 1.0)
        knots = _knots(_span(z_um, length, step, wide=turn >= 3), spacing)
        curve, weight[used] = _fit(beads.of(used), knots)
        # The middle at 0, the peak at 1.
        top, middle = maximum(curve.value)[0], sum(curve.ends_um) / 2.0
        curve = Curve(knots, curve.at(knots + middle) / top)
        beads.depth -= middle
        beads.amplitude *= top
        length = curve.length_um
        if turn >= 2:
            used = _without_outliers(beads, curve, used)
    residual = float(np.median(beads.misfit(curve)[used]))
    return Aligned(curve, used, residual, int(np.count_nonzero(used & (beads.seen(curve) <= 0.98))))


def _span(z_um: NDArray[np.float64], length: float, step: float, *, wide: bool) -> float:
    """Return how far the knots reach, µm: not farther than beads in the middle of the stack show."""
    stack = float(z_um[-1] - z_um[0])
    if wide:
        return min(3.5 * length + 4.0 * step, 0.9 * stack)
    return min(2.5 * length + 4.0 * step, max(0.5 * stack, 1.2 * length))


def typical_step(z_um: NDArray[np.float64]) -> float:
    """Return the distance of neighbouring stage positions, µm."""
    steps = np.diff(z_um)
    return float(np.median(steps[steps > 1e-6 * max(float(np.ptp(z_um)), 1e-12)]))


def _first_look(
    traces: NDArray[np.float64], z_um: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return centre (µm), width (µm), whether both ends are seen, and peak of each trace."""
    found = []
    for trace in traces:
        padded = np.pad(trace, 1, mode="edge")
        calm = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
        at = int(np.argmax(smooth(calm, 3)))
        peak = float(calm[max(at - 1, 0) : at + 2].mean())
        low, high, complete = half_maximum(z_um, calm, at, peak) if peak > 0 else (0.0, 0.0, False)
        found.append((0.5 * (low + high), high - low, complete, peak))
    centre, width, complete_, peak_ = np.array(found).T
    return centre, width, complete_ > 0, peak_


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


def _place(
    beads: _Beads, curve: Curve, reach_um: float, weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the depths and amplitudes (N,) with which the profile fits each trace best."""
    best, bead = beads.depth, np.arange(len(beads.traces))
    for scope in (reach_um, reach_um / 12.0):
        shifts = np.linspace(-scope, scope, 33)
        depths = best[:, None] + shifts
        model = curve.at(depths[:, :, None] - beads.z_um)
        square = np.maximum(np.einsum("nz,ndz,ndz->nd", weight, model, model), 1e-12)
        along = np.einsum("nz,ndz,nz->nd", weight, model, beads.traces)
        # What the fit takes off the sum of squares.
        gain = np.maximum(along, 0.0) ** 2 / square
        at = np.argmax(gain, axis=1)
        between = np.clip(at, 1, len(shifts) - 2)
        a, b, c = (gain[bead, between + side] for side in (-1, 0, 1))
        bend = a - 2 * b + c
        peaked = (at == between) & (bend < 0)
        moved = np.where(peaked, 0.5 * (a - c) / np.where(peaked, bend, 1.0), 0.0)
        best = depths[bead, at] + moved * (shifts[1] - shifts[0])
    model = curve.at(best[:, None] - beads.z_um)
    along, square = (weight * model * beads.traces).sum(axis=1), (weight * model**2).sum(axis=1)
    return best, np.maximum(along / np.maximum(square, 1e-12), 1e-12)


def _fit(beads: _Beads, knots: NDArray[np.float64]) -> tuple[Curve, NDArray[np.float64]]:
    """Return the profile through all traces, and the weight (N, Z) that each value had in the end.

    A knot's value is the robust mean of the values near it; each value counts for the knots on either side,
    the closer one more. Knots that no value is near are bridged.
    """
    u, y = beads.u_um, beads.traces / beads.amplitude[:, None]
    place = (u - knots[0]) / (knots[1] - knots[0])
    within = (place >= 0) & (place < len(knots) - 1)
    knot = place[within].astype(int)
    right = place[within] - knot

    def per_knot(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(knot, values * (1.0 - right), len(knots))
        return np.asarray(sums + np.bincount(knot + 1, values * right, len(knots)), np.float64)

    # Bright beads count more, but none counts for many.
    signal = beads.amplitude / beads.noise
    bead = np.minimum(signal, 2.0 * np.median(signal))[:, None] ** 2
    robust = np.ones_like(y)
    curve = Curve(knots, np.zeros(len(knots)))
    for _ in range(3):
        weight = (bead * robust)[within]
        total, light = per_knot(weight), per_knot(weight * y[within])
        met = total > 0
        curve = Curve(knots, np.interp(knots, knots[met], light[met] / total[met], left=0.0, right=0.0))
        left = np.abs(y - curve.at(u))
        scale = np.maximum(1.4826 * np.median(left, axis=1), 1e-3)[:, None]
        robust = np.minimum(1.0, 3.0 * scale / np.maximum(left, 1e-12))
    return curve, robust


def _without_outliers(beads: _Beads, curve: Curve, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the beads that the profile explains and that the stack shows for the most part."""
    misfit = beads.misfit(curve)
    left = np.sqrt(np.maximum(misfit**2 - (beads.noise / beads.amplitude) ** 2, 0.0))  # beyond noise
    typical = float(np.median(left[used]))
    spread = 1.4826 * np.median(np.abs(left[used] - typical))
    kept = used & (left < typical + 4.0 * spread + 0.01) & (beads.seen(curve) > 0.6)
    enough = max(3, int(np.count_nonzero(used)) // 3)
    return kept if int(np.count_nonzero(kept)) >= enough else used
