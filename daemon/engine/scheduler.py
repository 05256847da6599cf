"""Which sweep the engine does next: pure state, no thread, no process, no clock of its own.

`Scheduler` keeps what waits, of all runs, and bounds it in bytes. Lanes go before one another: "sweep" (a
time point as it comes), then "rolling" (for the live view; of a session only the newest), then "later"
(what was put off, oldest first). Within a lane the run that has used least of the engine's time is next, and
within the run its session: time is shared, not turns, so small volumes do not starve beside large ones. Who
had nothing to do saves nothing up (start-time fair queueing, Goyal et al. 1996).

Of a session at most `backlog` sweeps wait, in their order, since each is easier after the one before. What
does with the oldest of more than that is the policy: "archive" puts it off (a ticket of two numbers: its
frames are in the run file), "live" first spends less effort, then skips it, "wait" keeps it, since `has_room`
told the caller to hold on. Where the bytes of all are too many, rolling ones go first, then the oldest sweep
of the run that holds most.

Not thread-safe: its owner has a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from microdiffusion.daemon.engine.effort import Ladder
from microdiffusion.daemon.engine.sinks import Lane, SweepJob

Policy = Literal["archive", "live", "wait"]
LANES: tuple[Lane, ...] = ("sweep", "rolling", "later")

_RETRY_S = 1.0
_MOST_TRIES = 10
BUSY = "the engine was busy with other sweeps"
NOT_THERE = "its frames could not be read from the run file"


@dataclass(slots=True)
class _Session:
    """A channel and position of a run: what waits of it, and what it has used."""

    channel: int
    position: int
    ladder: Ladder
    used_s: float = 0.0
    sweeps: deque[SweepJob] = field(default_factory=deque)
    rolling: SweepJob | None = None
    # What was put off, as two columns: 10^5 of them are some megabytes.
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
    def waits(self) -> bool:
        return bool(self.sweeps or self.rolling is not None or self.put_off)


@dataclass(slots=True)
class _Run:
    sessions: dict[tuple[int, int], _Session] = field(default_factory=dict)
    used_s: float = 0.0
    reached_s: float = 0.0  # of its sessions: how far the one that was served last had come
    nbytes: int = 0

    @property
    def waits(self) -> bool:
        return any(session.waits for session in self.sessions.values())


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sweep that gets no volume, and why; `put_off` where it gets one later."""

    job: SweepJob
    reason: str
    put_off: bool = False


class Scheduler:
    """What waits for the engine.

    Parameters
    ----------
    backlog : int
        Sweeps of a session that wait in memory.
    most_bytes : int
        Of all waiting projections; one sweep may always wait.
    rungs : tuple of int
        See `effort.efforts`.

    Attributes
    ----------
    thinned : int
        Rolling updates that a newer one replaced.
    """

    def __init__(
        self, *, policy: Policy, backlog: int, most_bytes: int, rungs: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        self.policy = policy
        self.thinned = 0
        self._backlog = backlog
        self._most_bytes = most_bytes
        self._rungs = rungs
        self._runs: dict[str, _Run] = {}
        self._again: deque[SweepJob] = deque()
        self._nbytes = 0
        self._reached_s = 0.0
        self._serving_since_s = float("inf")

    def set_serving(self, serving: bool, now_s: float) -> None:
        """Say whether the engine takes work; waiting for it to open is no reason for less effort."""
        if serving != self._serving:
            self._serving_since_s = now_s if serving else float("inf")

    def set_rungs(self, rungs: tuple[int, ...]) -> None:
        """Go on with other efforts."""
        self._rungs = rungs
        for run in self._runs.values():
            for session in run.sessions.values():
                session.ladder.set_rungs(rungs)

    @property
    def waiting(self) -> int:
        """Sweeps and rolling updates that wait in memory."""
        return len(self._again) + sum(len(s.sweeps) + (s.rolling is not None) for s in self._sessions())

    @property
    def waiting_bytes(self) -> int:
        """Size of their projections."""
        return self._nbytes

    @property
    def backlog(self) -> int:
        """Sweeps that were put off."""
        return sum(len(session.put_off) for session in self._sessions())

    def pending(self, run_id: str) -> int:
        """Return the sweeps of a run that wait, in memory or put off; rolling updates do not count."""
        again = sum(job.run_id == run_id for job in self._again)
        return again + sum(len(s.sweeps) + len(s.put_off) for s in self._sessions(run_id))

    def put_off_of(self, run_id: str) -> int:
        """Return the sweeps of a run that were put off."""
        return sum(len(session.put_off) for session in self._sessions(run_id))

    def _sessions(self, run_id: str | None = None) -> Iterator[_Session]:
        for name, run in self._runs.items():
            if run_id in (None, name):
                yield from run.sessions.values()

    def begin(self, run_id: str) -> None:
        """Take in a run; again does no harm."""
        self._runs.setdefault(run_id, _Run(used_s=self._reached_s))

    def end(self, run_id: str) -> Iterator[SweepJob]:
        """Forget a run; return what waited of it, in memory or put off."""
        run = self._runs.pop(run_id, None)
        left = [job for job in self._again if job.run_id == run_id]
        self._again = deque(job for job in self._again if job.run_id != run_id)
        for job in left:
            self._nbytes -= job.nbytes
        if run is not None:
            self._nbytes -= run.nbytes
        return self._all_of(run_id, run, left)

    def drop_rolling(self, run_id: str) -> None:
        """Forget a run's rolling updates: nobody looks any more."""
        for session in self._sessions(run_id):
            if session.rolling is not None:
                self._take_bytes(self._runs[run_id], -session.rolling.nbytes)
                session.rolling = None

    def add(self, job: SweepJob, now_s: float) -> list[Dropped]:
        """Queue a job; return what had to go for it.

        Raises
        ------
        KeyError
            The run was not begun, or is over.
        """
        run = self._runs[job.run_id]
        session = self._session(run, job)
        self._wake(run, session)
        self._take_bytes(run, job.nbytes)
        if job.lane == "rolling":
            if session.rolling is not None:
                self.thinned += 1
                self._take_bytes(run, -session.rolling.nbytes)
            session.rolling = job
        else:
            session.ladder.came(now_s)
            session.sweeps.append(job)
        dropped = [] if self.policy == "wait" else self._over_the_backlog(run, session, now_s)
        if self.policy != "wait":
            dropped += self._over_the_bytes(job)
        return dropped

    def put_off(self, run_id: str, channel: int, position: int, sweep: int, received_s: float = 0.0) -> None:
        """Queue a sweep whose frames are in the run file.

        Raises
        ------
        KeyError
            The run was not begun, or is over.
        """
        run = self._runs[run_id]
        session = self._session(run, SweepJob(run_id, sweep, channel, position))
        self._wake(run, session)
        session.put_off.append(sweep)
        session.put_off_received_s.append(received_s)

    def has_room(self, run_id: str) -> bool:
        """Return whether a further sweep of a run would wait without any being dropped."""
        full = any(len(session.sweeps) >= self._backlog for session in self._sessions(run_id))
        return not full and self._nbytes < self._most_bytes

    def next(self, now_s: float, blocked: Collection[str] = ()) -> SweepJob | None:
        """Take the next job; one of lane "later" comes without its projections.

        `blocked` are runs that cannot take a volume now.
        """
        for job in self._again:
            if job.run_id not in blocked:
                self._again.remove(job)
                self._nbytes -= job.nbytes
                return job
        for lane in LANES:
            ready = [
                (run_id, run)
                for run_id, run in self._runs.items()
                if run_id not in blocked and any(s.has(lane, now_s) for s in run.sessions.values())
            ]
            if ready:
                run_id, run = min(ready, key=lambda each: each[1].used_s)
                self._reached_s = max(self._reached_s, run.used_s)
                sessions = [s for s in run.sessions.values() if s.has(lane, now_s)]
                session = min(sessions, key=lambda s: (s.put_off[0] if lane == "later" else 0, s.used_s))
                run.reached_s = max(run.reached_s, session.used_s)
                return self._take(run_id, run, session, lane, now_s)
        return None

    def used(self, job: SweepJob, seconds: float) -> None:
        """Charge what a job took of the engine's time."""
        run = self._runs.get(job.run_id)
        if run is not None:
            run.used_s += seconds
            session = run.sessions.get((job.channel, job.position))
            if session is not None:
                session.used_s += seconds
                if job.lane == "later":
                    session.tries = 0

    def again(self, job: SweepJob) -> None:
        """Put a job back that was taken and not done; it is the next one. A rolling one is not worth it."""
        if job.run_id in self._runs and job.lane != "rolling":
            self._again.append(job)
            self._nbytes += job.nbytes

    def not_there(self, job: SweepJob, now_s: float) -> Dropped | None:
        """Put back one of lane "later" whose frames are not in the file yet; give it up after some tries."""
        run = self._runs.get(job.run_id)
        if run is None:
            return None
        session = self._session(run, job)
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

    def _session(self, run: _Run, job: SweepJob) -> _Session:
        key = (job.channel, job.position)
        session = run.sessions.get(key)
        if session is None:
            session = run.sessions[key] = _Session(*key, Ladder(self._rungs), used_s=run.reached_s)
        return session

    def _wake(self, run: _Run, session: _Session) -> None:
        """Let who had nothing to do begin where the others are."""
        if not run.waits:
            run.used_s = max(run.used_s, self._reached_s)
        if not session.waits:
            session.used_s = max(session.used_s, run.reached_s)

    def _take_bytes(self, run: _Run, nbytes: int) -> None:
        run.nbytes += nbytes
        self._nbytes += nbytes

    def _take(self, run_id: str, run: _Run, session: _Session, lane: Lane, now_s: float) -> SweepJob:
        if lane == "later":
            number, received_s = session.put_off.popleft(), session.put_off_received_s.popleft()
            return SweepJob(run_id, number, session.channel, session.position, "later", received_s=received_s)
        if lane == "rolling" and session.rolling is not None:
            job, session.rolling = session.rolling, None
        else:
            job = session.sweeps.popleft()
            if self.policy == "live":
                session.ladder.began(now_s, max(job.queued_s, self._serving_since_s))
        if self.policy == "live":
            job.effort = session.ladder.effort
        self._take_bytes(run, -job.nbytes)
        return job

    def _over_the_backlog(self, run: _Run, session: _Session, now_s: float) -> list[Dropped]:
        dropped: list[Dropped] = []
        while len(session.sweeps) > self._backlog:
            if self.policy == "live" and self._serving and not session.ladder.at_the_top:
                # Before a sweep is skipped there is less effort to try; that takes a sweep or two to tell.
                session.ladder.began(now_s, max(session.sweeps[0].queued_s, self._serving_since_s))
                if len(session.sweeps) <= 2 * self._backlog + 2:
                    break
            dropped.append(self._drop(run, session))
        return dropped

    def _over_the_bytes(self, newest: SweepJob) -> list[Dropped]:
        dropped: list[Dropped] = []
        for run in self._runs.values():
            for session in run.sessions.values():
                if self._nbytes <= self._most_bytes:
                    return dropped
                if session.rolling is not None and session.rolling is not newest:
                    self._take_bytes(run, -session.rolling.nbytes)
                    session.rolling = None
                    self.thinned += 1
        while self._nbytes > self._most_bytes:
            by_size = sorted(self._runs.values(), key=lambda run: -run.nbytes)
            oldest = [
                (run, session)
                for run in by_size
                for session in sorted(
                    (s for s in run.sessions.values() if s.sweeps), key=lambda s: s.sweeps[0].queued_s
                )
                if session.sweeps[0] is not newest
            ]
            if not oldest:
                break
            dropped.append(self._drop(*oldest[0]))
        return dropped

    def _drop(self, run: _Run, session: _Session) -> Dropped:
        """Take the oldest sweep of a session out of memory."""
        job = session.sweeps.popleft()
        self._take_bytes(run, -job.nbytes)
        job.sweep = None
        if self.policy == "archive":
            session.put_off.append(job.sweep_number)
            session.put_off_received_s.append(job.received_s)
            return Dropped(job, BUSY, put_off=True)
        return Dropped(job, BUSY)

    @staticmethod
    def _all_of(run_id: str, run: _Run | None, left: list[SweepJob]) -> Iterator[SweepJob]:
        yield from left
        for session in run.sessions.values() if run is not None else ():
            for number, received_s in zip(session.put_off, session.put_off_received_s, strict=True):
                yield SweepJob(
                    run_id, number, session.channel, session.position, "later", received_s=received_s
                )
            yield from session.sweeps
