"""The pace of the engine against that of the sweeps: the interval that holds, in a sentence.

`sweep_time` and `slow_engine` import torch, for a process of its own. `PaceWatch` is used by one thread at a
time; the rest are pure functions.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from microdiffusion.daemon.engine.requirements import requirements_of

if TYPE_CHECKING:
    from microdiffusion.config import Config, EngineConfig
    from microdiffusion.daemon.engine.trial_sweeps import SweepTime
    from microdiffusion.engines.pipeline import Engine

HEADROOM = 1.15
"""For what else the machine does, and for sweeps that take longer than most."""
_WATCHED_S, _WATCHED = 1.0, 3
"""Seconds of work, and sweeps, after which the pace is known."""


def holding_interval_s(sweep_s: float, sessions: int) -> float:
    """Return the shortest interval between sweeps, two digits, that the engine keeps up with.

    `sweep_s` are its seconds for the sweep of one session (a channel at a position), of which each time point
    has `sessions`.
    """
    least_s = HEADROOM * sweep_s * sessions
    digits = 1 - math.floor(math.log10(max(least_s, 1e-6)))
    return math.ceil(least_s * 10.0**digits) / 10.0**digits


def too_slow(sweep_s: float, sessions: int, asked_s: float) -> str:
    """Return a sentence where sweeps come every `asked_s`, faster than the engine takes them; else ""."""
    taken_s = sweep_s * sessions
    if taken_s <= asked_s:
        return ""
    each = f" of each of {sessions} sessions" if sessions > 1 else ""
    return (
        f"the engine takes {sweep_s:.2g} s for a sweep{each}, and they come every {asked_s:.2g} s: "
        f"{1 - asked_s / taken_s:.0%} of them have to wait; an interval of "
        f"{holding_interval_s(sweep_s, sessions):g} s holds"
    )


def sweep_time(config: Config, engine: Engine | None = None) -> SweepTime:
    """Return what a sweep of `config`, which knows the camera's region, takes; see `measure_sweep`."""
    from microdiffusion.daemon.engine.trial_sweeps import measure_sweep

    image = config.camera.height or 0, config.camera.width or 0
    return measure_sweep(config, image, engine, budget_s=2.0 if engine is None else 1.0)


def slow_engine(config: Config, engine: Engine) -> str:
    """Return a sentence where an open engine, measured for a second, is too slow for `config`; else ""."""
    need = requirements_of(config)
    if need is None or need.assumed or config.acquisition.driver == "watch":  # another program sets the pace
        return ""
    sessions = sessions_of_a_device(need.sessions, config.engine)
    return too_slow(sweep_time(config, engine).seconds, sessions, need.sweep_s)


def sessions_of_a_device(sessions: int, config: EngineConfig) -> int:
    """Return how many of a run's sessions the device has that has most."""
    return -(-sessions // max(len(config.devices), 1))


class PaceWatch:
    """Watches the first sweeps of a run, and says once if the engine does not keep up."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._taken: list[float] = []
        self._intervals: list[float] = []
        self._before: dict[tuple[int, int], tuple[int, float]] = {}
        self._over = False

    def volume(self, session: tuple[int, int], sweep: int, came_s: float, taken_s: float) -> str:
        """Take what sweep number `sweep` of a session took; return the sentence when it is time."""
        if self._over:
            return ""
        before = self._before.get(session)
        self._before[session] = sweep, came_s
        if before is None or sweep <= before[0]:  # the first of a session, which chooses kernels
            return ""
        self._taken.append(taken_s)
        self._intervals.append((came_s - before[1]) / (sweep - before[0]))
        self._over = len(self._taken) >= _WATCHED and sum(self._taken) >= _WATCHED_S
        if not self._over:
            return ""
        return too_slow(
            statistics.median(self._taken), self._sessions, max(statistics.median(self._intervals), 1e-3)
        )
