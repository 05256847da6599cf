"""Where frames wait until the daemon has them: bounded in bytes, with a counter for each way out.

Every frame that `put` took is in exactly one place, in the order of its number:

    on its way (sent, unanswered)  <  head (in memory)  <  middle (in the journal alone)  <  tail (in memory)

or gone and counted as acknowledged, refused, damaged or lost. Without a journal there is but the head. With
one, the head holds what goes out next, and what the camera brings beyond it waits in the tail for the
journal's thread, which begins when half of the memory is full. A quarter of it may be on its way and a
quarter in the head, so that half is the camera's while the disk is busy. A frame in memory may lie in the
journal as well.

The line keeps the order, and the daemon acknowledges in the order in which frames came in. Hence one rule
finds what was lost: *whatever was sent before something that has been acknowledged, and is itself
unanswered, never arrived* (unless the daemon said that it holds it), and goes back to the head. Refusals
may overtake, so they prove nothing of the others.

`put` and `wait_for_room` may be called from any thread; `to_spill`, `unrecorded`, `recorded`, `to_fetch`,
`fetched` and `take_released` from the journal's; everything else from the sender's. One lock, held for
bookkeeping only: pixels are copied outside of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.frames import Frame
from microdiffusion.sender.entry import Entry, Queue
from microdiffusion.sender.journal import Place

ASIDE_S = 0.5
"""How long a frame that is to be overtaken waits for one to come."""


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What became of the frames that were offered, at one moment.

    Attributes
    ----------
    put, dropped : int
        Taken into the buffer; not taken, because it was full, or closed, or the frame was unfit.
    acknowledged, refused, lost, damaged : int
        Of the taken: the daemon has them; refused them for good; were swallowed by a deliberate fault; could
        not be read back from the journal.
    waiting, on_the_way, buffered_bytes : int
        Of the taken: not sent yet; sent and unanswered; size of both, wherever they are.
    journaled, memory_bytes : int
        Of these: frames that lie in the journal; size of those in memory.
    """

    put: int
    dropped: int
    acknowledged: int
    refused: int
    lost: int
    damaged: int
    waiting: int
    on_the_way: int
    buffered_bytes: int
    journaled: int
    memory_bytes: int


class SendBuffer:
    """Frames between the camera and the daemon.

    Parameters
    ----------
    capacity_bytes : int
        Most that the pixels in memory may take.
    journal : bool
        Whether somebody spills what does not fit.
    first_seq : int
        The lowest number that a frame may have.
    """

    def __init__(self, capacity_bytes: int, *, journal: bool = False, first_seq: int = 0) -> None:
        self.journal_work = threading.Event()
        self._capacity = capacity_bytes
        self._head_bytes = capacity_bytes // 4 if journal else capacity_bytes
        self._low_water = capacity_bytes // 2
        self._changed = threading.Condition()
        self._head, self._middle, self._tail = Queue(), Queue(), Queue()
        self._sent: dict[int, Entry] = {}  # in the order of sending
        self._aside: Entry | None = None
        self._memory = 0
        self._bytes = 0
        self._sent_bytes = 0
        self._journaled = self._unrecorded = 0
        self._released: list[Place] = []
        self._last_seq = first_seq - 1
        self._closed = False
        self._put = self._dropped = self._acknowledged = self._refused = self._lost = self._damaged = 0

    def adopt(self, records: dict[int, Place], *, announced: int, dropped: int) -> None:
        """Begin with what a journal that was left over holds, and take no more."""
        with self._changed:
            self._head_bytes = self._capacity // 4
            for seq, place in records.items():
                self._middle.append(Entry(seq, place.body_bytes, place=place))
            self._bytes = self._middle.nbytes
            self._journaled = len(records)
            self._put, self._dropped = max(len(records), announced - dropped), dropped
            self._closed = True
            self.journal_work.set()

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
            if self._closed or self._memory + nbytes > self._capacity:
                self._dropped += 1
                return False
            self._memory += nbytes
            self._bytes += nbytes
            self._last_seq = frame.info.seq
        try:
            copy = Frame(frame.info, np.array(frame.pixels, order="C", copy=True))
        except BaseException:
            with self._changed:
                self._memory -= nbytes
                self._bytes -= nbytes
            raise
        entry = Entry(frame.info.seq, nbytes, copy)
        with self._changed:
            later = self._tail or self._middle or self._head.nbytes + nbytes > self._head_bytes
            (self._tail if later else self._head).append(entry)
            self._put += 1
            self._unrecorded += 1
        if later:
            self.journal_work.set()
        return True

    def count_dropped(self) -> None:
        """Count a frame that could not even be offered."""
        with self._changed:
            self._dropped += 1

    def wait_for_room(self, nbytes: int, timeout_s: float) -> bool:
        """Wait until a frame of `nbytes` would be taken; False after `timeout_s` or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._memory + nbytes <= self._capacity, timeout_s)
            return not self._closed and self._memory + nbytes <= self._capacity

    def close(self) -> None:
        """Take no more frames, and let those go who wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def next_to_send(self, window_bytes: int, *, last: bool = False) -> Entry | None:
        """Return the frame to send next, without taking it out.

        None where none is at hand, or where it would bring what is on its way above `window_bytes` or
        `wire.MAX_HELD` frames (one frame may always go). `last` says that no more will be put, so one that
        was set aside need not wait; otherwise it waits for `ASIDE_S` at most.
        """
        with self._changed:
            self._fill_head()
            if self._aside is not None and not self._head and not self._middle:
                waited_s = time.monotonic() - self._aside.sent_s
                if last or self._closed or waited_s > ASIDE_S:
                    self._release_aside()
            if not self._head:
                return None
            entry = self._head.entries[0]
            most = min(window_bytes, self._head_bytes)
            full = self._sent_bytes + entry.nbytes > most or len(self._sent) >= wire.MAX_HELD
            return None if self._sent and full else entry

    def mark_sent(self) -> None:
        """Note that the frame of `next_to_send` went out."""
        with self._changed:
            entry = self._pop_head()
            entry.transmissions += 1
            entry.sent_s = time.monotonic()
            entry.held = False
            self._sent[entry.seq] = entry
            self._sent_bytes += entry.nbytes
            self._release_aside()

    def set_aside(self) -> None:
        """Let the frame of `next_to_send` be overtaken by the one behind it."""
        with self._changed:
            entry = self._pop_head()
            self._release_aside()
            entry.sent_s = time.monotonic()
            self._aside = entry

    def lose(self) -> None:
        """Forget the frame of `next_to_send`, as if the line had swallowed it."""
        with self._changed:
            self._lost += 1
            self._forget(self._pop_head())

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Note that the daemon has these frames; an answer to something older is ignored."""
        with self._changed:
            for seq in seqs:
                entry = self._sent.get(seq)
                if entry is None:
                    continue
                if not entry.held:  # one that is held may have come on an earlier line, which proves nothing
                    self._resend_before(seq)
                self._take_sent(seq)
                self._acknowledged += 1
                self._forget(entry)

    def refuse(self, seq: int, *, attempts: int | None) -> None:
        """Note that the daemon refused frame `seq`: it is sent again until it went out `attempts` times.

        None: again and again, because there was merely no room for it.
        """
        with self._changed:
            if seq not in self._sent:
                return
            entry = self._take_sent(seq)
            if attempts is None or entry.transmissions < attempts:
                self._head.insert(entry)
            else:
                self._refused += 1
                self._forget(entry)

    def resend_all(self, held: Collection[int] = ()) -> int:
        """Put everything that is on its way back to the head, but what the daemon holds; return how many."""
        with self._changed:
            again = []
            for seq, entry in self._sent.items():
                entry.held = seq in held
                entry.sent_s = time.monotonic()
                if not entry.held:
                    again.append(seq)
            self._resend(again)
            return len(again)

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
            waiting = len(self._head) + len(self._middle) + len(self._tail) + (self._aside is not None)
            return BufferStats(
                put=self._put,
                dropped=self._dropped,
                acknowledged=self._acknowledged,
                refused=self._refused,
                lost=self._lost,
                damaged=self._damaged,
                waiting=waiting,
                on_the_way=len(self._sent),
                buffered_bytes=self._bytes,
                journaled=self._journaled,
                memory_bytes=self._memory,
            )

    def unsaved(self) -> int:
        """Return how many waiting frames are in memory alone."""
        with self._changed:
            queues = (self._head.entries, self._tail.entries)
            count = sum(entry.place is None for entries in queues for entry in entries)
            return count + (self._aside is not None and self._aside.place is None)

    def to_spill(self) -> Entry | None:
        """Return the frame to write to the journal next, which frees its memory; None where none is."""
        with self._changed:
            self._fill_head()
            return self._tail.entries[0] if self._tail and self._memory > self._low_water else None

    def unrecorded(self, *, ahead: bool = False) -> list[Entry]:
        """Return the frames that are in memory alone, oldest first; `ahead`: those before the tail."""
        with self._changed:
            aside = [self._aside] if self._aside is not None else []
            found: list[Entry] = []
            # From the newest on: older ones have been written already, mostly, and need not be looked at.
            before_tail = (self._head.entries, aside, self._sent.values())
            for entries in before_tail if ahead else (self._tail.entries, *before_tail):
                for entry in reversed(entries):
                    if len(found) == self._unrecorded:
                        break
                    if entry.place is None:
                        found.append(entry)
            return found[::-1]

    def recorded(self, entry: Entry, place: Place) -> None:
        """Note that a frame of `to_spill` or `unrecorded` lies in the journal."""
        with self._changed:
            if entry.gone:
                self._released.append(place)
                return
            entry.place = place
            self._journaled += 1
            self._unrecorded -= 1
            while self._tail and self._tail.entries[0].place is not None:
                spilled = self._tail.popleft()
                spilled.frame = spilled.parts = None
                self._memory -= spilled.nbytes
                self._middle.append(spilled)
            self._changed.notify_all()

    def to_fetch(self) -> Entry | None:
        """Return the frame to read back from the journal next; None where enough are at hand."""
        with self._changed:
            if not self._middle:
                return None
            entry = self._middle.entries[0]
            room = self._memory + entry.nbytes <= self._capacity or not (self._head or self._sent)
            short = self._head.nbytes + entry.nbytes <= self._head_bytes or not self._head
            return entry if room and short else None

    def fetched(self, entry: Entry, parts: wire.Parts | None) -> None:
        """Take the frame of `to_fetch` with what the journal holds of it; None: that cannot be read."""
        with self._changed:
            self._middle.popleft()
            if parts is None:
                self._damaged += 1
                self._forget(entry)
                return
            entry.parts = parts
            self._memory += entry.nbytes
            self._head.append(entry)

    def take_released(self) -> list[Place]:
        """Return what the journal need not keep any longer."""
        with self._changed:
            released, self._released = self._released, []
            return released

    def _fill_head(self) -> None:
        while self._tail and not self._middle:
            if self._head and self._head.nbytes + self._tail.entries[0].nbytes > self._head_bytes:
                return
            self._head.append(self._tail.popleft())

    def _pop_head(self) -> Entry:
        entry = self._head.popleft()
        if self._middle:
            self.journal_work.set()
        return entry

    def _resend_before(self, seq: int) -> None:
        earlier = []
        for other, entry in self._sent.items():
            if other == seq:
                break
            if not entry.held:
                earlier.append(other)
        self._resend(earlier)

    def _resend(self, seqs: list[int]) -> None:
        for seq in reversed(seqs):
            self._head.appendleft(self._take_sent(seq))

    def _take_sent(self, seq: int) -> Entry:
        entry = self._sent.pop(seq)
        self._sent_bytes -= entry.nbytes
        return entry

    def _release_aside(self) -> None:
        if self._aside is not None:
            self._head.appendleft(self._aside)
            self._aside = None

    def _forget(self, entry: Entry) -> None:
        if entry.frame is not None or entry.parts is not None:
            self._memory -= entry.nbytes
        self._bytes -= entry.nbytes
        entry.gone = True
        if entry.place is not None:
            self._journaled -= 1
            self._released.append(entry.place)
            self.journal_work.set()
        else:
            self._unrecorded -= 1
        self._changed.notify_all()
