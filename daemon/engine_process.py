"""The engine in a process of its own: a crash there costs one volume and no frame.

`EngineProcess` lives in the daemon. It owns the child process, the pipe to it, and one thread that hands
sweeps over one at a time and takes volumes back. Sweeps wait in a queue bounded per session: where the
engine is slower than the acquisition, the newest sweeps win and older ones are skipped (their raw frames
are in the run file); with `overload = "wait"` none is skipped, and `has_room` tells the sender to wait.
The child (`_serve`) imports torch, opens device and weights, reports them, then answers one sweep after
the other; it ends when its pipe closes, so it cannot outlive the daemon.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from microdiffusion.config import EngineConfig
from microdiffusion.drivers.process import keyboard_ignored
from microdiffusion.errors import EngineError, MddError
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Reconstruction, Sweep

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

MAX_RESTARTS = 3
READY_S = 120.0
"""Importing torch from a cold disk can take a while."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the child found: device and precision, why that device, the weights' name and SHA-256."""

    device: str
    reason: str
    weights: str
    weights_sha256: str


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
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        on_volume: Callable[[Sweep, Reconstruction], bool],
        on_lost: Callable[[Sweep, str, str], None],
    ) -> None:
        self._config = config
        self._most_bytes = waiting_bytes
        self._on_volume = on_volume
        self._on_lost = on_lost
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
            if self._config.overload == "skip":
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
            target=_serve, args=(theirs, self._config), name="mdd-engine", daemon=True
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
                wait([pipe, self._wake_out], timeout=0.5)
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                try:
                    while pipe.poll():
                        self._take(pipe.recv())
                    if self.info is None:
                        continue
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
            self.info = answer
            self._ready.set()
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
        self.info = None
        self._ready.clear()
        if self._pipe is not None:
            self._pipe.close()
        self._spawn()


def _serve(pipe: Connection, config: EngineConfig) -> None:
    """Run the child: report, then answer sweeps until the pipe closes."""
    # Ctrl-C, and systemd's SIGTERM, go to the whole process group; the daemon decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from microdiffusion.engines.engine import open_engine
    from microdiffusion.engines.reconstructor import Reconstructor

    reconstructor: Reconstructor | None = None
    # A pipe that breaks means that the daemon is gone: there is nobody to tell.
    with contextlib.suppress(EOFError, OSError):
        try:
            engine = open_engine(config)
        except MddError as error:
            pipe.send(error)
            return
        except Exception as error:  # trying again would not help
            pipe.send(EngineError(f"The engine could not start ({type(error).__name__}: {error})."))
            return
        pipe.send(EngineInfo(engine.name, engine.reason, engine.weights, engine.weights_sha256))
        while True:
            request = pipe.recv()
            if isinstance(request, RunHeader):
                reconstructor = Reconstructor(request, config, engine)
                continue
            try:
                if reconstructor is None:
                    raise EngineError("A sweep came before its run's header.")
                answer: object = reconstructor.reconstruct(request)
            except Exception as error:  # one bad sweep must not end the run
                answer = EngineError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
