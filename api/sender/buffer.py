"""Frames between the camera and the daemon: bounded, with a counter for every way in which a frame leaves.

Each frame that `put` took is *waiting*, or *sent* and unanswered, or gone and counted as acknowledged,
refused, lost or damaged. Where its pixels are is another matter: memory is a cache of the journal. As soon as
half of the memory is full, or the daemon is away, the journal's thread writes the oldest frames that are in
memory alone. A frame that has been written and is not among the next to go (a quarter of the memory) leaves
memory, and is read back when its turn comes. Another quarter may be sent and unanswered, so half is the
camera's while the disk is busy. Without a journal, everything stays in memory.

The line keeps the order, and the daemon acknowledges in the order in which frames came in. Hence one rule
finds what was lost: *whatever was sent before something that has been acknowledged, and is itself
unanswered, never arrived* (unless the daemon said that it holds it), and waits again. Refusals may overtake,
so they prove nothing of the others.

`put` and `wait_for_room` may be called from any thread; `next_to_write`, `written`, `next_to_read`, `read`
and `take_released` from the journal's; everything else from the sender's. One lock, held for bookkeeping
only: pixels are copied outside of it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import takewhile
from operator import attrgetter

import numpy as np

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.frames import Frame
from microdiffusion.sender.buffered import BufferedFrame, BufferStats
from microdiffusion.sender.journal import Location

_BY_NUMBER = attrgetter("number")


class SendBuffer:
    """The frames of one sender, all of the same size.

    Parameters
    ----------
    capacity_bytes : int
        Limit for the pixels in memory.
    frame_bytes : int
        Size of one frame's pixels.
    journal : bool
        Whether there is one.
    first_seq : int
        The lowest number that a frame may have.

    Attributes
    ----------
    journal_work : Event
        Wakes the journal's thread.
    """

    def __init__(
        self, capacity_bytes: int, frame_bytes: int, *, journal: bool = False, first_seq: int = 0
    ) -> None:
        self.journal_work = threading.Event()
        self._frame_bytes = frame_bytes
        self._capacity = capacity_bytes // frame_bytes
        self._share = max(1, self._capacity // 4) if journal else self._capacity
        self._journal = journal
        self._changed = threading.Condition()
        self._waiting: deque[BufferedFrame] = deque()  # by number, unless a fault swapped two
        self._sent: dict[int, BufferedFrame] = {}  # in the order of sending
        self._unwritten: deque[BufferedFrame] = deque()  # in memory alone, by number; with a journal
        self._stored: deque[BufferedFrame] = deque()  # in the journal alone, by number
        self._released: list[Location] = []
        self._memory = self._copying = 0
        self._last_seq = first_seq - 1
        self._closed = False
        self._counts = BufferStats()

    def adopt(self, records: dict[int, Location], *, announced: int, dropped: int) -> None:
        """Begin with the records of a left-over journal, and take no more."""
        with self._changed:
            for seq, location in records.items():
                self._stored.append(BufferedFrame(seq, len(self._stored), location=location))
            self._waiting.extend(self._stored)
            self._counts.journaled = len(records)
            self._counts.put, self._counts.dropped = max(len(records), announced - dropped), dropped
            self._closed = True
            self.journal_work.set()

    def put(self, frame: Frame) -> bool:
        """Copy a frame in; False (and counted) where there is no room, or the buffer is closed.

        Raises
        ------
        WireError
            Its number is not above that of the frame before: answers would be ambiguous.
        """
        with self._changed:
            if frame.info.seq <= self._last_seq:
                raise WireError(
                    f"Frame numbers must rise, but {frame.info.seq} came after {self._last_seq}.",
                    reason="frame",
                )
            if self._closed or self._memory >= self._capacity:
                self._counts.dropped += 1
                return False
            self._last_seq = frame.info.seq
            self._memory += 1
            self._copying += 1
        try:
            copy = Frame(frame.info, np.array(frame.pixels, order="C", copy=True))
        except BaseException:
            with self._changed:
                self._memory -= 1
                self._copying -= 1
            raise
        with self._changed:
            entry = BufferedFrame(copy.info.seq, self._counts.put, copy)
            self._copying -= 1
            self._counts.put += 1
            self._waiting.append(entry)
            if self._journal:
                self._unwritten.append(entry)
            if self._memory > self._capacity // 2:
                self.journal_work.set()
        return True

    def count_dropped(self) -> None:
        """Count a frame that could not even be offered."""
        with self._changed:
            self._counts.dropped += 1

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a frame would be taken; False after `timeout_s` or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._memory < self._capacity, timeout_s)
            return not self._closed and self._memory < self._capacity

    def close(self) -> None:
        """Take no more frames, and release those who wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def next_to_send(self, window_bytes: int) -> BufferedFrame | None:
        """Return the frame to send next, without taking it out.

        None where it is not in memory, or where it would bring what is unanswered above `window_bytes` or
        `wire.MAX_HELD` frames (one frame may always go).
        """
        with self._changed:
            if not self._waiting or not self._waiting[0].in_memory:
                return None
            most = min(window_bytes // self._frame_bytes, self._share, wire.MAX_HELD)
            return self._waiting[0] if not self._sent or len(self._sent) < most else None

    def mark_sent(self) -> None:
        """Note that the frame of `next_to_send` went out."""
        with self._changed:
            entry = self._pop_waiting()
            entry.transmissions += 1
            entry.sent_s = time.monotonic()
            entry.held = False
            self._sent[entry.seq] = entry

    def overtake(self) -> bool:
        """Let the frame of `next_to_send` be overtaken by the one behind it; False where there is none."""
        with self._changed:
            if len(self._waiting) < 2 or not self._waiting[1].in_memory:
                return False
            self._waiting[0], self._waiting[1] = self._waiting[1], self._waiting[0]
            return True

    def lose(self) -> None:
        """Forget the frame of `next_to_send`, as if the line had swallowed it."""
        with self._changed:
            self._counts.lost += 1
            self._forget(self._pop_waiting())

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Note that the daemon has these frames; an answer to something older is ignored."""
        with self._changed:
            for seq in seqs:
                entry = self._sent.get(seq)
                if entry is None:
                    continue
                if not entry.held:  # one that is held may have come on an earlier line, which proves nothing
                    self._wait_again(self._sent_before(entry))
                del self._sent[seq]
                self._counts.acknowledged += 1
                self._forget(entry)

    def refuse(self, seq: int, *, attempts: int | None) -> None:
        """Note that the daemon refused frame `seq`: it is sent again until it went out `attempts` times.

        None: again and again, because there was merely no room for it.
        """
        with self._changed:
            entry = self._sent.get(seq)
            if entry is None:
                return
            if attempts is None or entry.transmissions < attempts:
                self._wait_again([entry])
            else:
                del self._sent[seq]
                self._counts.refused += 1
                self._forget(entry)

    def resend_all(self, held: Collection[int] = ()) -> int:
        """Have everything unanswered wait again, but what the daemon holds; return how many."""
        with self._changed:
            for seq, entry in self._sent.items():
                entry.held = seq in held
                entry.sent_s = time.monotonic()
            again = [entry for entry in self._sent.values() if not entry.held]
            self._wait_again(again)
            return len(again)

    def oldest_sent_s(self) -> float | None:
        """Return `time.monotonic()` of the oldest unanswered transmission, None where there is none."""
        with self._changed:
            return next((entry.sent_s for entry in self._sent.values()), None)

    def is_empty(self) -> bool:
        """Return whether every frame that was taken is accounted for."""
        with self._changed:
            return not (self._waiting or self._sent or self._copying)

    def stats(self) -> BufferStats:
        """Return the counters of this moment."""
        with self._changed:
            return replace(
                self._counts,
                waiting=len(self._waiting),
                on_the_way=len(self._sent),
                buffered_bytes=(len(self._waiting) + len(self._sent) + self._copying) * self._frame_bytes,
                memory_bytes=self._memory * self._frame_bytes,
            )

    def unsaved(self) -> int:
        """Return how many waiting frames are in memory alone."""
        with self._changed:
            return sum(entry.location is None for entry in self._waiting)

    def next_to_write(self, *, everything: bool = False) -> BufferedFrame | None:
        """Return the frame to write to the journal next: the oldest that is in memory alone.

        None where there is none, or, but for `everything`, memory has room.
        """
        with self._changed:
            self._skip_written()
            wanted = everything or self._memory > self._capacity // 2
            return self._unwritten[0] if wanted and self._unwritten else None

    def written(self, entry: BufferedFrame, location: Location) -> None:
        """Note that the frame of `next_to_write` is in the journal."""
        with self._changed:
            if entry.gone:
                self._released.append(location)
                return
            entry.location = location
            self._counts.journaled += 1
            if entry.seq not in self._sent and entry.number - self._waiting[0].number >= self._share:
                entry.frame = entry.parts = None
                self._memory -= 1
                self._stored.append(entry)
                self._changed.notify_all()

    def next_to_read(self) -> BufferedFrame | None:
        """Return the frame to read back from the journal next; None where enough are at hand."""
        with self._changed:
            if not self._stored:
                return None
            entry, first = self._stored[0], self._waiting[0]
            room = self._memory < self._capacity or (entry is first and not self._sent)
            return entry if room and entry.number - first.number < self._share else None

    def read(self, entry: BufferedFrame, parts: wire.Parts | None) -> None:
        """Take the frame of `next_to_read` as the journal holds it; None: it cannot be read."""
        with self._changed:
            self._stored.popleft()
            if parts is None:
                self._counts.damaged += 1
                self._waiting.remove(entry)
                self._forget(entry)
            else:
                entry.parts = parts
                self._memory += 1

    def take_released(self) -> list[Location]:
        """Return the records that the journal no longer has to keep."""
        with self._changed:
            released, self._released = self._released, []
            return released

    def _pop_waiting(self) -> BufferedFrame:
        if self._stored:
            self.journal_work.set()
        return self._waiting.popleft()

    def _sent_before(self, entry: BufferedFrame) -> list[BufferedFrame]:
        before = takewhile(lambda other: other is not entry, self._sent.values())
        return [other for other in before if not other.held]

    def _wait_again(self, entries: Iterable[BufferedFrame]) -> None:
        for entry in entries:
            del self._sent[entry.seq]
            self._waiting.insert(bisect(self._waiting, entry.number, key=_BY_NUMBER), entry)

    def _skip_written(self) -> None:
        while self._unwritten:
            entry = self._unwritten[0]
            if not (entry.gone or entry.unfit or entry.location is not None):
                return
            self._unwritten.popleft()

    def _forget(self, entry: BufferedFrame) -> None:
        self._memory -= entry.in_memory
        entry.frame = entry.parts = None
        entry.gone = True
        self._skip_written()
        if entry.location is not None:
            self._counts.journaled -= 1
            self._released.append(entry.location)
        if self._stored or self._released:
            self.journal_work.set()
        self._changed.notify_all()
