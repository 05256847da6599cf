"""Requests to stop: Ctrl-C, SIGTERM, a terminal that is closed.

A `StopRequest` takes no lock, unlike an event: a signal's handler runs on the main thread between any two of
its instructions, also while that holds the lock of the very event that the handler would set, and the process
would hang for ever. So the handler only counts, and whoever waits looks again and again. Enter `heard` as
early as possible: a signal that comes before ends the process as it ends any other.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
"""Signals that ask a process to stop, as far as the system has them."""
_LOOK_S = 0.05


@dataclass(slots=True)
class StopRequest:
    """A request to stop, made or not.

    Attributes
    ----------
    times : int
        How often; the second request means at once.
    asked_s : float
        `time.monotonic()` of the last request; infinite where there is none.
    """

    times: int = 0
    asked_s: float = float("inf")

    @property
    def hurry(self) -> bool:
        """True when it was requested again."""
        return self.times > 1

    def ask(self) -> None:
        """Request a stop."""
        self.asked_s = time.monotonic()
        self.times += 1

    def is_set(self) -> bool:
        """Return whether a stop was requested."""
        return self.times > 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is, for at most `timeout_s`; return whether it is."""
        deadline_s = time.monotonic() + timeout_s
        while not self.times and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_S))
        return self.times > 0

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Have signals request the stop from here on; does nothing on other threads than the main one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # nohup: whoever started the process does not want the terminal's end to matter.
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                before[number] = signal.signal(number, lambda *_: self.ask())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Have every such signal interrupt the main thread as Ctrl-C does: what is begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in SIGNALS[1:]:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
