"""The driver's own process, as the daemon sees it.

`DriverProcess` owns a spawned process that runs `link.acquire`, and one pipe to it: down goes the word
"stop", up come notes, the counters and, at most once, a failure; so a crash of a camera's driver library
takes down neither the engine nor the recorder. Pauses go over the wire, as they do for a driver elsewhere.
Invariants: the child ignores Ctrl-C, because the parent decides when to stop; it ends by itself within
seconds when the parent dies, however that happens, and what it could not deliver then lies in the journal;
what camera libraries print goes to a log file and never to the user's screen.

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

from microdiffusion import errors
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.processes import keyboard_ignored, leave_stops_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.sender import SenderStats
    from microdiffusion.wire import ClientKeys

ORPHAN_S = 18.0
"""How long a child without a parent may take to end in an orderly way: the end of an acquisition that is
slow to close, then `ORPHAN_FINISH_S`, then writing the rest to the journal."""
ORPHAN_FINISH_S = 1.0
"""How long of this it tries to deliver the rest: who started it is gone, and most likely the daemon."""
EXIT_S = 3.0
"""How long its interpreter may take to shut down: threads of a stuck acquisition would keep it for ever."""


logger = logging.getLogger(__name__)


class DriverProcess:
    """Runs the microscope in a process of its own.

    Parameters
    ----------
    config : Config
        The whole configuration.
    address : str
        Where the daemon takes frames.
    log : Path or None
        File that receives what camera libraries print; None discards it.
    resume : ResumeFrom or None
        The run that is gone on with.
    security : ClientKeys or None
        Keys for a daemon that asks for them.
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
        self._progress: SenderStats | None = None
        self._over = False
        self._started = False
        self._has_begun = False  # from then on it may hold the camera

    def start(self) -> None:
        """Start the process. Returns at once; whether the microscope could start comes later."""
        with keyboard_ignored():
            self._process.start()
        self._started = True
        self._far_end.close()  # so that the pipe reads as closed when the child is gone

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        self._drain()
        return self._started and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Number of the process, None before the start."""
        return self._process.pid

    @property
    def stats(self) -> SenderStats | None:
        """What became of the frames; None until the run is over, or where there was none."""
        self._drain()
        return self._stats

    @property
    def progress(self) -> SenderStats | None:
        """What has become of the frames so far, at most a second old; None before the first are taken."""
        self._drain()
        return self._stats or self._progress

    @property
    def exit_reason(self) -> str | None:
        """Why the process ended, in one sentence; None while it runs or has not started."""
        if not self._started or self.alive:
            return None
        self._drain()
        if self._failure is not None:
            return str(self._failure)
        if self._over:
            return "The acquisition is over."
        return str(self._died())

    def take_notes(self) -> list[str]:
        """Return what the driver has told since the last call, one line each."""
        self._drain()
        notes, self._notes = self._notes, []
        return notes

    def raise_if_failed(self) -> None:
        """Raise the driver's error, as its own class; also where the process died without a word."""
        self._drain()
        if self._failure is None and self._started and not self._process.is_alive() and not self._over:
            self._drain()  # it may have spoken between the two looks
            if self._failure is None and not self._over:
                self._failure = self._died()
        if self._failure is not None:
            raise self._failure

    def ask_to_stop(self) -> None:
        """Let the run end in an orderly way; returns at once."""
        if self._started:
            with suppress(OSError):  # it may be gone already
                self._pipe.send("stop")

    def stop(self, timeout_s: float = 15.0) -> None:
        """End the run in an orderly way, and after `timeout_s` in any way. Harmless when called again."""
        if not self._started:
            return
        self.ask_to_stop()
        self._join(timeout_s)
        if self._process.is_alive():
            if not self._has_begun:
                self._over = True  # it was still being loaded, on a machine that is busy: nothing was touched
            elif self._failure is None and not self._over:
                self._failure = AcquisitionError(
                    f"The driver did not stop within {timeout_s:g} s and was ended: the camera may need a "
                    "restart."
                )
            self._process.kill()
            self._join(2.0)
        self._drain()

    def _join(self, timeout_s: float) -> None:
        """Wait for the end, reading meanwhile: a full pipe must not keep the child."""
        deadline_s = time.monotonic() + timeout_s
        while self._drain() and self._process.is_alive():
            if not wait([self._process.sentinel, self._pipe], max(deadline_s - time.monotonic(), 0.0)):
                return
        self._process.join(max(deadline_s - time.monotonic(), 0.0))

    def _died(self) -> MddError:
        where = f"; what its libraries said is in {self._log}" if self._log else ""
        return AcquisitionError(
            f"The driver's process died (exit code {self._process.exitcode}) without telling why{where}."
        )

    def _drain(self) -> bool:
        """Take in what the child has sent; False where it will send nothing more."""
        if not self._started or self._pipe.closed:
            return False
        try:
            while self._pipe.poll():
                kind, content = self._pipe.recv()
                if kind == "note":
                    self._notes.append(content)
                elif kind == "begin":
                    self._has_begun = True
                elif kind == "progress":
                    self._progress = content
                elif kind == "over":
                    self._stats, self._over = content, True
                elif self._failure is None:
                    self._failure = _rebuilt(*content)
        except (EOFError, OSError):
            self._pipe.close()
            return False
        return True


def _rebuilt(name: str, text: str) -> MddError:
    kind = getattr(errors, name, AcquisitionError)
    error: MddError = kind(text)
    return error


# In the child -------------------------------------------------------------------------------------


def _run(
    config: Config,
    address: str,
    pipe: Connection[Any, Any],
    log: Path | None,
    resume: ResumeFrom | None,
    security: ClientKeys | None,
) -> None:
    """Run the acquisition and tell the parent how it went."""
    leave_stops_to_parent()
    _redirect_output(log)
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
            stop.set()  # nobody listens any more

    def note(text: str) -> None:
        logger.info(text)  # an orphan's last words are read there
        tell("note", text)

    code = 0
    try:
        from microdiffusion.drivers.acquire import acquire, load_driver
        from microdiffusion.drivers.sending import FINISH_S

        load_driver(config)
        stats = None
        if not stop.is_set():
            tell("begin", None)
            stats = acquire(
                config,
                address,
                stop=stop,
                note=note,
                resume=resume,
                security=security,
                patience_s=lambda: ORPHAN_FINISH_S if orphaned.is_set() else FINISH_S,
                on_stats=lambda stats: tell("progress", stats),
            )
        tell("over", stats)
    except MddError as error:
        traceback.print_exc()
        tell("failure", (type(error).__name__, str(error)))
        code = error.exit_code
    except BaseException as error:
        traceback.print_exc()
        where = f"; details are in {log}" if log else ""
        text = f"The driver failed unexpectedly ({type(error).__name__}: {error}){where}."
        tell("failure", ("AcquisitionError", text))
        code = 3
    sys.stdout.flush()
    sys.stderr.flush()
    quit_anyway = threading.Timer(EXIT_S, os._exit, (code,))
    quit_anyway.daemon = True
    quit_anyway.start()
    sys.exit(code)


def _watch_parent(pipe: Connection[Any, Any], stop: threading.Event, orphaned: threading.Event) -> None:
    """Wait for the word "stop" or for the parent's death; an orphan ends, by force if need be."""
    parent = multiprocessing.parent_process()
    sources: list[Any] = [pipe] if parent is None else [pipe, parent.sentinel]
    ready = wait(sources)
    is_orphan = pipe not in ready
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


def _redirect_output(log: Path | None) -> None:
    """Send what this process prints to the log, C libraries included."""
    target = os.devnull if log is None else os.fspath(log)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
