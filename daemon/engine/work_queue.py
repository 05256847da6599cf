"""The engine's work of all runs: waiting sweeps, the one in progress, volumes waiting for room in their run.

`WorkQueue` knows no process: any thread submits; the engine's thread takes the next sweep, settles it and
delivers. A lock guards the state; sinks are never called while it is held. Only `drain` waits. An exception
of a sink ends the work for its run alone.

Every submitted sweep ends in exactly one of `EngineSink.volume` and `EngineSink.lost`; a rolling one ends in
`EngineSink.live`, or is replaced by a newer one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.engine.effort import efforts
from microdiffusion.daemon.engine.scheduler import Mine, Scheduler
from microdiffusion.daemon.engine.served_runs import ServedRuns
from microdiffusion.daemon.engine.sinks import EngineSink, Lane, SweepJob
from microdiffusion.engines.memory import memory_statement
from microdiffusion.errors import ConfigError, EngineError, MddError
from microdiffusion.frames import Reconstruction, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.wire import SweepFeedback

Note = Callable[[str, Literal["info", "warning"]], None]
"""Takes a message for the user."""

LIVE = ("engine.steps", "engine.guidance", "engine.policy", "engine.update")
"""Settings that may change during a run: they affect neither sessions, run files nor processes."""
MAX_ATTEMPTS = 2
"""Engine processes that may die over one sweep."""

_EFFORTS = ("full effort", "one evaluation of the network", "the INR without the network")


class WorkQueue:
    """The engine's work.

    `waiting_bytes` limits the projections of waiting sweeps, over all runs; one may always wait. `wake` wakes
    the engine's thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        on_note: Note = lambda text, level: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._on_note = on_note
        self._wake = wake
        self._lock = threading.Lock()
        self._scheduler = Scheduler(
            policy=config.policy, backlog=config.backlog, most_bytes=waiting_bytes, rungs=efforts(config)
        )
        self.runs = ServedRuns(self._run_failed)
        self._ended: list[str] = []  # runs whose end the engine process does not know yet
        self._running: dict[int, SweepJob] = {}  # by device
        self._undelivered: list[tuple[SweepJob, Reconstruction]] = []
        self._delivering: SweepJob | None = None
        self._efforts: dict[tuple[str, int, int], int] = {}
        self._failure: MddError | None = None

    @property
    def config(self) -> EngineConfig:
        """The configuration, with live changes."""
        return self._config

    @property
    def waiting_bytes(self) -> int:
        """Size of the waiting projections."""
        with self._lock:
            return self._scheduler.waiting_bytes

    @property
    def idle(self) -> bool:
        """True where there is nothing to do, now or later."""
        with self._lock:
            return not (self._scheduler.waiting or self._scheduler.backlog or self._in_hand(None))

    @property
    def has_undelivered(self) -> bool:
        """True while volumes wait for room in their run."""
        return bool(self._undelivered)

    def pending(self, run_id: str) -> int:
        """Return the number of a run's sweeps without a volume or a reason for none."""
        with self._lock:
            return self._scheduler.pending(run_id) + self._in_hand(run_id)

    # Any thread -----------------------------------------------------------------------------------

    def begin(self, header: RunHeader, sink: EngineSink, *, file: str = "RUN.h5") -> None:
        """Add a run: it may submit sweeps, whether the engine is ready or not.

        `file` is the name of its file, for the advice on sweeps that were not processed.
        """
        with self._lock:
            self.runs.add(header, sink, file)
            self._scheduler.begin(header.run_id)
        each = f", on each of {len(devices)} devices" if len(devices := self._config.devices) > 1 else ""
        self._on_note(memory_statement(self.runs.headers, self._config) + each, "info")
        self._wake()

    def submit(self, run_id: str, sweep: Sweep, *, lane: Lane = "sweep", newest_seq: int = -1) -> None:
        """Queue a sweep, or a rolling update that replaces the session's last; never waits.

        Raises
        ------
        EngineError
            The run was not begun, or is over.
        """
        now_s = time.monotonic()
        job = SweepJob.of(run_id, sweep, lane=lane, newest_seq=newest_seq, now_s=now_s)
        with self._lock:
            if self.runs.failure_of(run_id) is not None:
                return
            try:
                dropped = self._scheduler.add(job, now_s)
            except KeyError:
                raise EngineError(f"A sweep came for the run {run_id}, which is not open here.") from None
        self.runs.dropped(dropped)
        self._wake()

    def put_off(self, run_id: str, sweep: int, channel: int, position: int) -> None:
        """Queue a sweep whose frames are in the run file: it is processed when nothing else waits.

        Raises
        ------
        EngineError
            The run was not begun, or is over.
        """
        with self._lock:
            try:
                self._scheduler.put_off(run_id, channel, position, sweep, time.monotonic())
            except KeyError:
                raise EngineError(f"A sweep was put off for the run {run_id}, which is not open.") from None
        self._wake()

    def has_room(self, run_id: str) -> bool:
        """Return whether another sweep of a run would wait without any being put off or skipped."""
        with self._lock:
            return self._scheduler.has_room(run_id)

    def set(self, key: str, value: Any) -> None:
        """Change one of the `LIVE` settings from the next sweep on; `value` may be its text.

        Raises
        ------
        ConfigError
            It may not be changed while the daemon runs, or the value is impossible.
        """
        if key not in LIVE:
            raise ConfigError(
                f"{key} cannot be changed while the daemon runs, only {', '.join(LIVE)}: "
                "set it in the configuration and start again."
            )
        try:
            self.change({key.removeprefix("engine."): value})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ConfigError(f"{key} = {value!r} is not possible: {reason}.") from None
        self.runs.tell_all("engine", f"{key} = {value} from now on")
        self._wake()

    def change(self, changes: Mapping[str, object]) -> tuple[EngineConfig, EngineConfig]:
        """Change settings; return the configuration before and after."""
        with self._lock:
            before = self._config
            self._config = EngineConfig.model_validate(before.model_dump() | dict(changes))
            self._scheduler.policy = self._config.policy
            self._scheduler.set_rungs(efforts(self._config))
            return before, self._config

    def drain(
        self,
        run_id: str,
        timeout_s: float,
        hurry: Callable[[], bool] = lambda: False,
        *,
        later_s: float = math.inf,
    ) -> bool:
        """Wait for all sweeps of a run, for those that were put off `later_s` at most.

        At the timeout, or in a hurry, all that are left are skipped. Returns whether all were processed.
        """
        with self._lock:
            self._scheduler.drop_rolling(run_id)
        began_s = time.monotonic()
        all_done = True
        while self.pending(run_id) and self._failure is None:
            waited_s = time.monotonic() - began_s
            if waited_s > timeout_s or hurry():
                self.give_up(run_id)
                return False
            if waited_s > later_s and all_done:
                with self._lock:
                    left = self._scheduler.forget_put_off(run_id)
                self.runs.left(run_id, left)
                all_done = not left
            time.sleep(0.02)
        if self._failure is not None:
            self.give_up(run_id)
        return all_done and self._failure is None

    def give_up(self, run_id: str) -> None:
        """Skip all sweeps of a run; an answer that still arrives is ignored."""
        with self._lock:
            left = [job for job, _ in self._undelivered if job.run_id == run_id]
            self._undelivered = [each for each in self._undelivered if each[0].run_id != run_id]
            for device, job in list(self._running.items()):
                if job.run_id == run_id:
                    if job.lane != "rolling":
                        left.append(job)
                    del self._running[device]
            left.extend(self._scheduler.end(run_id))
            if run_id in self.runs:
                self._scheduler.begin(run_id)
        self.runs.left(run_id, left)

    def end(self, run_id: str) -> None:
        """Remove a run and its sessions; waiting sweeps are skipped."""
        self.give_up(run_id)
        with self._lock:
            self._scheduler.end(run_id)
            self.runs.remove(run_id)
            self._efforts = {key: value for key, value in self._efforts.items() if key[0] != run_id}
            self._ended.append(run_id)
        self._wake()

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if anything did."""
        if self._failure is not None:
            raise self._failure

    # The engine's thread --------------------------------------------------------------------------

    def fail(self, error: MddError) -> None:
        """Note that the engine is gone for good."""
        self._failure = error

    def set_serving(self, serving: bool) -> None:
        """Say whether the engine takes work; waiting for it to open is not a sign of load."""
        with self._lock:
            self._scheduler.set_serving(serving, time.monotonic())

    def take_ended(self) -> list[str]:
        """Return the runs that have ended since the last call."""
        with self._lock:
            ended, self._ended = self._ended, []
        return ended

    def close(self) -> list[str]:
        """Skip all sweeps of all runs; return `take_ended`."""
        for run_id in self.runs.ids:
            self.give_up(run_id)
        return self.take_ended()

    def next(
        self, device: int = 0, mine: Mine = lambda run_id, channel, position: True
    ) -> tuple[SweepJob, RunHeader] | None:
        """Take the next sweep for a device, with its frames in memory, and its run; None where none waits.

        `mine` tells which sessions the device serves.
        """
        while True:
            with self._lock:
                full = {job.run_id for job, _ in self._undelivered}
                job = self._scheduler.next(time.monotonic(), full, mine)
                if job is None:
                    self._running.pop(device, None)
                    return None
                self._running[device] = job
            if job.sweep is None and not self._load(job, device):
                continue
            with self._lock:
                run = self.runs.get(job.run_id)
                if self._running.get(device) is job and run is not None:
                    break
        self._tell_effort(job)
        return job, run.header

    def hear(self, feedback: SweepFeedback, device: int = 0) -> None:
        """Pass on what the sweep that a device is at showed."""
        with self._lock:
            job = self._running.get(device)
        if job is not None:
            self.runs.feedback(job.run_id, feedback)

    def done(self, answer: object, seconds: float, device: int = 0) -> None:
        """Settle the sweep that a device was at: its answer, and the engine time it took."""
        with self._lock:
            job = self._running.pop(device, None)
            if job is None:  # given up meanwhile
                return
            self._scheduler.used(job, seconds)
            if isinstance(answer, Reconstruction) and job.lane != "rolling":
                self._undelivered.append((job, answer))
                return
        if isinstance(answer, Reconstruction):
            self.runs.live(job, answer)
        elif job.lane != "rolling":
            self.runs.lost(job, "failed", str(answer))

    def died(self, code: object, device: int = 0) -> None:
        """Note that the engine process of a device died: its sweep is tried once more."""
        with self._lock:
            job = self._running.pop(device, None)
            if job is not None:
                job.attempts += 1
                if job.attempts < MAX_ATTEMPTS:
                    self._scheduler.again(job)
                    job = None
        if job is not None and job.lane != "rolling":
            self.runs.lost(job, "failed", f"the engine died twice over this sweep (exit code {code})")

    def deliver(self) -> None:
        """Offer each finished volume to its run."""
        for _ in range(len(self._undelivered)):
            with self._lock:
                if not self._undelivered:
                    return
                job, result = self._undelivered.pop(0)
                self._delivering = job
            taken = self.runs.volume(job, result)
            with self._lock:
                self._delivering = None
                run = self.runs.get(job.run_id)
                if not taken and run is not None:
                    self._undelivered.append((job, result))
                caught_up = run is not None and run.behind and not self._scheduler.put_off_of(job.run_id)
                if run is not None and caught_up:
                    run.behind = False
            if caught_up:
                self.runs.event(job.run_id, "backlog", "the sweeps that waited in the run file are caught up")

    def _load(self, job: SweepJob, device: int) -> bool:
        """Load the frames of a sweep that was put off; return False where they are absent."""
        run = self.runs.get(job.run_id)
        reason = ""
        try:
            # Unreadable frames are a problem of one sweep, not of the run.
            job.sweep = None if run is None else run.sink.load(job)
        except MddError as error:
            reason = str(error)
        except Exception as error:  # an OSError would look like the death of the engine process
            reason = f"its frames could not be read ({type(error).__name__}: {error})"
        if job.sweep is not None:
            job.time_s = job.sweep.time_s
            return True
        with self._lock:
            given_up = self._running.pop(device, None) is None
            if not reason and not given_up:
                dropped = self._scheduler.not_there(job, time.monotonic())
                reason = "" if dropped is None else dropped.reason
        if reason and not given_up:
            self.runs.lost(job, "failed", reason)
        return False

    # Helpers --------------------------------------------------------------------------------------

    def _in_hand(self, run_id: str | None) -> int:
        """Return the number of sweeps (of a run) taken from the scheduler; with the lock held."""
        hand = [*(job for job, _ in self._undelivered), *self._running.values(), self._delivering]
        return sum(job is not None and job.lane != "rolling" and run_id in (None, job.run_id) for job in hand)

    def _run_failed(self, run_id: str, failure: MddError) -> None:
        """Drop the sweeps of a run whose sink has raised."""
        with self._lock:
            self._scheduler.end(run_id)
            self._undelivered = [each for each in self._undelivered if each[0].run_id != run_id]
        self._on_note(str(failure), "warning")

    def _tell_effort(self, job: SweepJob) -> None:
        key = (job.run_id, job.channel, job.position)
        if job.lane == "sweep" and self._efforts.get(key, 0) != job.effort:
            self._efforts[key] = job.effort
            text = f"from sweep {job.sweep_number} on: {_EFFORTS[job.effort]}"
            self.runs.event(job.run_id, "effort", text)
