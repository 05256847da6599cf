"""The engine in a process of its own: a crash there costs no frame, and at most some time.

`EngineProcess` lives in the daemon and serves all of its runs. It has one thread, which hands sweeps to the
child process one at a time and gives volumes to their runs' sinks. What waits and where it goes is
`engine_desk`'s business, what is next `schedule`'s, the child's life `engine_keeper`'s, what runs the network
`engine_successor`'s, and what becomes of sessions the child's. Work is taken from the moment a run is begun,
also while the engine still opens or is started again.

Nothing but the engine's thread ever waits for the child. A run that has no room for a volume (a full disk)
holds up no other: its volume is kept, and its next sweeps wait. A child that dies is replaced; the sweep that
it was at is tried once more, its sessions go on from their checkpoints.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.engine.builder import Build, build_engine
from microdiffusion.daemon.engine.messages import Begin, Changed, Configure, End, EngineInfo, Told, Work
from microdiffusion.daemon.engine.scheduler import Job
from microdiffusion.daemon.engine.sinks import EngineSink
from microdiffusion.daemon.engine.successor import Note, Successor
from microdiffusion.daemon.engine.supervisor import Supervisor
from microdiffusion.daemon.engine.work_queue import WorkQueue
from microdiffusion.daemon.engine.worker import open_engine
from microdiffusion.errors import EngineError, MddError

if TYPE_CHECKING:
    from microdiffusion.engines.pipeline import Engine

__all__ = ["READY_S", "EngineInfo", "EngineProcess", "EngineSink", "Job"]

READY_S = 120.0
"""Importing torch from a cold disk can take a while."""

HANG_S = 600.0
"""A sweep that takes longer than this, and than 20 times the longest so far, does not end any more."""

_WATCHED_S = 5.0  # more than that, and the thread did not find out by itself
_IDLE_S = 0.5
_AGAIN_S = 0.01  # how soon a volume is offered again that there was no room for
_HURRY_S = 0.5  # how long a child may take to end that is at something nobody waits for
_STALE_S = 7 * 86400.0  # state of runs that nobody went on with


class EngineProcess(WorkQueue):
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
        super().__init__(config, waiting_bytes=waiting_bytes, on_note=on_note)
        self._state = state
        context = multiprocessing.get_context("spawn")
        self._keeper = Supervisor(context, opener, state)
        self._successor = Successor(context, config, build, on_note)
        self._wake_out, self._wake_in = context.Pipe(duplex=False)
        self._woken = False
        self._begun: set[str] = set()  # what the present child knows
        self._configured = config  # what it goes by
        self._longest_s = 0.0
        self._stop_requested = threading.Event()
        self._ready = threading.Event()
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

    def start(self) -> None:
        """Start the child and the thread; returns at once."""
        if self._state is not None:
            forget_stale(self._state)
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

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child; kill it if it does not end in time."""
        self._stop_requested.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        at_something = self._busy or self.info is None
        self._keeper.kill(_HURRY_S if at_something else timeout_s)
        for run_id in self._sinks.run_ids:
            self.give_up(run_id)
        while self._ended:
            self._forget_files(self._ended.popleft())

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if something did; asked often, by its owner.

        A child that stands still takes no sweep either, which keeps this one's thread in the pipe: so the
        owner ends such a child where the thread does not.
        """
        super().raise_if_failed()
        if self._busy and time.monotonic() - self._handed_s > self._patience_s + _WATCHED_S:
            self._keeper.put_down()

    @property
    def _patience_s(self) -> float:
        return max(HANG_S, 20 * self._longest_s)

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
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                # After taking the byte: who comes in between sends none, and is seen by this turn.
                with self._lock:
                    self._woken = False
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
        if self._busy:
            self._check_for_hang()
            return
        job = self._next()
        if job is None or job.sweep is None:
            return
        run = self._sinks.get(job.run_id)
        if run is None:  # it ended this very moment
            with self._lock:
                self._running, self._busy = None, False
            return
        if job.run_id not in self._begun:
            self._begun.add(job.run_id)
            pipe.send(Begin(run.header))
        pipe.send(Work(job.run_id, job.sweep, job.lane, job.effort))

    def _check_for_hang(self) -> None:
        """Kill a child that has been at one sweep for far too long; then it is replaced as one that died."""
        taken_s = time.monotonic() - self._handed_s
        if taken_s > self._patience_s:
            self._on_note(f"the engine has not answered for {taken_s:.0f} s: it is ended", "warning")
            self._keeper.kill(0.0)
            raise EOFError

    def _fail(self, error: MddError) -> None:
        self._failure = error
        self._ready.set()

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
            self._longest_s = max(self._longest_s, time.monotonic() - self._handed_s)
            self._done(answer)

    def _told(self, message: Told) -> None:
        if message.tile is not None:
            with self._lock:
                told = self._configured is self._config  # else it still has to hear of what was set meanwhile
                self._config = self._config.model_copy(update={"tile": message.tile})
                self._configured = self._config if told else self._configured
        self._on_note(message.text, "warning")
        self._sinks.event_for_all("engine", message.text)

    def _restart(self) -> None:
        """Replace a child that died; its sweep is tried once more."""
        code = self._keeper.bury()
        self._died(code)
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


def forget_stale(state: Path) -> None:
    """Remove what is kept of runs that nobody went on with for a week: it would only make them start warm."""
    for folder in state.iterdir() if state.is_dir() else ():
        with contextlib.suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
