"""A run as ingest sees it, and the simplest one that there is.

All methods are called on the ingest thread and must not block: what is not done at once is queued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Protocol

from microdiffusion import wire
from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader


class RunState(StrEnum):
    """The state of a run: it takes frames only while it is open."""

    OPEN = "open"
    ENDED = "ended"  # its senders said so
    SILENT = "silent"  # its senders said nothing for too long; they may come back
    CLOSED = "closed"  # by the daemon


class RunSink(Protocol):
    """A run.

    Attributes
    ----------
    header : RunHeader
    owners : collection of str
        Who may begin and resume it (`owner_of`); empty: whoever asks.
    received : FrameRanges
        Frames that the run has; changed by ingest alone.
    window_bytes : int
        Most bytes of pixels that may be unacknowledged.
    state : RunState
    reason : str
        Why the run is not open.
    """

    header: RunHeader
    received: FrameRanges
    window_bytes: int

    @property
    def owners(self) -> Collection[str]:
        """See above."""

    state: RunState
    reason: str

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again), whose numbers begin at `first_seq`."""

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        """Take a frame (read-only pixels), to be answered when `receipt` is complete."""

    def repeated(self, frame: Frame, receipt: Receipt) -> bool:
        """Compare a frame with the one of its number that the run has; False: it cannot any more."""

    def alarm(self, text: str) -> None:
        """Tell the user of a peer that says what it must not."""

    def progress(self, message: wire.RunProgress) -> None:
        """Note how far a sender is."""

    def end(self, message: wire.RunEnd) -> None:
        """Note that a sender has ended; where no other one is left, the run has ended."""

    def silent(self, reason: str) -> None:
        """Close the run: its senders have said nothing for too long."""

    def abort(self, reason: str) -> None:
        """Close the run: the daemon cannot go on with it."""


class PlainSink:
    """A run whose frames are acknowledged as soon as `on_frame` returns: for measurements and tests.

    Attributes
    ----------
    last_word : RunEnd or None
    ended : threading.Event
        Set when the run is not open any more.
    """

    def __init__(
        self, header: RunHeader, on_frame: Callable[[Frame], object], window_bytes: int = 64 << 20
    ) -> None:
        self.header = header
        self.owners: Collection[str] = ()
        self.received = FrameRanges()
        self.window_bytes = window_bytes
        self.state = RunState.OPEN
        self.reason = ""
        self.last_word: wire.RunEnd | None = None
        self.ended = threading.Event()
        self._on_frame = on_frame

    def started(self, first_seq: int) -> None:
        """Do nothing."""

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        """Hand the frame to the function."""
        self._on_frame(frame)
        receipt.recorded()

    def repeated(self, frame: Frame, receipt: Receipt) -> bool:
        """Take it for the same."""
        receipt.recorded()
        return True

    def alarm(self, text: str) -> None:
        """Do nothing."""

    def progress(self, message: wire.RunProgress) -> None:
        """Do nothing."""

    def end(self, message: wire.RunEnd) -> None:
        """Keep the sender's last word."""
        self.last_word = message
        self._close(RunState.ENDED, message.reason)

    def silent(self, reason: str) -> None:
        """See `RunSink`."""
        self._close(RunState.SILENT, reason)

    def abort(self, reason: str) -> None:
        """See `RunSink`."""
        self._close(RunState.CLOSED, reason)

    def _close(self, state: RunState, reason: str) -> None:
        self.state, self.reason = state, reason
        self.ended.set()
