"""The user's limits on an adaptive acquisition: frames, light, rate, and where the stage may go.

Nothing of a policy reaches the microscope but through `Limits.checked`; a proposal that breaks a limit of
space, or is no proposal at all, is replaced by the sweep as planned, and one that comes too early waits. A
policy gets no more frames than the plan has: it can only place them and time them. Pure but for the record
of what was taken; one thread.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.adaptive.policy import AcquisitionState, Proposal, as_planned

MINUTE_S = 60.0
_SLACK_UM = 1e-6


@dataclass(slots=True)
class Limits:
    """Bounds that no policy can exceed.

    Attributes
    ----------
    low_um, high_um : float
        Least and greatest position of the focus stage, µm.
    refocus_um : float
        Furthest that the stage follows the specimen, µm.
    least_interval_s : float
        Shortest time between the starts of two sweeps, s.
    frames_per_min : float or None
        Most frames of a channel and position in any minute.
    """

    low_um: float
    high_um: float
    refocus_um: float = 0.0
    least_interval_s: float = 0.0
    frames_per_min: float | None = None
    _taken: deque[tuple[float, int]] = field(default_factory=deque)
    _started_s: float = -math.inf

    def checked(
        self, proposal: object, state: AcquisitionState
    ) -> tuple[NDArray[np.float64], float, str, str]:
        """Return the depths (M,) µm, the interval (s) and the reason of a proposal that keeps the limits.

        The last text says what was wrong with it; then it is the sweep as planned.
        """
        fault = self._fault(proposal, state)
        if fault or not isinstance(proposal, Proposal):
            proposal = as_planned(state, state.interval_s, fault)
        steps = np.asarray(proposal.steps_um, np.float64)
        depths = state.planned_um[0] + proposal.offset_um + np.concatenate([[0.0], np.cumsum(steps)])
        depths = depths.clip(state.low_um, state.high_um)  # by a rounding
        interval_s = max(float(proposal.interval_s), self.least_interval_s)
        return depths, interval_s, proposal.why, fault

    def _fault(self, proposal: object, state: AcquisitionState) -> str:
        if not isinstance(proposal, Proposal):
            return f"the policy proposed {type(proposal).__name__}, which is no sweep"
        try:
            steps = np.asarray(proposal.steps_um, np.float64)
            offset, interval = float(proposal.offset_um), float(proposal.interval_s)
        except (TypeError, ValueError):
            return "the policy proposed what are no numbers"
        if steps.shape != (len(state.planned_um) - 1,):
            return f"the policy proposed {steps.size + 1} slabs instead of {len(state.planned_um)}"
        if not (np.isfinite(steps).all() and math.isfinite(offset) and math.isfinite(interval)):
            return "the policy proposed numbers that are not finite"
        if interval < 0.0 or not isinstance(proposal.why, str):
            return "the policy proposed a sweep before the last one"
        if (steps <= 0.0).any():
            return "the policy proposed slabs that do not descend"
        first = state.planned_um[0] + offset
        if first < state.low_um - _SLACK_UM or first + steps.sum() > state.high_um + _SLACK_UM:
            return "the policy proposed slabs beyond the range of the stage"
        return ""

    def refocused(self, wanted_um: float, depths_um: NDArray[np.float64]) -> float:
        """Return how far the stage may follow the specimen, µm, for a sweep through these depths."""
        if not math.isfinite(wanted_um):
            return 0.0
        wanted_um = min(max(wanted_um, -self.refocus_um), self.refocus_um)
        lowest, highest = self.low_um - float(depths_um.min()), self.high_um - float(depths_um.max())
        if lowest > highest:  # not even the plan fits, which was refused before
            return 0.0
        return min(max(wanted_um, lowest), highest)

    def due_s(self, interval_s: float, frames: int, now_s: float) -> float:
        """Return when a sweep of so many frames may start, by the clock of `now_s`, at the earliest."""
        due_s = max(now_s, self._started_s + max(interval_s, self.least_interval_s))
        if self.frames_per_min is None:
            return due_s
        room = int(self.frames_per_min + 1e-9) - frames
        # A sweep counts as taken when it was over, so that no minute between any two frames holds more.
        taken = 0
        for over_s, number in reversed(self._taken):
            taken += number
            if taken > room:
                due_s = max(due_s, over_s + MINUTE_S)
                break
        return due_s

    def start(self, now_s: float) -> None:
        """Note that a sweep starts."""
        self._started_s = now_s

    def over(self, frames: int, now_s: float) -> None:
        """Note that the last frame of a sweep has come."""
        self._taken.append((now_s, frames))
        while self._taken and now_s - self._taken[0][0] > MINUTE_S:
            self._taken.popleft()
