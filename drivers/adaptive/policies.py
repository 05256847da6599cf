"""The two policies that ship: learn fastest, and look where it changes.

Both leave a sweep as planned until the engine has said something, and both shorten the interval while
something changes, as far as the user allows; afterwards it doubles with every quiet sweep until it is the
configured one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.adaptive.policy import (
    AcquisitionState,
    Proposal,
    as_planned,
    at_depths,
)
from microdiffusion.optics import sweep_offset
from microdiffusion.wire import SweepFeedback

_GAIN = 0.01  # of the information, that another beginning has to be worth
_LEARNED = 2  # sweeps, before which the engine knows too little to choose
_FALL = 2.0  # by which the interval grows with every quiet sweep
_SLOWEST = 1 / 16  # of the configured interval, that it grows to at least with the first one
_REMEMBERED = 0.6  # of the power, from sweep to sweep: what changed may change again
_GRID = 20  # places for a slab in a planned step
_DENSEST = 4.0  # slabs in the place of one
_LEFT = 0.04  # of a change's power, in units of what the variances say of what keeps still: measured
_MATTERS = 3.0  # times what a sweep tells of what keeps still: a change that is worth to look at
_NOTHING = 1e-3  # of the noise: changes of so little power are none
_FEWEST = 4  # slabs that can be placed
_SAME = 0.02  # of a step: depths that are as planned


class LearnFastest:
    """Begins each sweep at the depth of greatest expected information; its steps are the plan's."""

    def __init__(self) -> None:
        self._pace = _Pace()

    def propose(self, state: AcquisitionState) -> Proposal:
        """Return the next sweep."""
        interval_s, _ = self._pace.interval(state)
        slabs, planned_um = len(state.planned_um), float(state.planned_um[0])
        first = np.array([each.first_um for each in state.feedback if each.learned >= _LEARNED])
        if first.ndim != 2 or not first.size or np.ptp(first, axis=0).max() > 1e-6:
            return as_planned(state, interval_s, "too little is known yet")
        bits = np.mean([each.information for each in state.feedback if each.learned >= _LEARNED], axis=0)
        room_um = state.high_um - first[0] + 1e-6 * state.step_um
        # Of a beginning that leaves room for more slabs than are planned, the engine counted those as well.
        fits = (room_um >= (slabs - 1) * state.step_um) & (first[0] >= state.low_um - 1e-6)
        fits &= room_um < slabs * state.step_um
        if not fits.any():
            return as_planned(state, interval_s, "no other beginning has room")
        best = int(np.argmax(np.where(fits, bits, -np.inf)))
        at_plan = float(np.interp(planned_um, first[0], bits))
        if bits[best] < (1 + _GAIN) * at_plan:
            why = f"no beginning tells more than {at_plan:.3g} bits per pixel"
            return as_planned(state, interval_s, why)
        depths = first[0][best] + state.step_um * np.arange(slabs)
        why = (
            f"begins at {first[0][best]:.4g} µm: {bits[best]:.3g} bits per pixel expected, as planned "
            f"{at_plan:.3g}"
        )
        return at_depths(state, depths.clip(state.low_um, state.high_um), interval_s, why)


class LookWhereItChanges:
    """Places slabs densely where the engine saw changes, and sparsely elsewhere: as many as are planned.

    Where a share `a` of the error's power arises at a depth and falls with the density `d` of slabs, the sum
    of `a / d` at a given number of slabs is least for `d` proportional to the root of `a`. What keeps still
    contributes what a sweep still tells of it, and what changes a share of its power. So a specimen that is
    not known yet, or changes everywhere, is taken about evenly. Depths in which nothing changes keep at
    least one slab in `sparsest` steps, at another place in each sweep.

    Parameters
    ----------
    sparsest : float
        Widest step where nothing changes, in planned steps.
    """

    def __init__(self, sparsest: float = 2.0) -> None:
        self._sparsest = sparsest
        self._pace = _Pace()
        self._power = np.zeros(0)
        self._counted = -1  # the latest sweep in it

    def propose(self, state: AcquisitionState) -> Proposal:
        """Return the next sweep."""
        interval_s, active = self._pace.interval(state)
        power, told = self._remembered(state), _largest(state, "told")
        planned = state.planned_um
        if len(planned) < _FEWEST:
            why = f"{len(planned)} slabs are too few to place, {_FEWEST} are needed"
            return as_planned(state, interval_s, why)
        if not _matters(power, told):
            found = (
                f"nothing changed in sweep {self._counted}"
                if state.feedback
                else "the engine has not spoken yet"
            )
            return as_planned(state, interval_s, found)
        depths = self._depths(state, power + told)
        if np.abs(depths - planned).max() < _SAME * state.step_um:
            return as_planned(state, interval_s, "it changes everywhere alike")
        steps = np.diff(depths)
        share = 100 * float(_largest(state, "changed").max())
        found = f"{share:.2g} % changed in sweep {self._counted}" if active else "changes were"
        why = (
            f"denser at {_where(state.slices_um, power)}, where {found}: steps of "
            f"{steps.min():.3g} to {steps.max():.3g} µm"
        )
        return at_depths(state, depths, interval_s, why)

    def _remembered(self, state: AcquisitionState) -> NDArray[np.float64]:
        """Return the power (Z,) of the latest sweep's changes, and what is left of those before."""
        if len(self._power) != len(state.slices_um) or not state.feedback:
            self._power = np.zeros(len(state.slices_um))
        latest = max((each.sweep for each in state.feedback), default=-1)
        if latest > self._counted:
            self._counted = latest
            self._power = np.maximum(_power(state), _REMEMBERED * self._power)
        return self._power

    def _depths(self, state: AcquisitionState, power: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the centres (M,) of the slabs, µm: quantiles of their density along z."""
        low, high, slabs = state.low_um, state.high_um, len(state.planned_um)
        begins = sweep_offset(state.sweep, "golden")
        gaps = slabs - 1 + (begins > 0.0)
        places = np.linspace(low, high, max(_GRID * gaps, 2))
        inside = np.abs(state.slices_um - places[:, None]) <= 0.5 * state.length_um
        wanted = np.sqrt((inside @ power) / np.maximum(inside.sum(1), 1))
        even = gaps / (high - low)
        # Beyond two slabs' length even the sweeps after this one leave depths that nobody saw.
        widest_um = max(state.step_um, min(self._sparsest * state.step_um, 2 * state.length_um))
        density = _filled(wanted, even * state.step_um / widest_um, _DENSEST * even, even)
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        quantiles = (np.arange(slabs) + begins) / gaps
        depths = np.interp(quantiles, cumulative / cumulative[-1], places)
        return np.asarray(depths, np.float64)


class _Pace:
    """The interval of sweeps: short while something changes, and longer again with every quiet sweep."""

    def __init__(self) -> None:
        self._interval_s = float("inf")

    def interval(self, state: AcquisitionState) -> tuple[float, bool]:
        """Return the interval to the next sweep, s, and whether something changes."""
        active = _matters(_power(state), _largest(state, "told"))
        longer_s = max(_FALL * self._interval_s, _SLOWEST * state.interval_s)  # also from none at all
        wanted_s = state.least_interval_s if active else longer_s
        self._interval_s = min(max(wanted_s, state.least_interval_s), state.interval_s)
        return self._interval_s, active


def _power(state: AcquisitionState) -> NDArray[np.float64]:
    """Return the error (Z,) that changes leave in a slice at the plan's density, in units of the noise."""
    return _LEFT * _largest(state, "innovation")


def _where(slices_um: NDArray[np.float64], power: NDArray[np.float64]) -> str:
    """Return the depths that change most: each stretch, from its first slice to its last."""
    edges = np.flatnonzero(np.diff(power > 0.5 * power.max(), prepend=False, append=False))
    stretches = [f"{slices_um[a]:.4g} to {slices_um[b - 1]:.4g}" for a, b in edges.reshape(-1, 2)]
    return " and ".join(stretches) + " µm"


def _matters(power: NDArray[np.float64], told: NDArray[np.float64]) -> bool:
    """Return whether changes leave more error in any slice than a specimen that keeps still."""
    return float(power.max(initial=0.0)) > max(_MATTERS * float(np.median(told)), _NOTHING)


def _largest(state: AcquisitionState, name: str) -> NDArray[np.float64]:
    """Return numbers (Z,) of the sessions' last sweeps: the largest of each slice."""
    slices = len(state.slices_um)
    told = [getattr(each, name) for each in state.feedback if len(getattr(each, name)) == slices]
    return np.asarray(np.max(told, axis=0), np.float64) if told else np.zeros(slices)


def _filled(wanted: NDArray[np.float64], least: float, most: float, mean: float) -> NDArray[np.float64]:
    """Return a density in proportion to what is wanted, within limits, of a given mean."""
    low, high = 0.0, most / max(float(wanted.min()), 1e-12)
    for _ in range(60):
        factor = 0.5 * (low + high)
        if float((factor * wanted).clip(least, most).mean()) < mean:
            low = factor
        else:
            high = factor
    return (high * wanted).clip(least, most)


def has_settled(feedback: SweepFeedback) -> bool:
    """Return whether a session knows enough for its drift to be followed."""
    return feedback.drift_z_um is not None and feedback.learned > _LEARNED
