"""The wish to stop: Ctrl-C, a polite kill, a terminal that is closed.

`StopRequest` is what the main thread asks instead of an event, and takes no lock. A signal's handler runs on
the main thread between any two of its instructions, also while that holds the lock of the very event that the
handler would set: the process would then stand still for ever. So the handler only counts, and whoever waits
looks again and again. Enter `heard` as early as may be: what comes before ends the process as any other.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
"""What stops a process politely, as far as the system knows it."""
_LOOK_S = 0.05


@dataclass(slots=True)
class StopRequest:
    """What the user wants.

    Attributes
    ----------
    times : int
        How often he asked; twice: at once.
    asked_s : float
        `time.monotonic()` of the last time; infinite where he never did.
    """

    times: int = 0
    asked_s: float = float("inf")

    @property
    def hurry(self) -> bool:
        """Whether he has asked again."""
        return self.times > 1

    def ask(self) -> None:
        """Ask for the end."""
        self.asked_s = time.monotonic()
        self.times += 1

    def is_set(self) -> bool:
        """Whether the end is asked for."""
        return self.times > 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is, for at most `timeout_s`; return whether it is."""
        deadline_s = time.monotonic() + timeout_s
        while not self.times and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_S))
        return self.times > 0

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Have the signals ask, from here on; only the main thread may do this, on others nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # nohup: whoever starts it does not want the terminal's end to matter.
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                before[number] = signal.signal(number, lambda *_: self.ask())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
