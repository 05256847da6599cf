"""Work on Micro-Manager that never waits without limit.

Every call over pycromanager's bridge waits for ever where Micro-Manager has ended or stands still. So a
thread looks at its port each second, and work on it runs on threads that are abandoned as soon as the port is
dead, the work takes too long, or a stop has waited long enough. From then on Micro-Manager counts as lost:
all further work is refused at once, with the sentence that says why. With the Python backend there is no
port; work without a limit of its own then runs in the caller's thread.

One `MicroscopeWatch` at a time holds a port: two acquisitions would move the stage in each other's exposures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from microdiffusion.config import AcquisitionConfig
from microdiffusion.drivers.micromanager.server import PortFinding, look, message_of
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.paths import journal_folder

T = TypeVar("T")

LOOK_S = 1.0
"""Time from one look at the port to the next, and limit for its answer."""
REFUSED_LOOKS = 2
"""So many looks in a row that find nobody at the port: Micro-Manager has ended."""
SILENT_LOOKS = 5
"""So many looks in a row without an answer, of up to 2 s each: it stands still."""
CALL_S = 20.0
"""Time limit for a piece of work while the port answers."""
STOP_S = 6.0
"""Time limit for all work that remains when the run is told to stop."""
_TICK_S = 0.02
_abandoned: list[object] = []
"""Objects that must not be collected: the destructor of a Java object waits for an answer, too."""


class MicroscopeWatch:
    """Watches over Micro-Manager, and works on it; made by `watched`.

    Parameters
    ----------
    port : int or None
        Of its pycro-manager server; None with the Python backend.
    is_stopped : callable
        Returns whether the run has been told to stop.
    """

    def __init__(self, port: int | None, is_stopped: Callable[[], bool]) -> None:
        self._port = port
        self._is_stopped = is_stopped
        self._stopped_s = float("inf")
        self._lost = ""
        self._closed = threading.Event()
        if port is not None:
            threading.Thread(target=self._look, args=(port,), name="mdd-bridge-watch", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    @property
    def is_lost(self) -> bool:
        """True when Micro-Manager does not do any more what it is told."""
        return bool(self._lost)

    def raise_if_lost(self) -> None:
        """Raise `AcquisitionError` if Micro-Manager has been given up."""
        if self._stopped_s == float("inf") and self._is_stopped():
            self._stopped_s = time.monotonic()
        if self._lost:
            raise AcquisitionError(self._lost)

    def call(self, what: str, work: Callable[..., T], *args: Any, limit_s: float | None = None) -> T:
        """Return `work(*args)`, or give Micro-Manager up.

        Parameters
        ----------
        what : str
            The work, to go on after "Micro-Manager did not", such as "move its stages".
        limit_s : float, optional
            By default `CALL_S`; with the Python backend none.

        Raises
        ------
        AcquisitionError
            Micro-Manager is lost, or refuses.
        """
        try:
            if self._port is None and limit_s is None:
                return work(*args)
            return self._bounded(what, work, args, CALL_S if limit_s is None else limit_s)
        except MddError:
            raise
        except Exception as error:  # the core raises bare RuntimeError, the bridge bare Exception
            raise AcquisitionError(
                f"Micro-Manager did not {what} ({message_of(error)}): check the device there."
            ) from error

    def _bounded(self, what: str, work: Callable[..., T], args: tuple[Any, ...], limit_s: float) -> T:
        results: list[T] = []
        failures: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(work(*args))
            except BaseException as error:
                failures.append(error)
            done.set()

        began_s = time.monotonic()
        try:
            self.raise_if_lost()
            threading.Thread(target=run, name="mdd-microscope", daemon=True).start()
            while not done.wait(_TICK_S):
                self.raise_if_lost()
                until_s = min(began_s + limit_s, self._stopped_s + STOP_S)
                if time.monotonic() > until_s:
                    waited_s = time.monotonic() - min(began_s, self._stopped_s)
                    self._give_up(f"Micro-Manager did not {what} within {waited_s:.0f} s: {self._advice()}")
        except BaseException:  # Ctrl-C, too
            _abandoned.append((work, args))
            raise
        if failures:
            raise failures[0]
        return results[0]

    def _give_up(self, sentence: str) -> None:
        self._lost = self._lost or sentence
        raise AcquisitionError(self._lost)

    def _advice(self) -> str:
        if self._port is None:
            return "check the device, and whether it answers in Micro-Manager."
        return (
            "see what its window shows and restart it, and that no other program uses the ports from "
            f"{self._port} to {self._port + 9}."
        )

    def _look(self, port: int) -> None:
        refused = silent = 0
        while not self._closed.wait(LOOK_S):
            answer, _ = look(port, LOOK_S)
            refused = refused + 1 if answer is PortFinding.NOBODY else 0
            silent = 0 if answer is PortFinding.SERVER else silent + 1
            if refused >= REFUSED_LOOKS or silent >= SILENT_LOOKS:
                self._lost = self._lost or (
                    f"Micro-Manager has ended or no longer answers at port {port}: see what its window "
                    "shows, restart it, and start again; `mdd serve --resume` continues the run."
                )
                return


@contextmanager
def watched(acquisition: AcquisitionConfig, is_stopped: Callable[[], bool]) -> Iterator[MicroscopeWatch]:
    """Hold Micro-Manager's port and watch over it.

    Raises
    ------
    AcquisitionError
        Another mdd of this user holds it.
    """
    if acquisition.backend != "java":
        yield MicroscopeWatch(None, is_stopped)
        return
    port = acquisition.port
    folder = journal_folder().parent
    lock = FileLock(folder / f"micromanager-{port}.lock", timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise AcquisitionError(
            f"Another mdd drives the Micro-Manager at port {port}: stop that first. If it was killed a "
            "moment ago, wait 20 s."
        ) from error
    except (OSError, NotImplementedError):
        pass  # where nothing can be written, or the file system has no locks, nothing is held
    watch = MicroscopeWatch(port, is_stopped)
    try:
        yield watch
    finally:
        watch.close()
        lock.release()
