"""A frame on its way to the daemon, and a row of such: what `SendBuffer` moves about.

Plain data; whoever holds the buffer's lock may touch it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.frames import Frame
from microdiffusion.sender.faults import Fault
from microdiffusion.sender.journal import Place


@dataclass(slots=True, eq=False)
class Entry:
    """A frame in the buffer, and what happened to it so far.

    Attributes
    ----------
    frame, parts
        Its pixels, as they were put and as they go out; both None where they are in the journal alone.
    place : Place or None
        Where it lies in the journal.
    held : bool
        The daemon has it, not safely yet.
    gone : bool
        It needs nothing any more.
    """

    seq: int
    nbytes: int
    frame: Frame | None = None
    parts: wire.Parts | None = None
    place: Place | None = None
    transmissions: int = 0
    sent_s: float = 0.0
    fault: Fault | None = None  # None: not drawn yet
    held: bool = False
    gone: bool = False

    def encoded(self, run: str) -> wire.Parts:
        """Return its message on the wire; raises WireError where it cannot be sent as it is."""
        parts = self.parts
        if parts is None:
            frame = self.frame
            if frame is None:
                raise WireError(f"Frame {self.seq} is not in memory.", reason="frame")
            parts = self.parts = wire.encode_frame(run, frame)
        return parts


@dataclass(slots=True)
class Queue:
    """Entries in order, and the size of their pixels."""

    entries: deque[Entry] = field(default_factory=deque)
    nbytes: int = 0

    def append(self, entry: Entry) -> None:
        """Put an entry at the end."""
        self.entries.append(entry)
        self.nbytes += entry.nbytes

    def insert(self, entry: Entry) -> None:
        """Put an entry where its number belongs, which is near the front."""
        place = 0
        for other in self.entries:
            if other.seq > entry.seq:
                break
            place += 1
        self.entries.insert(place, entry)
        self.nbytes += entry.nbytes

    def appendleft(self, entry: Entry) -> None:
        """Put an entry at the front."""
        self.entries.appendleft(entry)
        self.nbytes += entry.nbytes

    def popleft(self) -> Entry:
        """Take the front entry out."""
        entry = self.entries.popleft()
        self.nbytes -= entry.nbytes
        return entry

    def __len__(self) -> int:
        return len(self.entries)
