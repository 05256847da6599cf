"""Where the frames of one run go: what ingest asks of the daemon, and the plainest thing that does it.

All methods are called on the ingest thread and must not block: what is not done at once is queued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from microdiffusion import wire
from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.frames import Frame


class RunSink(Protocol):
    """Takes what comes in for one run.

    Attributes
    ----------
    received : FrameRanges
        Frames that the run has; ingest alone changes it from then on.
    window_bytes : int
        Most pixels, in bytes, of frames that are handed on and not safe yet.
    """

    received: FrameRanges
    window_bytes: int

    def frame(self, frame: Frame, taken: Callable[[], None]) -> None:
        """Take a frame (read-only pixels); `taken`, from any thread, once it is safe."""

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again), whose numbers begin at `first_seq`."""

    def duplicate(self) -> None:
        """Note that a frame came once more and was discarded."""

    def progress(self, message: wire.RunProgress) -> None:
        """Note how far a sender is."""

    def end(self, message: wire.RunEnd) -> bool | None:
        """Note a sender's last word; False where the run goes on without it."""

    def silent(self, reason: str) -> None:
        """Note that the sender has said nothing for so long that the run was closed."""


class PlainSink:
    """A sink that has a frame safe as soon as a function has returned: for measurements and tests.

    Parameters
    ----------
    on_frame : callable
        Gets each frame, on the ingest thread.
    window_bytes : int
        As of `RunSink`.

    Attributes
    ----------
    ended : threading.Event
        Set when the sender says so, or falls silent.
    """

    def __init__(self, on_frame: Callable[[Frame], object], window_bytes: int = 64 << 20) -> None:
        self.received = FrameRanges()
        self.window_bytes = window_bytes
        self.last_word: wire.RunEnd | None = None
        self.ended = threading.Event()
        self._on_frame = on_frame

    def frame(self, frame: Frame, taken: Callable[[], None]) -> None:
        """Hand the frame to the function."""
        self._on_frame(frame)
        taken()

    def started(self, first_seq: int) -> None:
        """Do nothing."""

    def duplicate(self) -> None:
        """Do nothing."""

    def progress(self, message: wire.RunProgress) -> None:
        """Do nothing."""

    def end(self, message: wire.RunEnd) -> bool:
        """Keep the sender's last word."""
        self.last_word = message
        self.ended.set()
        return True

    def silent(self, reason: str) -> None:
        """Wait for nobody any more."""
        self.ended.set()
