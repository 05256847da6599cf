"""The engine in a process of its own: a crash there costs no frame, and at most some time.

`EngineProcess` lives in the daemon and serves all of its runs. It has one thread, which hands sweeps to the
child process one at a time and gives volumes to their runs' sinks. What is next is `schedule.Scheduler`'s
business, the child's life `engine_keeper`'s, what runs the network `engine_successor`'s, what becomes of
sessions the child's. Work is taken from the moment a run is begun, also while the engine still opens or is
started again.

Nothing but the engine's thread ever waits: `submit` queues and returns, on any thread. A run that has no room
for a volume (a full disk) holds up no other: its volume is kept, and its next sweeps wait. A child that dies
is replaced; the sweep that it was at is tried once more, its sessions go on from their checkpoints.

Every sweep that is submitted ends in exactly one of `EngineSink.volume` and `EngineSink.lost`; a rolling one
ends in `EngineSink.live`, or in nothing where a newer one came.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.effort import efforts
from microdiffusion.daemon.engine_builder import Build, build_engine
from microdiffusion.daemon.engine_child import open_engine
from microdiffusion.daemon.engine_keeper import EngineKeeper
from microdiffusion.daemon.engine_messages import Begin, Changed, Configure, End, EngineInfo, Told, Work
from microdiffusion.daemon.engine_sinks import EngineSink, EngineSinks
from microdiffusion.daemon.engine_successor import Note, Successor
from microdiffusion.daemon.live_settings import changed
from microdiffusion.daemon.schedule import Dropped, Job, Lane, Scheduler
from microdiffusion.engines.memory import memory_statement
from microdiffusion.errors import EngineError, MddError
from microdiffusion.sweep import Reconstruction, Sweep

if TYPE_CHECKING:
    from microdiffusion.engines.engine import Engine
    from microdiffusion.run_header import RunHeader

MAX_ATTEMPTS = 2
"""Engine processes that may die over one sweep."""
READY_S = 120.0
"""Importing torch from a cold disk can take a while."""

_IDLE_S = 0.5
_AGAIN_S = 0.01  # how soon a volume is offered again that there was no room for
_EFFORTS = ("full effort", "one evaluation of the network", "the INR without the network")


class EngineProcess:
    """Runs the reconstructor beside the daemon.

    Parameters
    ----------
    config : EngineConfig
    waiting_bytes : int
        Most that the projections of waiting sweeps may take, over all runs; one sweep may always wait.
    state : Path, optional
        Folder where sessions are put aside and checkpoints lie; None: a session that has to go, or whose
        process dies, starts cold.
    on_note : callable
        Something that the user should know, and whether it is "info" or a "warning".
    opener, build : callable
        Functions of a module: what the child opens, and what builds what is pending.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        state: Path | None = None,
        on_note: Note = lambda text, level: None,
        opener: Callable[[EngineConfig], Engine] = open_engine,
        build: Build = build_engine,
    ) -> None:
        self._config = config
        self._state = state
        self._on_note = on_note
        context = multiprocessing.get_context("spawn")
        self._keeper = EngineKeeper(context, opener, state)
        self._successor = Successor(context, config, build, on_note)
        self._sinks = EngineSinks(self._broke)
        self._wake_out, self._wake_in = context.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._woken = False
        self._scheduler = Scheduler(
            policy=config.policy, backlog=config.backlog, most_bytes=waiting_bytes, rungs=efforts(config)
        )
        self._ended: deque[str] = deque()
        self._begun: set[str] = set()  # what the present child knows
        self._configured = config  # what it goes by
        self._running: Job | None = None
        self._busy = False  # the child is at something, perhaps a sweep that nobody waits for any more
        self._handed_s = 0.0
        self._undelivered: list[tuple[Job, Reconstruction]] = []
        self._delivering: Job | None = None
        self._efforts: dict[tuple[str, int, int], int] = {}
        self._stop_requested = threading.Event()
        self._ready = threading.Event()
        self._failure: MddError | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-engine", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process number of the child."""
        return self._keeper.pid

    @property
    def restarts(self) -> int:
        """How often the child was replaced."""
        return self._keeper.restarts

    @property
    def info(self) -> EngineInfo | None:
        """What serves; None until the child is ready."""
        return self._successor.info

    @property
    def building(self) -> str:
        """How far a build is, as a sentence; empty where there is none."""
        return self._successor.building

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

    def start(self) -> None:
        """Start the child and the thread; returns at once."""
        self._spawn()
        self._thread.start()

    def is_ready(self, wait_s: float) -> bool:
        """Wait at most `wait_s` for device and weights to be open; raise what the child could not open."""
        self._ready.wait(wait_s)
        self.raise_if_failed()
        return self.info is not None

    def wait_ready(self, timeout_s: float = READY_S) -> EngineInfo:
        """Wait until device and weights are open.

        Raises
        ------
        MddError
            What the child could not open, as it said.
        """
        self._ready.wait(timeout_s)
        self.raise_if_failed()
        if self.info is None:
            raise EngineError(
                f"The engine did not get ready within {timeout_s:g} s: "
                "wait until the machine is less busy, and start again."
            )
        return self.info

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
        """Change a setting (`live_settings.LIVE`) from the next sweep on.

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

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child; kill it if it does not end in time."""
        self._stop_requested.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._keeper.kill(timeout_s)
        for run_id in self._sinks.run_ids:
            self.give_up(run_id)
        while self._ended:
            self._forget_files(self._ended.popleft())

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if something did."""
        if self._failure is not None:
            raise self._failure

    def failure_of(self, run_id: str) -> MddError | None:
        """Return what a run's sink raised, which ended the engine's work for that run alone."""
        run = self._sinks.get(run_id)
        return None if run is None else run.failure

    def _in_hand(self, run_id: str | None) -> int:
        """Return the sweeps (of a run) that were taken from the scheduler; with the lock."""
        hand = [*(job for job, _ in self._undelivered), self._running, self._delivering]
        return sum(job is not None and job.lane != "rolling" and run_id in (None, job.run_id) for job in hand)

    def _wake(self) -> None:
        with self._lock:
            if self._woken:
                return  # a pipe that is full of them would block
            self._woken = True
        with contextlib.suppress(OSError):
            self._wake_in.send_bytes(b"\0")

    def _spawn(self) -> None:
        self._configured = self._config
        runtime = {"runtime": "torch"} if self._successor.given_up else {}
        self._keeper.spawn(self._config.model_copy(update=runtime))

    def _run(self) -> None:
        try:
            while not self._stop_requested.is_set():
                pipe = self._keeper.pipe
                if pipe is None:
                    return
                patience_s = _AGAIN_S if self._undelivered else _IDLE_S
                wait([pipe, self._wake_out, *self._successor.pipes], timeout=patience_s)
                with self._lock:
                    self._woken = False
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                try:
                    self._turn(pipe)
                except MddError:
                    raise  # what the child said, although some of them are kinds of OSError
                except (EOFError, OSError):
                    if self._stop_requested.is_set():
                        return
                    self._restart()
        except MddError as error:
            self._fail(error)
        except Exception as error:  # the owner gets it from raise_if_failed
            failure = EngineError(f"The engine's thread failed ({type(error).__name__}: {error}).")
            failure.__cause__ = error
            self._fail(failure)
        finally:
            self._successor.stop()

    def _turn(self, pipe: Connection) -> None:
        """Take what the child says, and give it what is next."""
        while pipe.poll():
            self._take(pipe.recv())
        self._deliver()
        if self.info is None:
            return
        self._successor.watch(pipe)
        with self._lock:
            ended, config = list(self._ended), self._config
            self._ended.clear()
        for run_id in ended:
            if run_id in self._begun:
                self._begun.discard(run_id)
                pipe.send(End(run_id))
            elif self._sinks.get(run_id) is None:
                self._forget_files(run_id)
        if config is not self._configured:
            self._configured = config
            pipe.send(Configure(config))
        self._hand_over(pipe)

    def _fail(self, error: MddError) -> None:
        self._failure = error
        self._ready.set()

    def _hand_over(self, pipe: Connection) -> None:
        """Give the child the next sweep, where it is free."""
        while not self._busy:
            now_s = time.monotonic()
            with self._lock:
                full = {job.run_id for job, _ in self._undelivered}
                job = self._scheduler.next(now_s, full)
                self._running = job
            if job is None or (job.sweep is None and not self._load(job)):
                if job is None:
                    return
                continue
            sweep, run = job.sweep, self._sinks.get(job.run_id)
            if sweep is None or run is None or self._running is None:
                continue  # given up meanwhile
            self._tell_effort(job)
            if job.run_id not in self._begun:
                self._begun.add(job.run_id)
                pipe.send(Begin(run.header))
            self._busy, self._handed_s = True, time.monotonic()
            pipe.send(Work(job.run_id, sweep, job.lane, job.effort))

    def _load(self, job: Job) -> bool:
        """Fetch the frames of a sweep that was put off; False where they are not there."""
        job.sweep = self._sinks.load(job)
        if job.sweep is not None:
            job.time_s = job.sweep.time_s
            return True
        with self._lock:
            given_up, self._running = self._running is None, None
            dropped = None if given_up else self._scheduler.not_there(job, time.monotonic())
        if dropped is not None:
            self._sinks.lost(job, "failed", dropped.reason)
        return False

    def _take(self, answer: object) -> None:
        if isinstance(answer, EngineInfo):
            self._successor.opened(answer)
            with self._lock:
                self._scheduler.set_serving(True, time.monotonic())
            self._ready.set()
        elif isinstance(answer, Changed):
            self._successor.changed(answer)
        elif isinstance(answer, Told):
            self._told(answer)
        elif isinstance(answer, MddError) and self.info is None:
            raise answer  # it could not even start
        else:
            self._done(answer)

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

    def _told(self, message: Told) -> None:
        if message.tile is not None:
            with self._lock:
                self._config = self._configured = self._config.model_copy(update={"tile": message.tile})
        self._on_note(message.text, "warning")
        self._sinks.event_for_all("engine", message.text)

    def _restart(self) -> None:
        """Replace a child that died; its sweep is tried once more."""
        code = self._keeper.bury()
        now_s = time.monotonic()
        with self._lock:
            job, self._running = self._running, None
            self._busy = False
            self._scheduler.set_serving(False, now_s)
            if job is not None:
                job.attempts += 1
                if job.lane != "rolling" and job.attempts < MAX_ATTEMPTS:
                    self._scheduler.again(job)
                    job = None
        if job is not None and job.lane != "rolling":
            self._sinks.lost(job, "failed", f"the engine died twice over this sweep (exit code {code})")
        self._keeper.check(code)
        opening = self.info is None or self._successor.changing
        if (opening or self._keeper.died_lately > 1) and self._config.method == "mdd":
            self._successor.give_up(code)
        self._successor.info = None
        self._successor.changing = False
        self._ready.clear()
        self._begun.clear()
        self._sinks.event_for_all(
            "engine", f"the engine process died (exit code {code}): it is started again"
        )
        self._spawn()

    def _forget_files(self, run_id: str) -> None:
        if self._state is not None:
            shutil.rmtree(self._state / run_id, ignore_errors=True)
