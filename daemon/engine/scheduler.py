"""Selects the sweep that the engine processes next. Pure state: no thread, no clock; its owner has a lock.

Lanes have priorities: "sweep" (time points as they arrive), then "rolling" (updates of the live view; only a
session's newest), then "later" (sweeps that were put off, oldest first). Within a lane the run that has used
the least engine time is next, and within the run its session: time is shared, not turns, so small volumes do
not starve beside large ones. Idle time is not saved up (start-time fair queueing, Goyal et al. 1996).

At most `backlog` sweeps of a session wait, in order, since each is easier after the previous one. Beyond that
the policy decides about the oldest: "archive" puts it off (two numbers: its frames are in the run file),
"live" first spends less effort, then skips it, "wait" keeps it, since `has_room` has told the caller to hold
on. Beyond the limit in bytes rolling updates go first, then the oldest sweep of the run that holds most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from microdiffusion.daemon.engine.effort import Ladder
from microdiffusion.daemon.engine.sinks import Lane, SweepJob

Policy = Literal["archive", "live", "wait"]
Mine = Callable[[str, int, int], bool]
"""Tells of a session, by run, channel and position, whether its sweeps are asked for."""
LANES: tuple[Lane, ...] = ("sweep", "rolling", "later")

_RETRY_S = 1.0
_MOST_TRIES = 10
BUSY = "the engine was busy with other sweeps"
NOT_THERE = "its frames could not be read from the run file"


@dataclass(slots=True)
class _SessionQueue:
    """A channel and position of a run: its waiting sweeps, and the engine time it has used."""

    channel: int
    position: int
    ladder: Ladder
    used_s: float = 0.0
    sweeps: deque[SweepJob] = field(default_factory=deque)
    rolling: SweepJob | None = None
    # Sweeps that were put off, as two columns: 10^5 of them are some megabytes.
    put_off: deque[int] = field(default_factory=deque)
    put_off_received_s: deque[float] = field(default_factory=deque)
    tries: int = 0
    retry_s: float = float("-inf")

    def has(self, lane: Lane, now_s: float) -> bool:
        if lane == "sweep":
            return bool(self.sweeps)
        if lane == "rolling":
            return self.rolling is not None
        return bool(self.put_off) and now_s >= self.retry_s

    @property
    def in_memory(self) -> list[SweepJob]:
        return [*self.sweeps] if self.rolling is None else [*self.sweeps, self.rolling]


@dataclass(slots=True)
class _RunQueue:
    sessions: dict[tuple[int, int], _SessionQueue] = field(default_factory=dict)
    used_s: float = 0.0
    reached_s: float = 0.0  # how far the session that was served last had come

    @property
    def waits(self) -> bool:
        return any(session.in_memory or session.put_off for session in self.sessions.values())

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for session in self.sessions.values() for job in session.in_memory)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sweep that gets no volume, and why; `put_off` where it gets one later."""

    job: SweepJob
    reason: str
    put_off: bool = False


class Scheduler:
    """The waiting sweeps of all runs.

    At most `backlog` sweeps of a session wait in memory, and `most_bytes` of all projections; one sweep may
    always wait. `rungs`: see `effort.efforts`.
    """

    def __init__(
        self, *, policy: Policy, backlog: int, most_bytes: int, rungs: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        self.policy = policy
        self._backlog = backlog
        self._most_bytes = most_bytes
        self._rungs = rungs
        self._runs: dict[str, _RunQueue] = {}
        self._again: deque[SweepJob] = deque()
        self._reached_s = 0.0
        self._serving_since_s = float("inf")

    def set_serving(self, serving: bool, now_s: float) -> None:
        """Say whether the engine takes work; waiting for it to open is no reason for less effort."""
        if serving != self._serving:
            self._serving_since_s = now_s if serving else float("inf")

    def set_rungs(self, rungs: tuple[int, ...]) -> None:
        """Use other efforts."""
        self._rungs = rungs
        for session in self._sessions():
            session.ladder.set_rungs(rungs)

    @property
    def waiting(self) -> int:
        """Sweeps and rolling updates that wait in memory."""
        return len(self._again) + sum(len(session.in_memory) for session in self._sessions())

    @property
    def waiting_bytes(self) -> int:
        """Size of their projections."""
        return sum(job.nbytes for job in self._again) + sum(run.nbytes for run in self._runs.values())

    @property
    def backlog(self) -> int:
        """Sweeps that were put off."""
        return sum(len(session.put_off) for session in self._sessions())

    def pending(self, run_id: str) -> int:
        """Return the number of a run's waiting sweeps, in memory or put off; rolling updates do not count."""
        again = sum(job.run_id == run_id for job in self._again)
        return again + sum(len(s.sweeps) + len(s.put_off) for s in self._sessions(run_id))

    def put_off_of(self, run_id: str) -> int:
        """Return the number of a run's sweeps that were put off."""
        return sum(len(session.put_off) for session in self._sessions(run_id))

    def begin(self, run_id: str) -> None:
        """Add a run; repeating it does no harm."""
        self._runs.setdefault(run_id, _RunQueue(used_s=self._reached_s))

    def end(self, run_id: str) -> list[SweepJob]:
        """Remove a run; return its waiting sweeps, in memory or put off."""
        left = [job for job in self._again if job.run_id == run_id]
        self._again = deque(job for job in self._again if job.run_id != run_id)
        left += self.forget_put_off(run_id)
        run = self._runs.pop(run_id, None)
        for session in run.sessions.values() if run is not None else ():
            left.extend(session.sweeps)
        return left

    def forget_put_off(self, run_id: str) -> list[SweepJob]:
        """Remove and return a run's sweeps that were put off."""
        left = []
        for session in self._sessions(run_id):
            while session.put_off:
                left.append(self._put_off_job(run_id, session))
        return left

    def drop_rolling(self, run_id: str) -> None:
        """Drop a run's rolling updates: nobody watches any more."""
        for session in self._sessions(run_id):
            session.rolling = None

    def add(self, job: SweepJob, now_s: float) -> list[Dropped]:
        """Queue a job; return what had to go for it.

        Raises
        ------
        KeyError
            The run was not begun, or is over.
        """
        run = self._runs[job.run_id]
        session = self._woken(run, job.channel, job.position)
        if job.lane == "rolling":
            session.rolling = job
        else:
            session.ladder.came(now_s)
            session.sweeps.append(job)
        if self.policy == "wait":
            return []
        return self._over_the_backlog(session, now_s) + self._over_the_bytes(job)

    def put_off(self, run_id: str, channel: int, position: int, sweep: int, received_s: float = 0.0) -> None:
        """Queue a sweep whose frames are in the run file.

        Raises
        ------
        KeyError
            The run was not begun, or is over.
        """
        session = self._woken(self._runs[run_id], channel, position)
        session.put_off.append(sweep)
        session.put_off_received_s.append(received_s)

    def has_room(self, run_id: str) -> bool:
        """Return whether another sweep of a run would wait without any being dropped."""
        full = any(len(session.sweeps) >= self._backlog for session in self._sessions(run_id))
        return not full and self.waiting_bytes < self._most_bytes

    def next(
        self, now_s: float, blocked: Collection[str] = (), mine: Mine = lambda run_id, channel, position: True
    ) -> SweepJob | None:
        """Take the next job; one of lane "later" comes without its projections.

        `blocked` are runs that cannot take a volume now; `mine` tells whose sessions are asked for.
        """
        for job in self._again:
            if job.run_id not in blocked and mine(job.run_id, job.channel, job.position):
                self._again.remove(job)
                return job

        def ready_of(run_id: str, lane: Lane) -> list[_SessionQueue]:
            every = self._runs[run_id].sessions.values()
            return [s for s in every if s.has(lane, now_s) and mine(run_id, s.channel, s.position)]

        for lane in LANES:
            ready = {
                run_id: sessions
                for run_id in self._runs
                if run_id not in blocked and (sessions := ready_of(run_id, lane))
            }
            if ready:
                run_id = min(ready, key=lambda each: self._runs[each].used_s)
                run, sessions = self._runs[run_id], ready[run_id]
                self._reached_s = max(self._reached_s, run.used_s)
                session = min(sessions, key=lambda s: (s.put_off[0] if lane == "later" else 0, s.used_s))
                run.reached_s = max(run.reached_s, session.used_s)
                return self._take(run_id, session, lane, now_s)
        return None

    def used(self, job: SweepJob, seconds: float) -> None:
        """Charge a job's engine time to its run and session."""
        run = self._runs.get(job.run_id)
        if run is not None:
            run.used_s += seconds
            session = run.sessions.get((job.channel, job.position))
            if session is not None:
                session.used_s += seconds
                if job.lane == "later":
                    session.tries = 0

    def again(self, job: SweepJob) -> None:
        """Put back a job that was taken and not done; it is next. Rolling updates are not worth it."""
        if job.run_id in self._runs and job.lane != "rolling":
            self._again.append(job)

    def not_there(self, job: SweepJob, now_s: float) -> Dropped | None:
        """Put back a job of lane "later" whose frames are not in the file yet; drop it after some tries."""
        run = self._runs.get(job.run_id)
        if run is None:
            return None
        session = self._woken(run, job.channel, job.position)
        session.tries += 1
        if session.tries >= _MOST_TRIES:
            session.tries = 0
            return Dropped(job, NOT_THERE)
        session.put_off.appendleft(job.sweep_number)
        session.put_off_received_s.appendleft(job.received_s)
        session.retry_s = now_s + _RETRY_S
        return None

    @property
    def _serving(self) -> bool:
        return self._serving_since_s != float("inf")

    def _sessions(self, run_id: str | None = None) -> Iterator[_SessionQueue]:
        for name, run in self._runs.items():
            if run_id in (None, name):
                yield from run.sessions.values()

    def _woken(self, run: _RunQueue, channel: int, position: int) -> _SessionQueue:
        """Return a session; one that was idle, or whose run was, starts level with the others."""
        if not run.waits:
            run.used_s = max(run.used_s, self._reached_s)
        key = (channel, position)
        session = run.sessions.setdefault(key, _SessionQueue(*key, Ladder(self._rungs)))
        if not (session.in_memory or session.put_off):
            session.used_s = max(session.used_s, run.reached_s)
        return session

    def _take(self, run_id: str, session: _SessionQueue, lane: Lane, now_s: float) -> SweepJob:
        if lane == "later":
            return self._put_off_job(run_id, session)
        if lane == "rolling" and session.rolling is not None:
            job, session.rolling = session.rolling, None
        else:
            job = session.sweeps.popleft()
            if self.policy == "live":
                session.ladder.began(now_s, max(job.queued_s, self._serving_since_s))
        if self.policy == "live":
            job.effort = session.ladder.effort
        return job

    @staticmethod
    def _put_off_job(run_id: str, session: _SessionQueue) -> SweepJob:
        number, received_s = session.put_off.popleft(), session.put_off_received_s.popleft()
        return SweepJob(run_id, number, session.channel, session.position, "later", received_s=received_s)

    def _over_the_backlog(self, session: _SessionQueue, now_s: float) -> list[Dropped]:
        dropped: list[Dropped] = []
        while len(session.sweeps) > self._backlog:
            if self.policy == "live" and self._serving and not session.ladder.at_the_top:
                # Try less effort before skipping a sweep; its effect shows after a sweep or two.
                session.ladder.began(now_s, max(session.sweeps[0].queued_s, self._serving_since_s))
                if len(session.sweeps) <= 2 * self._backlog + 2:
                    break
            dropped.append(self._drop(session))
        return dropped

    def _over_the_bytes(self, newest: SweepJob) -> list[Dropped]:
        dropped: list[Dropped] = []
        for session in self._sessions():
            if self.waiting_bytes <= self._most_bytes:
                return dropped
            if session.rolling is not None and session.rolling is not newest:
                session.rolling = None
        while self.waiting_bytes > self._most_bytes:
            oldest = [
                (-run.nbytes, session.sweeps[0].queued_s, session)
                for run in self._runs.values()
                for session in run.sessions.values()
                if session.sweeps and session.sweeps[0] is not newest
            ]
            if not oldest:
                break
            dropped.append(self._drop(min(oldest, key=lambda each: each[:2])[-1]))
        return dropped

    def _drop(self, session: _SessionQueue) -> Dropped:
        """Remove the oldest sweep of a session from memory."""
        job = session.sweeps.popleft()
        job.sweep = None
        if self.policy == "archive":
            session.put_off.append(job.sweep_number)
            session.put_off_received_s.append(job.received_s)
        return Dropped(job, BUSY, put_off=self.policy == "archive")
