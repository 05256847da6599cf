"""The engine in a process of its own: a crash there costs no frame, only time.

`EngineProcess` lives in the daemon and serves all of its runs. Runs put their sweeps into its `WorkQueue` as
soon as they begin; its thread hands them to the process one at a time, and volumes back to the queue. Only
this thread ever waits for the process. A process that dies is replaced: its sweep is tried once more, its
sessions resume from their checkpoints. Where an engine of TensorRT has to be built, the process does so while
it opens; `building` tells how far it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import shutil
import sys
import threading
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.engine.messages import Begin, Building, Configure, End, EngineInfo, Notice, Work
from microdiffusion.daemon.engine.supervisor import Supervisor
from microdiffusion.daemon.engine.work_queue import Note, WorkQueue
from microdiffusion.daemon.engine.worker import Opener, open_engine
from microdiffusion.errors import EngineError, MddError
from microdiffusion.wire import SweepFeedback

TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Modules that build engines; the list in `engines.runtimes` would bring torch."""

HANG_S = 600.0
"""Timeout of a sweep, or 20 times the longest so far."""

_WATCHED_S = 5.0  # after the timeout: the thread is stuck as well
_IDLE_S = 0.5
_AGAIN_S = 0.01  # until a volume is offered again for which there was no room
_HURRY_S = 0.5  # for a process to end whose work nobody waits for
_STALE_S = 7 * 86400.0  # age of the state of runs that nobody resumed


class EngineProcess:
    """Runs the reconstructor beside the daemon.

    Parameters
    ----------
    waiting_bytes : int
        See `WorkQueue`.
    state : Path, optional
        Folder of the sessions; None: a session whose process dies starts cold.
    on_note : callable
        Takes messages for the user, of level "info" or "warning".
    opener : callable
        A module-level function that opens the engine in the process.
    planned : Config, optional
        The run that is about to begin: the engine says when it opens whether it is too slow for it.

    `info` is None until the engine is open.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        state: Path | None = None,
        on_note: Note = lambda text, level: None,
        opener: Opener = open_engine,
        planned: Config | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue = WorkQueue(config, waiting_bytes=waiting_bytes, on_note=on_note, wake=self._wake)
        self.info: EngineInfo | None = None
        self._on_note = on_note
        self._state = state
        self._supervisor = Supervisor(context, opener, state, planned)
        self._wake_out, self._wake_in = context.Pipe(duplex=False)
        self._waking = threading.Lock()
        self._woken = False
        self._may_build = may_build(config)
        self._build: tuple[float, float] | None = None  # when it began, and the share that is done
        self._begun: set[str] = set()  # runs that the present process knows
        self._configured = config  # its settings
        self._handed_s: float | None = None  # when it got its sweep; None while it is idle
        self._longest_s = 0.0
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mdd-engine", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._supervisor.pid

    @property
    def restarts(self) -> int:
        """Number of times the process was replaced."""
        return self._supervisor.restarts

    @property
    def may_build(self) -> bool:
        """True while an engine is built, or may have to be: the camera should wait."""
        return self.info is None and self._may_build

    @property
    def building(self) -> tuple[float, float] | None:
        """The share of a build that is done and the seconds left; None without a build."""
        if self.info is not None or self._build is None:
            return None
        began_s, share = self._build
        return share, (time.monotonic() - began_s) * (1 - share) / max(share, 1e-3)

    def start(self) -> None:
        """Start process and thread; returns at once."""
        if self._state is not None:
            forget_stale(self._state)
        self._supervisor.start(self._configured)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the process; kill it if it does not end in time."""
        self._stop_requested.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        at_something = self._handed_s is not None or self.info is None
        self._supervisor.stop(_HURRY_S if at_something else timeout_s)
        for run_id in self.queue.close():
            self._forget_files(run_id)

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if anything did; its owner calls this often.

        A process that hangs may also block this one's thread in the pipe: then the owner's thread kills it
        here.
        """
        self.queue.raise_if_failed()
        handed_s = self._handed_s
        if handed_s is not None and time.monotonic() - handed_s > self._patience_s + _WATCHED_S:
            self._supervisor.kill()

    @property
    def _patience_s(self) -> float:
        return max(HANG_S, 20 * self._longest_s)

    def _wake(self) -> None:
        with self._waking:
            if self._woken:
                return  # a pipe that is full of them would block
            self._woken = True
        with contextlib.suppress(OSError):
            self._wake_in.send_bytes(b"\0")

    def _run(self) -> None:
        try:
            while not self._stop_requested.is_set():
                pipe = self._supervisor.pipe
                if pipe is None:
                    return
                wait([pipe, self._wake_out], timeout=_AGAIN_S if self.queue.has_undelivered else _IDLE_S)
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                # After reading the byte: a wake in between sends none, but is served by this turn.
                with self._waking:
                    self._woken = False
                try:
                    self._turn(pipe)
                except MddError:
                    raise  # sent by the process; some of them are OSErrors
                except (EOFError, OSError):
                    if self._stop_requested.is_set():
                        return
                    self._restart()
        except MddError as error:
            self.queue.fail(error)
        except Exception as error:  # raise_if_failed raises it on the owner's thread
            failure = EngineError(f"The engine's thread failed ({type(error).__name__}: {error}).")
            failure.__cause__ = error
            self.queue.fail(failure)

    def _turn(self, pipe: Connection) -> None:
        """Take the messages of the process, and send it what is next."""
        while pipe.poll():
            self._take(pipe.recv())
        self.queue.deliver()
        if self.info is None:
            return
        for run_id in self.queue.take_ended():
            if run_id in self._begun:
                self._begun.discard(run_id)
                pipe.send(End(run_id))
            elif run_id not in self.queue.runs:
                self._forget_files(run_id)
        config = self.queue.config
        if config is not self._configured:
            self._configured = config
            pipe.send(Configure(config))
        if self._handed_s is not None:
            self._check_for_hang(time.monotonic() - self._handed_s)
            return
        taken = self.queue.next()
        if taken is None:
            return
        job, header = taken
        self._handed_s = time.monotonic()
        if job.run_id not in self._begun:
            self._begun.add(job.run_id)
            pipe.send(Begin(header))
        if job.sweep is not None:
            pipe.send(Work(job.run_id, job.sweep, job.lane, job.effort))

    def _check_for_hang(self, taken_s: float) -> None:
        """Kill a process that has been at one sweep for far too long; it is replaced as one that died."""
        if taken_s > self._patience_s:
            self._on_note(f"the engine has not answered for {taken_s:.0f} s: it is ended", "warning")
            self._supervisor.stop(0.0)
            raise EOFError

    def _take(self, answer: object) -> None:
        if isinstance(answer, Building):
            self._take_share(answer.share)
        elif isinstance(answer, EngineInfo):
            self._opened(answer)
        elif isinstance(answer, Notice):
            self._change(answer.changes)
            self._on_note(answer.text, "warning")
            self.queue.runs.tell_all("engine", answer.text)
        elif isinstance(answer, SweepFeedback):
            self.queue.hear(answer)
        elif isinstance(answer, MddError) and self.info is None:
            raise answer  # it could not even start
        elif self._handed_s is not None:
            seconds, self._handed_s = time.monotonic() - self._handed_s, None
            self._longest_s = max(self._longest_s, seconds)
            self.queue.done(answer, seconds)

    def _take_share(self, share: float) -> None:
        now_s = time.monotonic()
        if self._build is not None:
            self._build = (self._build[0], share)
        elif share < 1:
            self._build = (now_s, share)
            self._on_note(
                "TensorRT's engine is built first, which takes a while once; --no-compile serves with torch",
                "info",
            )
        else:
            self._may_build = False

    def _opened(self, info: EngineInfo) -> None:
        if self._build is not None:
            took_s = time.monotonic() - self._build[0]
            self._on_note(f"{info.device} is open, its build took {took_s:.0f} s", "info")
            self._build = None
        for text in filter(None, (info.fallback, info.slow)):
            self._on_note(text, "warning")
        self.info = info
        self.queue.set_serving(True)

    def _change(self, changes: dict[str, object]) -> None:
        """Adopt settings that the process has changed by itself."""
        before, after = self.queue.change(changes)
        if self._configured is before:  # else it still has to get what was set meanwhile
            self._configured = after

    def _restart(self) -> None:
        """Replace a process that died; its sweep is tried once more."""
        code = self._supervisor.reap()
        self.queue.died(code)
        self._supervisor.check(code)
        config = self.queue.config
        often = self.info is None or self._supervisor.died_lately > 1
        if often and config.method == "mdd" and config.runtime != "torch":
            # The runtime may have killed it, and would again.
            self.queue.change({"runtime": "torch"})
            self._on_note(f"the engine process died (exit code {code}): from now on torch serves", "warning")
        self.info, self._build, self._handed_s = None, None, None
        self._may_build = False
        self._begun.clear()
        self.queue.runs.tell_all("engine", f"the engine process died (exit code {code}): it is started again")
        self._configured = self.queue.config
        self._supervisor.start(self._configured)

    def _forget_files(self, run_id: str) -> None:
        if self._state is not None:
            shutil.rmtree(self._state / run_id, ignore_errors=True)


def may_build(config: EngineConfig) -> bool:
    """Return whether opening may have to build an engine of TensorRT; asks neither torch nor the GPU."""
    if not config.compile or config.method != "mdd" or config.runtime not in ("auto", "tensorrt"):
        return False
    if config.device == "cpu" or not any(importlib.util.find_spec(name) for name in TENSORRT):
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def forget_stale(state: Path) -> None:
    """Remove the state of runs that nobody resumed for a week; without it they start cold."""
    for folder in state.iterdir() if state.is_dir() else ():
        with contextlib.suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
