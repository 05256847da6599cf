"""Signals and consoles of child processes: who starts one decides when it stops."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def leave_stops_to_parent() -> None:
    """Ignore what asks a whole group of processes to stop: who started this one decides when."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def keyboard_ignored() -> Iterator[None]:
    """Let a process that starts now inherit that Ctrl-C is not for it (posix; the child also says so).

    Nor is what else a terminal or a service manager sends to the whole group. Blocked, not ignored: what
    comes meanwhile reaches this process afterwards. On any thread.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
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
