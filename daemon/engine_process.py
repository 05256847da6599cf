"""The engine in a process of its own: a crash there costs one volume and no frame.

`EngineProcess` lives in the daemon. It owns the child process, the pipe to it, and one thread that hands
sweeps over one at a time and takes volumes back. Sweeps wait in a queue bounded per session: where the
engine is slower than the acquisition, the newest sweeps win and older ones are skipped (their raw frames
are in the run file); with `policy = "wait"` none is skipped, and `has_room` tells the sender to wait.
The child (`engine_child`) says what it has opened, then answers one sweep after the other.

Where a faster runtime has to be built first, the child serves with torch, the build runs in a third process
(`engine_builder`), and when it is done the child is asked to change over, which it does between two sweeps.
A child that dies while it opens or takes over a runtime is replaced by one with torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Literal

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.engine_builder import Build, EngineBuilder, build_engine
from microdiffusion.daemon.engine_child import Changed, ChangeOver, EngineInfo, open_engine, serve_engine
from microdiffusion.drivers.process import keyboard_ignored
from microdiffusion.errors import EngineError, MddError
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Reconstruction, Sweep

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from microdiffusion.engines.engine import Engine

MAX_RESTARTS = 3
READY_S = 120.0
"""Importing torch from a cold disk can take a while."""


class EngineProcess:
    """Runs the reconstructor beside the daemon.

    Parameters
    ----------
    config : EngineConfig
    waiting_bytes : int
        Most that the projections of waiting sweeps may take, over all sessions; one sweep may always wait.
    on_volume : callable
        A sweep's volume, on the engine's thread. Returns False where there is no room yet.
    on_lost : callable
        A sweep that gets no volume: sweep, "skipped" or "failed", and the reason.
    on_note : callable
        Something that the user should know, and whether it is "info" or a "warning".
    opener, build : callable
        Functions of a module: what the child opens, and what builds what is pending.

    Attributes
    ----------
    info : EngineInfo or None
        What serves; None until the child is ready.
    building : str
        How far a build is, as a sentence; empty where there is none.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        on_volume: Callable[[Sweep, Reconstruction], bool],
        on_lost: Callable[[Sweep, str, str], None],
        on_note: Callable[[str, Literal["info", "warning"]], None] = lambda text, level: None,
        opener: Callable[[EngineConfig], Engine] = open_engine,
        build: Build = build_engine,
    ) -> None:
        self._config = config
        self._on_note = on_note
        self._opener = opener
        self._build = build
        self._builder: EngineBuilder | None = None
        self._build_tried = False
        self._changing = False  # the child was asked to change over and has not answered yet
        self._most_bytes = waiting_bytes
        self._on_volume = on_volume
        self._on_lost = on_lost
        self._child_config = config
        self._context = multiprocessing.get_context("spawn")
        self._wake_out, self._wake_in = self._context.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._waiting: deque[Sweep] = deque()
        self._running: Sweep | None = None
        self._delivering = False
        self._given_up = False  # the child is still busy with a sweep that nobody waits for any more
        self._header: RunHeader | None = None
        self._stop_requested = threading.Event()
        self._ready = threading.Event()
        self._failure: MddError | None = None
        self.info: EngineInfo | None = None
        self.building = ""
        self.restarts = 0
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-engine", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process number of the child."""
        return self._process.pid if self._process is not None else None

    @property
    def waiting(self) -> int:
        """Sweeps that wait, are being reconstructed, or whose volume is not handed over yet."""
        with self._lock:
            return len(self._waiting) + (self._running is not None) + self._delivering

    @property
    def waiting_bytes(self) -> int:
        """Size of the projections that wait."""
        with self._lock:
            return sum(sweep.projections.nbytes for sweep in self._waiting)

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

    def begin(self, header: RunHeader) -> None:
        """Say which run the coming sweeps belong to; sessions of an earlier one are forgotten."""
        self._header = header
        self._wake()

    def has_room(self) -> bool:
        """Whether a further sweep would wait without any being skipped."""
        with self._lock:
            fits = sum(sweep.projections.nbytes for sweep in self._waiting) < self._most_bytes
            return len(self._waiting) < self._config.backlog and fits

    def submit(self, sweep: Sweep) -> None:
        """Queue a sweep; where too many wait, the oldest is skipped, of its own session if there is one."""
        skipped: list[Sweep] = []
        with self._lock:
            if self._config.policy != "wait":
                same = [
                    s for s in self._waiting if (s.channel, s.position) == (sweep.channel, sweep.position)
                ]
                if len(same) >= self._config.backlog:
                    skipped.append(same[0])
                left = [s for s in self._waiting if not any(s is other for other in skipped)]
                size = sweep.projections.nbytes + sum(s.projections.nbytes for s in left)
                while left and size > self._most_bytes:
                    size -= left[0].projections.nbytes
                    skipped.append(left.pop(0))
                self._waiting = deque(left)
            self._waiting.append(sweep)
        for old in skipped:
            self._on_lost(old, "skipped", "the engine was busy with other sweeps")
        self._wake()

    def drain(self, timeout_s: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until nothing waits; skip what is left after `timeout_s`, or when `hurry` says so.

        Returns True when all was done.
        """
        deadline = time.monotonic() + timeout_s
        while self.waiting and self._failure is None:
            if time.monotonic() > deadline or hurry():
                self._give_up()
                return False
            time.sleep(0.02)
        return True

    def _give_up(self) -> None:
        """Skip what waits and what is being done; an answer that still comes is not taken."""
        with self._lock:
            left = [*([self._running] if self._running else []), *self._waiting]
            self._given_up = self._given_up or self._running is not None
            self._running = None
            self._waiting.clear()
        for sweep in left:
            self._on_lost(sweep, "skipped", "the run was closed before the engine was done with it")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child; kill it if it does not end in time."""
        self._stop_requested.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        process = self._process
        if process is None:
            return
        if self._pipe is not None:
            self._pipe.close()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join(timeout_s)
        self._give_up()

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if something did."""
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send_bytes(b"\0")

    def _spawn(self) -> None:
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=serve_engine,
            args=(theirs, self._child_config, self._opener),
            name="mdd-engine",
            daemon=True,
        )
        with keyboard_ignored():
            self._process.start()
        theirs.close()
        self._pipe = ours

    def _run(self) -> None:
        try:
            sent_header: RunHeader | None = None
            while not self._stop_requested.is_set():
                pipe = self._pipe
                if pipe is None:
                    return
                builders = [] if self._builder is None else [self._builder.pipe]
                wait([pipe, self._wake_out, *builders], timeout=0.5)
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                try:
                    while pipe.poll():
                        self._take(pipe.recv())
                    if self.info is None:
                        continue
                    self._watch_build(pipe)
                    if self._header is None:
                        continue
                    if sent_header is not self._header:
                        pipe.send(self._header)
                        sent_header = self._header
                    self._hand_over(pipe)
                except MddError:
                    raise  # what the child said, although some of them are kinds of OSError
                except (EOFError, OSError):
                    if self._stop_requested.is_set():
                        return
                    self._restart()
                    sent_header = None
        except MddError as error:
            self._fail(error)
        except Exception as error:  # the owner gets it from raise_if_failed
            failure = EngineError(f"The engine's thread failed ({type(error).__name__}: {error}).")
            failure.__cause__ = error
            self._fail(failure)
        finally:
            if self._builder is not None:
                self._builder.stop()

    def _fail(self, error: MddError) -> None:
        self._failure = error
        self._ready.set()

    def _hand_over(self, pipe: Connection) -> None:
        with self._lock:
            if self._running is not None or self._given_up or not self._waiting:
                return
            self._running = self._waiting.popleft()
            sweep = self._running
        pipe.send(sweep)

    def _take(self, answer: object) -> None:
        if isinstance(answer, EngineInfo):
            self._opened(answer)
            return
        if isinstance(answer, Changed):
            self._changed(answer)
            return
        if isinstance(answer, MddError) and self.info is None:
            raise answer  # it could not even start
        with self._lock:
            self._given_up = False  # the child is free again
            sweep, self._running = self._running, None
            self._delivering = sweep is not None
        if sweep is None:
            return
        try:
            if isinstance(answer, Reconstruction):
                while not self._on_volume(sweep, answer):
                    if self._stop_requested.is_set():
                        return
                    time.sleep(0.005)
            else:
                self._on_lost(sweep, "failed", str(answer))
        finally:
            with self._lock:
                self._delivering = False

    def _opened(self, info: EngineInfo) -> None:
        """Take note of what the child serves with; have built what it would rather serve with."""
        self.info = info
        self._ready.set()
        if info.fallback:
            self._on_note(info.fallback, "warning")
        if info.pending and not self._build_tried:
            self._build_tried = True
            self._on_note(f"{info.pending} is being built; torch serves meanwhile", "info")
            try:
                self._builder = EngineBuilder(self._context, self._config, self._build)
            except OSError as error:
                self._stay(f"no process could be started for its build ({error})")

    def _watch_build(self, pipe: Connection) -> None:
        """Say how far the build is; when it is done, ask the child to change over."""
        builder = self._builder
        if builder is None:
            return
        outcome = builder.take()
        if outcome is None:
            self.building = f"TensorRT {100 * builder.share:.0f} %, torch serves meanwhile"
            return
        self._builder = None
        if outcome.failure:
            self._stay(outcome.failure)
            return
        if (
            self.info is not None and not self.info.pending
        ):  # a child that was started again found it by itself
            self.building = ""
            return
        self.building = "TensorRT is built, torch serves until it is open"
        self._changing = True
        pipe.send(ChangeOver())

    def _changed(self, answer: Changed) -> None:
        self._changing = False
        if answer.info is None:
            self._stay(answer.failure)
            return
        self.building = ""
        self.info = answer.info
        if answer.failure:
            self._on_note(answer.failure, "warning")
        else:
            self._on_note(f"{answer.info.device} serves from now on", "info")

    def _give_up_runtime(self, code: object) -> None:
        """Have the next child serve with torch: it may be the runtime that it died of, and would again."""
        if self._child_config.runtime == "torch":
            return
        self._child_config = self._child_config.model_copy(update={"runtime": "torch"})
        self._changing, self.building = False, ""
        if self._builder is not None:
            self._builder.stop()
            self._builder = None
        self._on_note(f"the engine process died (exit code {code}): from now on torch serves", "warning")

    def _stay(self, why: str) -> None:
        """Say once that torch goes on, and why."""
        self.building = ""
        self._on_note(f"TensorRT is not used, torch goes on in its place: {why}", "warning")
        if self.info is not None:
            self.info = replace(self.info, reason=f"{self.info.reason}; it failed: {why}", pending="")

    def _restart(self) -> None:
        """Replace a child that died; its sweep failed, the sessions start cold."""
        process = self._process
        code: object = None
        if process is not None:
            process.join(5)
            code = process.exitcode
        with self._lock:
            sweep, self._running = self._running, None
            self._given_up = False
        if sweep is not None:
            self._on_lost(sweep, "failed", f"the engine process died (exit code {code})")
        self.restarts += 1
        if self.restarts > MAX_RESTARTS:
            raise EngineError(
                f"The engine process died {self.restarts} times (exit code {code}): too little memory? "
                'Try a smaller engine.tile or engine.device = "cpu".'
            )
        opening = self.info is None or self._changing
        if (opening or self.restarts > 1) and self._config.method == "mdd":
            self._give_up_runtime(code)
        self.info = None
        self._ready.clear()
        if self._pipe is not None:
            self._pipe.close()
        self._spawn()
