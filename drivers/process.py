"""The driver's own process, as the daemon sees it.

`DriverProcess` owns a spawned process that runs the driver of `acquisition.driver`, and one pipe to it: the
parent sends the word "stop"; the child sends notes, counters and, at most once, a failure. A crash of a
camera library thus takes down neither the engine nor the recorder. Pauses go over the wire, as for a driver
on another machine. Invariants: the child ignores Ctrl-C, because the parent decides when to stop; it ends by
itself within seconds when the parent dies, however that happens, and leaves undelivered frames in the
journal; output of camera libraries goes to a log file, never to the user's screen.

All methods are for one thread, the owner's.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from microdiffusion.drivers.sending import FINISH_S, DriverTask
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.processes import exit_anyway, keyboard_ignored, leave_stops_to_parent, redirect_output

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.sender import SenderStats
    from microdiffusion.wire import ClientKeys

ORPHAN_S = 18.0
"""Time limit for a clean shutdown after the parent has died: closing a slow acquisition, then
`ORPHAN_FINISH_S`, then writing the rest to the journal."""
ORPHAN_FINISH_S = 1.0
"""The part of it that is spent on delivery: the daemon is most likely gone as well."""
EXIT_S = 1.5
"""Time limit for the exit of its interpreter: threads of a stuck acquisition would keep it for ever."""

logger = logging.getLogger(__name__)


class DriverProcess:
    """Runs the microscope in a process of its own.

    Parameters
    ----------
    config, address, resume, security
        See `DriverTask`.
    log : Path or None
        File that receives the output of camera libraries; None discards it.
    """

    def __init__(
        self,
        config: Config,
        address: str,
        *,
        log: Path | None = None,
        resume: ResumeFrom | None = None,
        security: ClientKeys | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._far_end = context.Pipe()
        self._process = context.Process(
            target=_run,
            args=(config, address, self._far_end, log, resume, security),
            name="mdd-driver",
            daemon=True,
        )
        self._log = log
        self._notes: list[str] = []
        self._failure: MddError | None = None
        self._stats: SenderStats | None = None
        self._over = False
        self._started = False
        self._has_begun = False  # from then on it may hold the camera

    def start(self) -> None:
        """Start the process and return at once, before the microscope has started."""
        with keyboard_ignored():
            self._process.start()
        self._started = True
        self._far_end.close()  # so that the pipe reads as closed when the child is gone

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        self._drain()
        return self._started and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Number of the process, None before the start."""
        return self._process.pid

    @property
    def stats(self) -> SenderStats | None:
        """The sender's counters, at most a second old; None before the first frame, or without any."""
        self._drain()
        return self._stats

    def take_notes(self) -> list[str]:
        """Return the driver's messages since the last call, one line each."""
        self._drain()
        notes, self._notes = self._notes, []
        return notes

    def raise_if_failed(self) -> None:
        """Raise the driver's error, if any, as its own class; also if the process died without giving one."""
        self._drain()
        if self._failure is not None:
            raise self._failure

    def ask_to_stop(self) -> None:
        """Ask for a clean shutdown; returns at once."""
        if self._started:
            with suppress(OSError):  # it may be gone already
                self._pipe.send("stop")

    def stop(self, timeout_s: float = 15.0) -> None:
        """Shut the run down cleanly, and kill the process after `timeout_s`. May be called again."""
        if not self._started:
            return
        self.ask_to_stop()
        self._join(timeout_s)
        if self._process.is_alive():
            if not self._has_begun:
                self._over = True  # it was still loading, on a busy machine: nothing was touched
            elif self._failure is None and not self._over:
                self._failure = AcquisitionError(
                    f"The driver did not stop within {timeout_s:g} s and was killed: the camera may need a "
                    "restart."
                )
            self._process.kill()
            self._join(2.0)

    def _join(self, timeout_s: float) -> None:
        """Wait for the end while reading: a full pipe must not block the child."""
        deadline_s = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline_s:
            sources: list[Any] = [self._process.sentinel]
            if not self._pipe.closed:
                sources.append(self._pipe)
            wait(sources, max(deadline_s - time.monotonic(), 0.0))

    def _drain(self) -> None:
        """Read what the child has sent, and notice if it is gone."""
        if not self._started:
            return
        is_gone = not self._process.is_alive()  # asked first: its last words lie in the pipe then
        try:
            while not self._pipe.closed and self._pipe.poll():
                self._handle(*self._pipe.recv())
        except (EOFError, OSError):
            self._pipe.close()
        if is_gone and not self._over and self._failure is None:
            where = f"; the output of its libraries is in {self._log}" if self._log else ""
            code = self._process.exitcode
            self._failure = AcquisitionError(
                f"The driver's process died without giving a reason (exit code {code}){where}."
            )

    def _handle(self, kind: str, content: Any) -> None:
        if kind == "note":
            self._notes.append(content)
        elif kind == "begin":
            self._has_begun = True
        elif kind == "failure":
            self._failure = self._failure or content
        else:
            self._stats, self._over = content, self._over or kind == "over"


def load_driver(config: Config) -> Callable[[DriverTask], SenderStats | None]:
    """Return `acquire` of the configured driver; importing it takes a while."""
    if config.acquisition.driver == "watch":
        from microdiffusion.drivers.passive import watch

        return watch.acquire
    import pycromanager  # noqa: F401 here rather than when the camera is opened: it is slow

    from microdiffusion.drivers.micromanager import acquisition

    return acquisition.acquire


# In the child -------------------------------------------------------------------------------------


def _run(
    config: Config,
    address: str,
    pipe: Connection[Any, Any],
    log: Path | None,
    resume: ResumeFrom | None,
    security: ClientKeys | None,
) -> None:
    """Run the acquisition and report to the parent."""
    leave_stops_to_parent()
    redirect_output(log)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    stop, orphaned = threading.Event(), threading.Event()
    threading.Thread(
        target=_watch_parent, args=(pipe, stop, orphaned), name="mdd-watch-parent", daemon=True
    ).start()
    lock = threading.Lock()

    def tell(kind: str, content: Any) -> None:
        try:
            with lock:
                pipe.send((kind, content))
        except OSError:
            stop.set()  # the parent is gone

    def note(text: str) -> None:
        logger.info(text)  # the log is all that remains of an orphan
        tell("note", text)

    task = DriverTask(
        config=config,
        address=address,
        stop=stop,
        note=note,
        resume=resume,
        security=security,
        finish_s=lambda: ORPHAN_FINISH_S if orphaned.is_set() else FINISH_S,
        on_stats=lambda stats: tell("progress", stats),
    )
    code = 0
    try:
        acquire = load_driver(config)
        stats = None
        if not stop.is_set():
            tell("begin", None)
            stats = acquire(task)
        tell("over", stats)
    except MddError as error:
        traceback.print_exc()
        tell("failure", error)
        code = error.exit_code
    except BaseException as error:
        traceback.print_exc()
        where = f"; details are in {log}" if log else ""
        text = f"The driver failed unexpectedly ({type(error).__name__}: {error}){where}."
        tell("failure", AcquisitionError(text))
        code = 3
    sys.stdout.flush()
    sys.stderr.flush()
    exit_anyway(code, EXIT_S)
    sys.exit(code)


def _watch_parent(pipe: Connection[Any, Any], stop: threading.Event, orphaned: threading.Event) -> None:
    """Wait for the word "stop" or the parent's death; end an orphan, by force if necessary."""
    parent = multiprocessing.parent_process()
    sources: list[Any] = [pipe] if parent is None else [pipe, parent.sentinel]
    is_orphan = pipe not in wait(sources)
    if not is_orphan:
        try:
            pipe.recv()
        except (EOFError, OSError):
            is_orphan = True
    if is_orphan:
        orphaned.set()
    stop.set()
    if not is_orphan and parent is not None:
        wait([parent.sentinel])
        orphaned.set()
    logger.warning("The process that started this driver is gone; it ends within %g s.", ORPHAN_S)
    threading.Event().wait(ORPHAN_S)
    os._exit(3)
