"""Where frames wait until the daemon has them: bounded in bytes, with a counter for each way out.

Every frame that `put` took is in exactly one place: waiting, on its way (sent, unanswered), or gone and
counted as acknowledged, refused or lost. The line keeps the order, hence one rule finds what was lost:
*whatever was sent before something that has been answered, and is itself unanswered, never arrived*, and
goes back to the front of those that wait.

`put` and `wait_for_room` may be called from any thread, everything else from the sender's thread. One lock,
held for bookkeeping only: pixels are copied outside of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from microdiffusion.errors import WireError
from microdiffusion.faults import Fault
from microdiffusion.sweep import Frame


@dataclass(slots=True)
class Entry:
    """A frame in the buffer, and what happened to it so far."""

    frame: Frame
    transmissions: int = 0
    sent_s: float = 0.0
    fault: Fault | None = None  # None: not drawn yet

    @property
    def seq(self) -> int:
        """Its number in the run."""
        return self.frame.info.seq

    @property
    def nbytes(self) -> int:
        """Size of its pixels."""
        return int(self.frame.pixels.nbytes)


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What became of the frames that were offered, at one moment.

    Attributes
    ----------
    put, dropped : int
        Taken into the buffer; not taken, because it was full, or closed, or the frame was unfit.
    acknowledged, refused, lost : int
        Of the taken: the daemon has them; refused them for good; were swallowed by a deliberate fault.
    waiting, on_the_way, buffered_bytes : int
        Of the taken: not sent yet; sent and unanswered; size of both.
    """

    put: int
    dropped: int
    acknowledged: int
    refused: int
    lost: int
    waiting: int
    on_the_way: int
    buffered_bytes: int


class SendBuffer:
    """Frames between the camera and the daemon.

    Parameters
    ----------
    capacity_bytes : int
        Most that the pixels of all frames may take.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._sent: dict[int, Entry] = {}  # in the order of sending
        self._aside: Entry | None = None
        self._bytes = 0
        self._sent_bytes = 0
        self._last_seq = -1
        self._closed = False
        self._put = self._dropped = self._acknowledged = self._refused = self._lost = 0

    def put(self, frame: Frame) -> bool:
        """Copy a frame in; False (and counted) where there is no room, or the buffer is closed.

        Raises
        ------
        WireError
            Its number is not above that of the frame before: answers could not be told apart.
        """
        nbytes = int(frame.pixels.nbytes)
        with self._changed:
            if frame.info.seq <= self._last_seq:
                raise WireError(
                    f"Frame numbers must rise, but {frame.info.seq} came after {self._last_seq}.",
                    reason="frame",
                )
            if self._closed or self._bytes + nbytes > self._capacity:
                self._dropped += 1
                return False
            self._bytes += nbytes
            self._last_seq = frame.info.seq
        try:
            entry = Entry(Frame(frame.info, np.array(frame.pixels, order="C", copy=True)))
        except BaseException:
            with self._changed:
                self._bytes -= nbytes
            raise
        with self._changed:
            self._waiting.append(entry)
            self._put += 1
        return True

    def count_dropped(self) -> None:
        """Count a frame that could not even be offered."""
        with self._changed:
            self._dropped += 1

    def wait_for_room(self, nbytes: int, timeout_s: float) -> bool:
        """Wait until a frame of `nbytes` would be taken; False after `timeout_s` or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._bytes + nbytes <= self._capacity, timeout_s)
            return not self._closed and self._bytes + nbytes <= self._capacity

    def close(self) -> None:
        """Take no more frames, and let those go who wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def next_to_send(self, window_bytes: int, *, last: bool = False) -> Entry | None:
        """Return the frame to send next, without taking it out.

        None where none waits, or where it would bring what is on its way above `window_bytes` (one frame
        may always go). `last` says that no more will be put, so one that was set aside need not wait.
        """
        with self._changed:
            if not self._waiting and self._aside is not None and (last or self._closed):
                self._release_aside()
            if not self._waiting:
                return None
            entry = self._waiting[0]
            if self._sent and self._sent_bytes + entry.nbytes > window_bytes:
                return None
            return entry

    def mark_sent(self) -> None:
        """Note that the frame of `next_to_send` went out."""
        with self._changed:
            entry = self._waiting.popleft()
            entry.transmissions += 1
            entry.sent_s = time.monotonic()
            self._sent[entry.seq] = entry
            self._sent_bytes += entry.nbytes
            self._release_aside()

    def set_aside(self) -> None:
        """Let the frame of `next_to_send` be overtaken by the one behind it."""
        with self._changed:
            entry = self._waiting.popleft()
            self._release_aside()
            self._aside = entry

    def lose(self) -> None:
        """Forget the frame of `next_to_send`, as if the line had swallowed it."""
        with self._changed:
            self._lost += 1
            self._forget(self._waiting.popleft())

    def acknowledge(self, seq: int) -> None:
        """Note that the daemon has frame `seq`; an answer to something older is ignored."""
        with self._changed:
            entry = self._answered(seq)
            if entry is not None:
                self._acknowledged += 1
                self._forget(entry)

    def refuse(self, seq: int, *, attempts: int) -> None:
        """Note that the daemon refused frame `seq`: it is sent again until it went out `attempts` times."""
        with self._changed:
            entry = self._answered(seq)
            if entry is None:
                return
            if entry.transmissions < attempts:
                self._waiting.appendleft(entry)
            else:
                self._refused += 1
                self._forget(entry)

    def resend_all(self) -> int:
        """Put everything that is on its way back to the front; return how many frames that were."""
        with self._changed:
            count = len(self._sent)
            self._resend(list(self._sent))
            return count

    def oldest_sent_s(self) -> float | None:
        """Return `time.monotonic()` of the oldest unanswered transmission, None where there is none."""
        with self._changed:
            return next((entry.sent_s for entry in self._sent.values()), None)

    def is_empty(self) -> bool:
        """Return whether every frame that was taken is accounted for."""
        with self._changed:
            return self._bytes == 0

    def stats(self) -> BufferStats:
        """Return the counters of this moment."""
        with self._changed:
            return BufferStats(
                put=self._put,
                dropped=self._dropped,
                acknowledged=self._acknowledged,
                refused=self._refused,
                lost=self._lost,
                waiting=len(self._waiting) + (self._aside is not None),
                on_the_way=len(self._sent),
                buffered_bytes=self._bytes,
            )

    def _answered(self, seq: int) -> Entry | None:
        entry = self._sent.get(seq)
        if entry is None:
            return None
        earlier = []
        for other in self._sent:
            if other == seq:
                break
            earlier.append(other)
        self._resend(earlier)
        del self._sent[seq]
        self._sent_bytes -= entry.nbytes
        return entry

    def _resend(self, seqs: list[int]) -> None:
        for seq in reversed(seqs):
            entry = self._sent.pop(seq)
            self._sent_bytes -= entry.nbytes
            self._waiting.appendleft(entry)

    def _release_aside(self) -> None:
        if self._aside is not None:
            self._waiting.appendleft(self._aside)
            self._aside = None

    def _forget(self, entry: Entry) -> None:
        self._bytes -= entry.nbytes
        self._changed.notify_all()
