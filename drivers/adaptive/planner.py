"""Plans the sweeps of an adaptive acquisition: feedback in, the policy asked, its answer held to the limits.

Without a clock and a thread of its own: moments are handed in, so that every course of events can be tried.
The driver's loop says when a sweep starts and when its last frame has come, waits until `is_ready`, and
takes the next sweep from `plan`, with the moment at which it is due. A policy that raises, or asks for what
is not allowed, costs one note, and the sweep is taken as configured.

The stage follows a drift of the specimen along z apart from the policy: `SweepFeedback.drift_z_um` is what
the session measured beyond the refocus of that sweep. Frames say where their slab lies in the volume
(`stage`), and how far the stage stood beyond it (`refocus_um`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from microdiffusion.config import Config
from microdiffusion.drivers.adaptive.limits import Limits
from microdiffusion.drivers.adaptive.policies import (
    LearnFastest,
    LookWhereItChanges,
    has_settled,
)
from microdiffusion.drivers.adaptive.policy import STALE_SWEEPS, AcquisitionState, Policy, as_planned
from microdiffusion.drivers.plan import Plan, PlannedSweep
from microdiffusion.errors import ConfigError
from microdiffusion.frames import DECISION_LETTERS
from microdiffusion.wire import SweepFeedback

Told = Mapping[tuple[int, int], SweepFeedback]
_MISSES = 3  # sweeps in a row without a word of the engine, after which nobody waits for it
_WORTH = 0.25  # slices of drift that are worth a move
_REMEMBERED = 64  # sweeps whose refocus is known


class AdaptivePlanner:
    """Plans one sweep after the other.

    Parameters
    ----------
    config : Config
    plan : Plan
        Of that configuration: what is taken where a policy says nothing.
    travel_um : (low, high), optional
        What the focus stage says of its own limits.
    policy : Policy, optional
        By default the configured one.
    refocus_um : float
        How far the stage had followed the specimen when the run was interrupted, µm.

    Raises
    ------
    ConfigError
        Not even the plan as configured fits the limits.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        *,
        travel_um: tuple[float, float] | None = None,
        policy: Policy | None = None,
        refocus_um: float = 0.0,
    ) -> None:
        adaptive, volume = config.acquisition.adaptive, config.volume
        self._config, self._plan = config, plan
        self._policy = policy if policy is not None else _policy(config)
        self._slices_um = volume.z0_um + volume.voxel_z_um * np.arange(volume.shape_z, dtype=np.float64)
        half_um = 0.5 * (config.sweep.length_um - volume.voxel_z_um)
        self._ends_um = self._slices_um[0] + half_um, self._slices_um[-1] - half_um
        self.limits = _limits(config, self._ends_um, travel_um)
        frames = plan.frames_per_sweep_max
        if adaptive.frames_per_min is not None and adaptive.frames_per_min < frames:
            raise ConfigError(
                f"acquisition.adaptive.frames_per_min = {adaptive.frames_per_min:g} is less than the "
                f"{frames} frames of one sweep: raise it, or widen sweep.step_um."
            )
        self._sessions = max(len(config.acquisition.channels), 1) * max(
            len(config.acquisition.positions_um), 1
        )
        self._refocus_um = refocus_um if adaptive.refocus_um > 0.0 else 0.0
        self._refocused: OrderedDict[int, float] = OrderedDict()
        self._last: PlannedSweep | None = None
        self._started_s = self._over_s = 0.0
        self._misses = 0
        self._notes: list[str] = []
        self._faults: set[str] = set()

    def take_notes(self) -> list[str]:
        """Return the messages for the user since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def start(self, sweep: PlannedSweep, now_s: float) -> None:
        """Note that a sweep starts."""
        self._last, self._started_s = sweep, now_s
        self._over_s = float("inf")
        self.limits.start(now_s)

    def over(self, now_s: float) -> None:
        """Note that the last frame of the sweep has come, or will not come any more."""
        if self._last is not None and self._over_s == float("inf"):
            self._over_s = now_s
            self.limits.over(len(self._last.shots) // self._sessions, now_s)

    def is_ready(self, told: Told, now_s: float) -> bool:
        """Return whether the next sweep can be planned: the engine has spoken, or nobody waits any longer."""
        if self._last is None:
            return True
        if self._heard(told):
            return True
        wait = self._config.acquisition.adaptive.wait if self._misses < _MISSES else 0.0
        patient_s = self._over_s + wait * (self._over_s - self._started_s)
        interval_s = self._config.acquisition.sweep_interval_s
        return now_s >= max(patient_s, self._started_s + interval_s)

    def plan(self, sweep: PlannedSweep, told: Told, now_s: float) -> tuple[PlannedSweep, float]:
        """Return the sweep that is to be taken in the place of a planned one, and when it is due."""
        if self._last is not None:
            self._misses = 0 if self._heard(told) else self._misses + 1
            if self._misses == _MISSES:
                self._notes.append(
                    f"the engine has said nothing of the last {_MISSES} sweeps: nothing waits for it any "
                    "more, and sweeps are taken as planned until it does"
                )
        state = self._state(sweep, told)
        try:
            proposal: object = self._policy.propose(state)
        except Exception as error:  # a policy may be the user's own
            fault = f"the policy failed ({type(error).__name__}: {error})"
            self._complain(fault)
            proposal = as_planned(state, state.interval_s, fault)
        depths, interval_s, why, fault = self.limits.checked(proposal, state)
        if fault:
            self._complain(fault)
        if self._config.acquisition.adaptive.refocus_um > 0.0:
            self._follow(told, depths)
        slabs = self._plan.slabs_at(sweep.number, depths)
        if self._refocus_um:
            why = f"{why}; stage {self._refocus_um:+.3g} µm after the specimen"
        taken = sweep.through(slabs, refocus_um=self._refocus_um, decision=why[:DECISION_LETTERS])
        self._refocused[sweep.number] = self._refocus_um
        while len(self._refocused) > _REMEMBERED:
            self._refocused.popitem(last=False)
        return taken, self.limits.due_s(interval_s, len(slabs), now_s)

    def _heard(self, told: Told) -> bool:
        """Return whether the engine has spoken of the last sweep, of every session."""
        number = -1 if self._last is None else self._last.number
        return sum(each.sweep >= number for each in told.values()) >= self._sessions

    def _state(self, sweep: PlannedSweep, told: Told) -> AcquisitionState:
        low, high = self._ends_um
        planned = np.array([slab.stage.z_um for slab in self._plan.slabs(sweep.number) if not slab.held_out])
        return AcquisitionState(
            sweep=sweep.number,
            planned_um=planned,
            low_um=max(float(low), self.limits.low_um),
            high_um=min(max(float(high), float(planned[-1])), self.limits.high_um),
            length_um=self._config.sweep.length_um,
            step_um=self._config.sweep.resolved_step_um,
            slices_um=self._slices_um,
            interval_s=self._config.acquisition.sweep_interval_s,
            least_interval_s=self.limits.least_interval_s,
            feedback=tuple(
                each for each in told.values() if sweep.number - STALE_SWEEPS <= each.sweep < sweep.number
            ),
        )

    def _follow(self, told: Told, depths: np.ndarray) -> None:
        """Move the stage along with the specimen, a slice per sweep at most."""
        voxel_um = self._config.volume.voxel_z_um
        places = [
            self._refocused[each.sweep] + each.drift_z_um
            for each in told.values()
            if has_settled(each) and each.sweep in self._refocused and each.drift_z_um is not None
        ]
        if places:
            move_um = float(np.median(places)) - self._refocus_um
            if abs(move_um) >= _WORTH * voxel_um:
                self._refocus_um += min(max(move_um, -voxel_um), voxel_um)
        self._refocus_um = self.limits.refocused(self._refocus_um, depths)

    def _complain(self, fault: str) -> None:
        """Tell of a fault of the policy, each once."""
        kind = fault.partition("(")[0]
        if kind not in self._faults:
            self._faults.add(kind)
            self._notes.append(f"{fault}: the sweep is taken as planned")


def _policy(config: Config) -> Policy:
    adaptive = config.acquisition.adaptive
    return LearnFastest() if adaptive.policy == "learn" else LookWhereItChanges(adaptive.sparsest)


def _limits(config: Config, ends_um: tuple[float, float], travel_um: tuple[float, float] | None) -> Limits:
    adaptive, acquisition = config.acquisition.adaptive, config.acquisition
    low, high = float(ends_um[0]), max(float(ends_um[1]), float(ends_um[0]))
    # The stage may go where the plan goes, and as far beyond as it may follow the specimen.
    allowed = (
        low - adaptive.refocus_um if adaptive.lowest_um is None else adaptive.lowest_um,
        high + adaptive.refocus_um if adaptive.highest_um is None else adaptive.highest_um,
    )
    if travel_um is not None:
        allowed = max(allowed[0], travel_um[0]), min(allowed[1], travel_um[1])
    slack_um = 1e-6 * config.volume.voxel_z_um
    if allowed[0] > low + slack_um or allowed[1] < high - slack_um:
        raise ConfigError(
            f"The run needs stage positions from {low:g} to {high:g} µm, and {allowed[0]:g} to "
            f"{allowed[1]:g} are allowed: widen acquisition.adaptive.lowest_um and "
            "highest_um, or correct volume.z0_um "
            "and volume.shape_z."
        )
    interval_s = acquisition.sweep_interval_s
    least_s = interval_s if adaptive.least_interval_s is None else min(adaptive.least_interval_s, interval_s)
    return Limits(
        allowed[0],
        allowed[1],
        refocus_um=adaptive.refocus_um,
        least_interval_s=least_s,
        frames_per_min=adaptive.frames_per_min,
    )
