"""How a run's source is: when its last frame came, whether its camera saturates, what its journal holds.

No thread: `frame`, `progress` and `end` come from the ingest thread and only put a value down; `look` works
out the rest on the main thread, once a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.runs.accounting import MOST_SENDERS
from microdiffusion.daemon.runs.saturation import saturated_share

if TYPE_CHECKING:
    from microdiffusion.frames import Frame
    from microdiffusion.wire import RunEnd, RunProgress


class Vitals:
    """The signs of life of one run's source.

    Attributes
    ----------
    saturated : float
        Share (0 to 1) of the newest frame's pixels that are as bright as the camera can count.
    """

    def __init__(self) -> None:
        self.saturated = 0.0
        self._newest: Frame | None = None
        self._newest_s: float | None = None
        self._journals: dict[int, int] = {}  # bytes, by where the sender's numbers begin

    def frame(self, frame: Frame) -> None:
        """Note that a frame came."""
        self._newest, self._newest_s = frame, time.monotonic()

    def progress(self, message: RunProgress) -> None:
        """Note what a sender says of its journal."""
        if message.first_seq in self._journals or len(self._journals) < MOST_SENDERS:
            self._journals[message.first_seq] = message.journal_bytes

    def end(self, message: RunEnd) -> None:
        """Note that a sender is gone."""
        self._journals.pop(message.first_seq, None)

    def look(self) -> None:
        """Look at the newest frame."""
        frame, self._newest = self._newest, None
        if frame is not None:
            self.saturated = saturated_share(frame.pixels)

    @property
    def silent_s(self) -> float | None:
        """Time since the last frame, s; None before the first."""
        return None if self._newest_s is None else time.monotonic() - self._newest_s

    @property
    def journal_bytes(self) -> int:
        """What waits in the senders' journals."""
        return sum(list(self._journals.values()))
