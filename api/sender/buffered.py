"""A frame in the sender's buffer, and the counters of all; `buffer.SendBuffer` owns both, and their lock."""

from __future__ import annotations

from dataclasses import dataclass

from microdiffusion import wire
from microdiffusion.errors import WireError
from microdiffusion.frames import Frame
from microdiffusion.sender.faults import Fault
from microdiffusion.sender.journal import Location


@dataclass(slots=True, eq=False)
class BufferedFrame:
    """A frame in the buffer and its history. Whoever holds the buffer's lock may touch it.

    Attributes
    ----------
    number : int
        Position in the order of the buffer, without gaps.
    frame, parts
        Its pixels, as they were put and as they go out; both None where they are in the journal alone.
    location : Location or None
        Where it is in the journal.
    unfit : bool
        It cannot be encoded.
    held : bool
        The daemon has it, not safely yet.
    gone : bool
        It needs nothing any more.
    """

    seq: int
    number: int
    frame: Frame | None = None
    parts: wire.Parts | None = None
    location: Location | None = None
    transmissions: int = 0
    sent_s: float = 0.0
    fault: Fault | None = None  # None: not drawn yet
    unfit: bool = False
    held: bool = False
    gone: bool = False

    def encoded(self, run: str) -> wire.Parts:
        """Return its message on the wire; raises WireError where it cannot be sent as it is."""
        parts, frame = self.parts, self.frame
        if parts is None:
            if frame is None:
                raise WireError(f"Frame {self.seq} is not in memory.", reason="frame")
            parts = self.parts = wire.encode_frame(run, frame)
        return parts

    @property
    def in_memory(self) -> bool:
        """Return whether its pixels are in memory."""
        return self.frame is not None or self.parts is not None


@dataclass(slots=True)
class BufferStats:
    """Counters of the frames that were offered, at one moment.

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
        Of these: frames that are in the journal; size of those in memory.
    """

    put: int = 0
    dropped: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    damaged: int = 0
    waiting: int = 0
    on_the_way: int = 0
    buffered_bytes: int = 0
    journaled: int = 0
    memory_bytes: int = 0
