"""Queue of the recorder's thread: writes in order, bounded in bytes, and rolling volumes beside them.

Owns the lock and the order; what a write does is up to the recorder. Of each session only the newest
rolling volume waits, and one is handed out only after a rest of three times what the last one took: together
they take a quarter of the thread's time at most, so that frames and volumes never wait long for them. Any
thread puts; one thread takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from microdiffusion.frames import Frame

_REST = 3.0


@dataclass(frozen=True, slots=True)
class Write:
    """Work to do, the bytes that it holds meanwhile, and the frame that it writes, if any."""

    work: Callable[[], None]
    size: int = 0
    frame: Frame | None = None


class WriteQueue:
    """A queue of writes.

    Parameters
    ----------
    limit : int
        Most bytes that wait; a single write of any size is accepted when nothing waits.

    Attributes
    ----------
    changed : Condition
        Held during each change; notified of it.
    stopping : bool
        Whether nothing more is accepted.
    """

    def __init__(self, limit: int) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self._limit = limit
        self._writes: deque[Write] = deque()
        self._begun: Write | None = None
        self._newest: dict[Hashable, Write] = {}
        self._rolling_due_s = 0.0
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes that wait, or are being written."""
        return self._bytes

    @property
    def full(self) -> bool:
        """True once the limit is reached."""
        return self._bytes >= self._limit

    def put(self, work: Callable[[], None], size: int = 0, frame: Frame | None = None) -> bool:
        """Queue a write, however much waits; False after the stop."""
        with self.changed:
            if self.stopping:
                return False
            self._writes.append(Write(work, size, frame))
            self._bytes += size
            self.changed.notify_all()
        return True

    def offer(self, work: Callable[[], None], size: int) -> bool:
        """Queue a write; False where there is no room for it."""
        with self.changed:
            return self._has_room(size) and self.put(work, size)

    def put_newest(self, session: Hashable, work: Callable[[], None], size: int) -> bool:
        """Queue a rolling volume; it replaces one of its session that still waits."""

        def timed() -> None:
            began_s = time.monotonic()
            work()
            ended_s = time.monotonic()
            self._rolling_due_s = ended_s + _REST * (ended_s - began_s)

        with self.changed:
            waiting = self._newest.get(session)
            if self.stopping or (waiting is None and not self._has_room(size)):
                return False
            self._bytes += size - (waiting.size if waiting is not None else 0)
            self._newest[session] = Write(timed, size)
            self.changed.notify_all()
        return True

    def frames(self, sweep: int, channel: int, position: int) -> list[Frame]:
        """Return the frames of a sweep that are queued or being written, in their order."""
        with self.changed:
            writes = [self._begun, *self._writes]
        found = [write.frame for write in writes if write is not None and write.frame is not None]
        key = (sweep, channel, position)
        return [one for one in found if (one.info.sweep, one.info.channel, one.info.position) == key]

    def next(self) -> Write | None:
        """Wait for a write; None when nothing waits any more after the stop."""
        with self.changed:
            while True:
                rest_s = self._rolling_due_s - time.monotonic()
                if self._newest and (rest_s <= 0 or self.stopping):
                    return self._newest.pop(next(iter(self._newest)))
                if self._writes:
                    self._begun = self._writes.popleft()
                    return self._begun
                if self.stopping:
                    return None
                self.changed.wait(rest_s if self._newest else None)

    def done(self, write: Write) -> None:
        """Release the bytes of a finished write."""
        with self.changed:
            self._bytes -= write.size
            self._begun = None

    def stop(self) -> None:
        """Accept nothing more; what waits is still handed out."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def clear(self) -> None:
        """Drop everything that waits, and accept nothing more."""
        with self.changed:
            self.stopping = True
            self._writes.clear()
            self._begun = None
            self._newest.clear()
            self._bytes = 0
            self.changed.notify_all()

    def _has_room(self, size: int) -> bool:
        full = size > 0 and self._bytes > 0 and self._bytes + size > self._limit
        return not (full or self.stopping)
