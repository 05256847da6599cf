"""The task that every driver is given, and its sender."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microdiffusion.errors import ConfigError
from microdiffusion.paths import journal_folder
from microdiffusion.sender import Sender, SenderStats

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.header import RunHeader
    from microdiffusion.wire import ClientKeys

FINISH_S = 6.0
"""Time limit for delivering the remaining frames at the end of a run; then they go to the journal."""
STATS_S = 1.0
"""Interval at which the counters are reported."""


def _finish_s() -> float:
    return FINISH_S


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverTask:
    """One acquisition, and who is told about it.

    Attributes
    ----------
    config : Config
        The whole configuration.
    address : str
        Where the daemon receives frames.
    stop : Event
        Ends the run early; the frames acquired so far are still delivered.
    note : callable
        Called with messages for the user, one line each.
    resume : ResumeFrom or None
        The run to resume: its next sweep, its next frame number, its camera time.
    security : ClientKeys or None
        Keys for a daemon that requires them.
    finish_s : callable
        Returns, at the end, how long delivering the remaining frames may take.
    on_stats : callable
        Called with the sender's counters about once a second.
    """

    config: Config
    address: str
    stop: threading.Event
    note: Callable[[str], None] = _ignore
    resume: ResumeFrom | None = None
    security: ClientKeys | None = None
    finish_s: Callable[[], float] = _finish_s
    on_stats: Callable[[SenderStats], None] = _ignore

    def open_sender(self, header: RunHeader, *, first_seq: int = 0, journal: bool = True) -> Sender:
        """Return a sender, not started, with the buffers, the journal and the keys of the configuration.

        Parameters
        ----------
        first_seq : int
            The lowest number of its frames.
        journal : bool
            False for frames that are on a disk already and can wait there.

        Raises
        ------
        ConfigError, WireError
            See `Sender`.
        """
        wire = self.config.wire
        return Sender(
            self.address,
            header,
            buffer_bytes=int(wire.send_buffer_mb * 1e6),
            journal=(wire.journal or journal_folder()) if journal else None,
            journal_bytes=int(wire.journal_gb * 1e9),
            security=self.security,
            first_seq=first_seq,
            secret=self.resume.secret if self.resume is not None else None,
        )

    def is_stopped(self, sender: Sender | None) -> bool:
        """Return whether the user, or the daemon on their behalf, has ended the run."""
        return self.stop.is_set() or (sender is not None and sender.wanted == "stop")


class SenderProgress:
    """Reports a sender's counters and its troubles, once a second at most; for one thread."""

    def __init__(self, sender: Sender, task: DriverTask) -> None:
        self._sender, self._task = sender, task
        self._reported_s = -float("inf")
        self._trouble = ""

    def __call__(self) -> None:
        """Report, if it is time."""
        if time.monotonic() - self._reported_s < STATS_S:
            return
        self._reported_s = time.monotonic()
        self._task.on_stats(self._sender.stats)
        before, self._trouble = self._trouble, self._sender.trouble
        if self._trouble and self._trouble != before:
            self._task.note(self._trouble)


def require_port(address: str) -> None:
    """Raise `ConfigError` where `address` leaves the port open."""
    if address.endswith(":*"):
        raise ConfigError(
            f"The address {address} names no port: give the daemon's, as in tcp://127.0.0.1:5750."
        )
