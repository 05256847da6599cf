"""The engine's desk: what comes in for it, what is in its hands, and where what it makes goes.

`WorkQueue` is the part of `EngineProcess` that knows no process: any thread submits, the engine's thread
takes what is next, settles it and delivers. A lock guards the queue and what is in hand; sinks are never
called with it. Nothing here waits but `drain`.

Every sweep that is submitted ends in exactly one of `EngineSink.volume` and `EngineSink.lost`; a rolling one
ends in `EngineSink.live`, or in nothing where a newer one came.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.engine.effort import efforts
from microdiffusion.daemon.engine.scheduler import Dropped, Job, Lane, Scheduler
from microdiffusion.daemon.engine.settings import changed
from microdiffusion.daemon.engine.sinks import EngineSink, EngineSinks
from microdiffusion.engines.memory import memory_statement
from microdiffusion.errors import EngineError, MddError
from microdiffusion.frames import Reconstruction, Sweep

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine.successor import Note
    from microdiffusion.header import RunHeader

MAX_ATTEMPTS = 2
"""Engine processes that may die over one sweep."""

_EFFORTS = ("full effort", "one evaluation of the network", "the INR without the network")


class WorkQueue:
    """What waits for the engine, of all runs.

    Parameters
    ----------
    config : EngineConfig
    waiting_bytes : int
        Most that the projections of waiting sweeps may take; one sweep may always wait.
    on_note : callable
        Something that the user should know, and whether it is "info" or a "warning".
    """

    def __init__(self, config: EngineConfig, *, waiting_bytes: int, on_note: Note) -> None:
        self._config = config
        self._on_note = on_note
        self._sinks = EngineSinks(self._broke)
        self._lock = threading.Lock()
        self._scheduler = Scheduler(
            policy=config.policy, backlog=config.backlog, most_bytes=waiting_bytes, rungs=efforts(config)
        )
        self._ended: deque[str] = deque()  # runs that the child has to be told about
        self._running: Job | None = None
        self._busy = False  # the child is at something, perhaps a sweep that nobody waits for any more
        self._handed_s = 0.0
        self._undelivered: list[tuple[Job, Reconstruction]] = []
        self._delivering: Job | None = None
        self._efforts: dict[tuple[str, int, int], int] = {}
        self._failure: MddError | None = None

    @property
    def config(self) -> EngineConfig:
        """The configuration, with what was changed live."""
        return self._config

    @property
    def waiting(self) -> int:
        """Sweeps that wait in memory, are being reconstructed, or whose volume is not handed over yet."""
        with self._lock:
            return self._scheduler.waiting + self._in_hand(None)

    @property
    def waiting_bytes(self) -> int:
        """Size of the projections that wait."""
        with self._lock:
            return self._scheduler.waiting_bytes

    @property
    def backlog(self) -> int:
        """Sweeps that were put off: their frames are in the run files."""
        with self._lock:
            return self._scheduler.backlog

    @property
    def thinned(self) -> int:
        """Rolling updates that a newer one replaced."""
        with self._lock:
            return self._scheduler.thinned

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, now or later."""
        with self._lock:
            return not (self._scheduler.waiting or self._scheduler.backlog or self._in_hand(None))

    def pending(self, run_id: str) -> int:
        """Sweeps of a run that have neither a volume nor a reason for none yet, those put off included."""
        with self._lock:
            return self._scheduler.pending(run_id) + self._in_hand(run_id)

    def backlog_of(self, run_id: str) -> int:
        """Sweeps of a run that were put off."""
        with self._lock:
            return self._scheduler.put_off_of(run_id)

    def begin(self, header: RunHeader, sink: EngineSink, *, file: str = "RUN.h5") -> None:
        """Serve a run: its sweeps may come from now on, whether the engine is ready or not.

        Parameters
        ----------
        header : RunHeader
        sink : EngineSink
            Takes what becomes of them.
        file : str
            The run file's name, for the advice on what was not done.
        """
        with self._lock:
            self._sinks.begin(header, sink, file)
            self._scheduler.begin(header.run_id)
            headers = self._sinks.headers
        self._on_note(memory_statement(headers, self._config), "info")
        self._wake()

    def submit(self, run_id: str, sweep: Sweep, *, lane: Lane = "sweep", newest_seq: int = -1) -> None:
        """Queue a sweep, or a rolling one that replaces the session's last; never waits.

        Raises
        ------
        EngineError
            The run was not begun, or is over.
        """
        now_s = time.monotonic()
        job = Job.of(run_id, sweep, lane=lane, newest_seq=newest_seq, now_s=now_s)
        with self._lock:
            run = self._sinks.get(run_id)
            if run is not None and run.failure is not None:
                return
            try:
                dropped = self._scheduler.add(job, now_s)
            except KeyError:
                raise EngineError(f"A sweep came for the run {run_id}, which is not open here.") from None
        self._tell_dropped(dropped)
        self._wake()

    def put_off(self, run_id: str, sweep: int, channel: int, position: int) -> None:
        """Queue a sweep whose frames are in the run file: it is done when there is nothing else to do.

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
        """Whether a further sweep of a run would wait without any being put off or skipped."""
        with self._lock:
            return self._scheduler.has_room(run_id)

    def set(self, key: str, value: Any) -> None:
        """Change a setting (`settings.LIVE`) from the next sweep on.

        Raises
        ------
        ConfigError
            It may not be changed while the daemon runs, or the value is impossible.
        """
        with self._lock:
            self._config = changed(self._config, key, value)
            self._scheduler.policy = self._config.policy
            self._scheduler.set_rungs(efforts(self._config))
        self._sinks.event_for_all("engine", f"{key} = {value} from now on")
        self._wake()

    def drain(self, run_id: str, timeout_s: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until nothing of a run waits, what was put off included; then give up what is left.

        Parameters
        ----------
        timeout_s : float
        hurry : callable
            Asked often; True: give up now.

        Returns
        -------
        bool
            Whether all was done.
        """
        with self._lock:
            self._scheduler.drop_rolling(run_id)
        deadline = time.monotonic() + timeout_s
        while self.pending(run_id) and self._failure is None:
            if time.monotonic() > deadline or hurry():
                self.give_up(run_id)
                return False
            time.sleep(0.02)
        if self._failure is not None:
            self.give_up(run_id)
        return self._failure is None

    def give_up(self, run_id: str) -> None:
        """Skip all that waits of a run; an answer that still comes is not taken."""
        with self._lock:
            left: list[Job] = [job for job, _ in self._undelivered if job.run_id == run_id]
            self._undelivered = [each for each in self._undelivered if each[0].run_id != run_id]
            if self._running is not None and self._running.run_id == run_id:
                if self._running.lane != "rolling":
                    left.append(self._running)
                self._running = None
            left.extend(self._scheduler.end(run_id))
            run = self._sinks.get(run_id)
            if run is not None:
                self._scheduler.begin(run_id)
        file = "RUN.h5" if run is None else run.file
        for job in left:
            self._sinks.lost(
                job, "skipped", f"the run was closed before its turn came: mdd reconstruct {file}"
            )

    def end(self, run_id: str) -> None:
        """Forget a run and its sessions; what still waits is skipped."""
        self.give_up(run_id)
        with self._lock:
            self._scheduler.end(run_id)
            self._sinks.end(run_id)
            self._efforts = {key: value for key, value in self._efforts.items() if key[0] != run_id}
            self._ended.append(run_id)
        self._wake()

    def failure_of(self, run_id: str) -> MddError | None:
        """Return what a run's sink raised, which ended the engine's work for that run alone."""
        run = self._sinks.get(run_id)
        return None if run is None else run.failure

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if something did."""
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        """Have the engine's thread look."""

    def _next(self) -> Job | None:
        """Take what is next, its frames in memory, for the child to do; None where there is nothing."""
        while True:
            with self._lock:
                full = {job.run_id for job, _ in self._undelivered}
                job = self._running = self._scheduler.next(time.monotonic(), full)
            if job is None:
                return None
            if job.sweep is None and not self._load(job):
                continue
            with self._lock:
                if self._running is job and self._sinks.get(job.run_id) is not None:
                    self._busy, self._handed_s = True, time.monotonic()
                    break
        self._tell_effort(job)
        return job

    def _load(self, job: Job) -> bool:
        """Fetch the frames of a sweep that was put off; False where they are not there."""
        reason = ""
        try:
            job.sweep = self._sinks.load(job)
        except MddError as error:
            reason = str(error)
        except Exception as error:  # an OSError would look as if the engine's process had died
            reason = f"its frames could not be read ({type(error).__name__}: {error})"
        if job.sweep is not None:
            job.time_s = job.sweep.time_s
            return True
        with self._lock:
            given_up, self._running = self._running is None, None
            if not reason and not given_up:
                dropped = self._scheduler.not_there(job, time.monotonic())
                reason = "" if dropped is None else dropped.reason
        if reason and not given_up:
            self._sinks.lost(job, "failed", reason)
        return False

    def _done(self, answer: object) -> None:
        """Take the child's answer to the sweep that it was given."""
        with self._lock:
            self._busy = False
            job, self._running = self._running, None
            if job is None:
                return
            self._scheduler.used(job, time.monotonic() - self._handed_s)
            if isinstance(answer, Reconstruction) and job.lane != "rolling":
                self._undelivered.append((job, answer))
                return
        if not isinstance(answer, Reconstruction):
            if job.lane != "rolling":
                self._sinks.lost(job, "failed", str(answer))
            return
        self._sinks.live(job, answer)

    def _died(self, code: object) -> None:
        """Take note that the child died: its sweep is tried once more."""
        with self._lock:
            job, self._running = self._running, None
            self._busy = False
            self._scheduler.set_serving(False, time.monotonic())
            if job is not None:
                job.attempts += 1
                if job.attempts < MAX_ATTEMPTS:
                    self._scheduler.again(job)
                    job = None
        if job is not None and job.lane != "rolling":
            self._sinks.lost(job, "failed", f"the engine died twice over this sweep (exit code {code})")

    def _in_hand(self, run_id: str | None) -> int:
        """Return the sweeps (of a run) that were taken from the scheduler; with the lock."""
        hand = [*(job for job, _ in self._undelivered), self._running, self._delivering]
        return sum(job is not None and job.lane != "rolling" and run_id in (None, job.run_id) for job in hand)

    def _deliver(self) -> None:
        """Offer each volume to its run."""
        for _ in range(len(self._undelivered)):
            with self._lock:
                if not self._undelivered:
                    return
                job, result = self._undelivered.pop(0)
                self._delivering = job
            taken = self._sinks.volume(job, result)
            with self._lock:
                self._delivering = None
                if not taken and self._sinks.works(job.run_id):
                    self._undelivered.append((job, result))
                behind = self._scheduler.put_off_of(job.run_id) > 0
            if not behind:
                self._sinks.caught_up(job.run_id)

    def _broke(self, run_id: str, failure: MddError) -> None:
        """End the work for a run whose sink raised, and for nobody else."""
        with self._lock:
            self._scheduler.end(run_id)
            self._undelivered = [each for each in self._undelivered if each[0].run_id != run_id]
        self._on_note(str(failure), "warning")

    def _tell_dropped(self, dropped: list[Dropped]) -> None:
        for each in dropped:
            if each.put_off:
                self._sinks.fell_behind(each.job)
            else:
                self._sinks.lost(each.job, "skipped", each.reason)

    def _tell_effort(self, job: Job) -> None:
        key = (job.run_id, job.channel, job.position)
        if job.lane == "sweep" and self._efforts.get(key, 0) != job.effort:
            self._efforts[key] = job.effort
            what = _EFFORTS[job.effort]
            self._sinks.event(job.run_id, "effort", f"from sweep {job.sweep_number} on: {what}")
