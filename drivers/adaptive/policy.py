"""The interface of a policy: what it is told before a sweep, and what it may answer.

A policy runs in the driver's process, between two sweeps. It is a plain object without a thread; whatever it
answers passes the user's limits (`limits.py`) before anything moves, and one that fails costs nothing but
its own advice. To write one, give it `propose` and hand it to `AdaptivePlanner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from microdiffusion.wire import SweepFeedback


@dataclass(frozen=True, slots=True, eq=False)
class AcquisitionState:
    """The knowledge before a sweep.

    Attributes
    ----------
    sweep : int
        The sweep to be planned.
    planned_um : (M,) float64
        Centres of its slabs in the plan as configured, ascending, µm.
    low_um, high_um : float
        Least and greatest centre of a slab, µm.
    length_um, step_um : float
        Of a slab, and of the plan, µm.
    slices_um : (Z,) float64
        Depths of the volume's slices, µm.
    interval_s, least_interval_s : float
        From the start of a sweep to the next: as configured, and at least, s.
    feedback : tuple of SweepFeedback
        The engine's latest word on each session (channel, position), no older than the last sweep but
        `STALE_SWEEPS`; empty: nothing is known.
    """

    sweep: int
    planned_um: NDArray[np.float64]
    low_um: float
    high_um: float
    length_um: float
    step_um: float
    slices_um: NDArray[np.float64]
    interval_s: float
    least_interval_s: float
    feedback: tuple[SweepFeedback, ...] = ()


STALE_SWEEPS = 4
"""Sweeps after which the engine's word counts no longer: the plan as configured takes over."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A policy's wish for the next sweep.

    Attributes
    ----------
    offset_um : float
        How much deeper than planned the first slab lies, µm.
    steps_um : sequence of float
        From each slab to the next, µm: one less than the slabs that are planned.
    interval_s : float
        From the start of the last sweep to that of this one, s.
    why : str
        A few words for the run file.
    """

    offset_um: float
    steps_um: Sequence[float]
    interval_s: float
    why: str


class Policy(Protocol):
    """Plans sweeps."""

    def propose(self, state: AcquisitionState) -> Proposal:
        """Return what the next sweep should be."""


def at_depths(
    state: AcquisitionState, depths_um: NDArray[np.float64], interval_s: float, why: str
) -> Proposal:
    """Return a proposal of slabs at depths (M,), ascending, µm."""
    offset_um = float(depths_um[0] - state.planned_um[0])
    return Proposal(offset_um, np.diff(depths_um).tolist(), interval_s, why)


def as_planned(state: AcquisitionState, interval_s: float, why: str) -> Proposal:
    """Return a proposal of the slabs as they were configured."""
    return at_depths(state, state.planned_um, interval_s, f"as planned: {why}")
