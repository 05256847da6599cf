"""Signals and consoles of child processes: the parent decides when a child stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path


def leave_stops_to_parent() -> None:
    """Ignore the signals that ask a whole group of processes to stop: the parent decides when."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def keyboard_ignored() -> Iterator[None]:
    """Start processes that inherit blocked stop signals (POSIX; the child then ignores them itself).

    Covers Ctrl-C and what else a terminal or a service manager sends to the whole group. Blocked, not
    ignored: a signal that comes meanwhile reaches this process afterwards. On any thread.
    """
    if sys.platform == "win32":
        yield
    else:
        resource_tracker.ensure_running()  # started within, it would unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def redirect_output(log: Path | None) -> None:
    """Send what this process prints to a file, or nowhere; C libraries included."""
    target = os.devnull if log is None else os.fspath(log)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def exit_anyway(code: int, after_s: float) -> None:
    """End this process after some time, if it still runs: threads of others may wait for ever."""
    timer = threading.Timer(after_s, os._exit, (code,))
    timer.daemon = True
    timer.start()
