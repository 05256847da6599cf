"""What ingest knows of one run: which frames came, which of them are safe, and whom to tell.

A frame has three states here: *handed on* (the sink has it), *pending* (handed on and not safe yet), *safe*
(the sink called `taken`). Safe frames are confirmed in the order in which they came, whatever order they
became safe in, because a sender concludes from the order of the answers what the line has lost.

A run may have several senders, mostly one after the other (a driver that was killed, the one that goes on
with its run, the delivery of a journal). They are told apart by where their numbers begin, not by their
sockets, which a broken line renames: so an answer goes to the sender whose frame it is about.

No thread and no socket: everything is called on the ingest thread, times are handed in. Memory is bounded by
the window (bytes), `MAX_PENDING` (frames), `MAX_RANGES` (gaps between the numbers) and `MAX_SENDERS`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from types import MappingProxyType

import numpy as np

from microdiffusion import wire
from microdiffusion.daemon.ingest.sink import RunSink
from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader

MAX_PENDING = 16_384
"""Frames of one run that wait to become safe, whatever their size."""
MAX_RANGES = 1 << 20
"""Ranges of consecutive frame numbers in one run: 16 MB."""
BATCH = 1024
"""Frame numbers in one answer."""
MAX_SENDERS = 16
"""Senders of one run that are remembered; of more, the one that was silent for longest is forgotten."""
_FORMER_PEERS = 16


def frame_bytes(header: RunHeader) -> int:
    """Return the size of one frame's pixels."""
    return math.prod(header.shape[1:]) * np.dtype(header.dtype).itemsize


class RunState(StrEnum):
    """Where a run stands."""

    OPEN = "open"
    ENDED = "ended"  # the sender said so
    SILENT = "silent"  # the sender said nothing for too long; it may come back
    CLOSED = "closed"  # the daemon wanted so


@dataclass(slots=True)
class Line:
    """One sender of a run, whatever its socket is called at the moment.

    Attributes
    ----------
    peer : bytes
        The socket's name for it.
    heard_s : float
        `time.monotonic()` of its last message.
    end : RunEnd or None
        Its last word.
    """

    peer: bytes
    heard_s: float
    end: wire.RunEnd | None = None
    to_confirm: deque[int] = field(default_factory=deque)
    _former: deque[bytes] = field(default_factory=lambda: deque(maxlen=_FORMER_PEERS))

    def heard(self, peer: bytes, now_s: float) -> bool:
        """Note that `peer` spoke; False where another has taken over from it.

        A sender whose line broke comes back under another name, so a name that is not known takes over.
        """
        if peer != self.peer and peer in self._former:
            return False
        self.asked(peer, now_s)
        return True

    def asked(self, peer: bytes, now_s: float) -> None:
        """Note that `peer` sent `start`: whoever says so last is the sender."""
        self.heard_s = now_s
        if peer != self.peer:
            if peer in self._former:
                self._former.remove(peer)
            self._former.append(self.peer)
            self.peer = peer


@dataclass(frozen=True, slots=True)
class RunStats:
    """What came in for one run, at one moment.

    Attributes
    ----------
    frames, bytes : int
        Frames that were handed on since the run was (last) opened, and the size of their pixels.
    duplicates, out_of_order : int
        Frames that came once more and were discarded; of `frames`, those after one with a higher number.
    refused : mapping of str to int
        Dropped messages of this run by `wire.Reason`.
    pending, pending_bytes, window_bytes : int
        Frames that are handed on and not safe yet; their size, and the most that it may be.
    announced, dropped : int or None
        What the sender last said of itself; None while it has said nothing.
    state, reason : str
        One of `RunState`, empty for a run that is not known here; and why it is not open.
    """

    frames: int = 0
    bytes: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    pending_bytes: int = 0
    window_bytes: int = 0
    announced: int | None = None
    dropped: int | None = None
    state: str = ""
    reason: str = ""


class IngestRun:
    """One run, from its start here to its end here; going on with it later begins another.

    Parameters
    ----------
    header : RunHeader
    sink : RunSink
    """

    def __init__(self, header: RunHeader, sink: RunSink) -> None:
        self.header = header
        self._sink: RunSink | None = sink
        self.received = sink.received
        self.lines: dict[int, Line] = {}  # by where their numbers begin
        self.state = RunState.OPEN
        self.reason = ""
        self.told: wire.Tell | None = None
        self.asks_for_more = False
        height, width = header.shape[1:]
        self._shape = (height, width)
        self._dtype = np.dtype(header.dtype).newbyteorder("<")
        most = MAX_PENDING * frame_bytes(header)
        self.window_bytes = max(frame_bytes(header), min(sink.window_bytes, most))
        self._firsts: list[int] = []  # where the lines' numbers begin, ascending
        self._pending: dict[int, int] = {}  # seq to bytes, in the order in which they came
        self._pending_bytes = 0
        self._refused: Counter[str] = Counter()
        self._frames = self._bytes = self._duplicates = self._out_of_order = 0
        self._announced: int | None = None
        self._dropped: int | None = None

    @property
    def stats(self) -> RunStats:
        """The counters of this moment; may be asked from any thread."""
        return RunStats(
            frames=self._frames,
            bytes=self._bytes,
            duplicates=self._duplicates,
            out_of_order=self._out_of_order,
            refused=MappingProxyType(dict(self._refused)),
            pending=len(self._pending),
            pending_bytes=self._pending_bytes,
            window_bytes=self.window_bytes,
            announced=self._announced,
            dropped=self._dropped,
            state=str(self.state),
            reason=self.reason,
        )

    @property
    def heard_s(self) -> float:
        """`time.monotonic()` of the last message of any of its senders."""
        return max(line.heard_s for line in self.lines.values())

    def line_of(self, seq: int) -> Line:
        """Return the sender whose frame this is."""
        return self.lines[self._firsts[max(0, bisect_right(self._firsts, seq) - 1)]]

    def started(self, first_seq: int, peer: bytes, now_s: float) -> None:
        """Note that `peer` sent `start`."""
        line = self.lines.get(first_seq)
        if line is None:
            if len(self.lines) >= MAX_SENDERS:
                del self.lines[min(self.lines, key=lambda first: self.lines[first].heard_s)]
            line = self.lines[first_seq] = Line(peer, now_s)
            self._firsts = sorted(self.lines)
        line.asked(peer, now_s)
        if self._sink is not None:
            line.end = None
            self._sink.started(first_seq)

    def has(self, seq: int) -> bool:
        """Whether a frame need not be taken (again); one that a closed run had pending may be gone."""
        return seq in self.received and (self.state is RunState.OPEN or seq not in self._pending)

    def repeat(self, seq: int) -> None:
        """Discard a frame that came once more, and confirm it (again) as soon as it is safe."""
        self._duplicates += 1
        # One that is pending is confirmed anyway. The bound is for a peer that repeats itself for ever.
        to_confirm = self.line_of(seq).to_confirm
        if seq not in self._pending and len(to_confirm) < 2 * MAX_PENDING:
            to_confirm.append(seq)
        if self._sink is not None:
            self._sink.duplicate()

    def objection(self, frame: Frame) -> tuple[wire.Reason, str] | None:
        """Return why a frame cannot be taken (now), None where it can."""
        info, pixels = frame.info, frame.pixels
        header, seq = self.header, info.seq
        if pixels.shape != self._shape or pixels.dtype != self._dtype:
            return wire.Reason.FRAME, (
                f"The run's frames are {self._shape} {header.dtype}, frame {seq} is {pixels.shape} "
                f"{pixels.dtype.newbyteorder('=').name}."
            )
        for name, value, limit in (
            ("sweep", info.sweep, header.sweeps),
            ("channel", info.channel, len(header.channels)),
            ("position", info.position, len(header.positions)),
        ):
            if limit is not None and value >= limit:
                return (
                    wire.Reason.FRAME,
                    f"Frame {seq} belongs to {name} {value}, but the run has {limit}, counted from 0.",
                )
        if self.received.ranges >= MAX_RANGES and seq != self.received.highest + 1:
            return wire.Reason.FRAME, f"The frame numbers of this run have more than {MAX_RANGES} gaps."
        if self._pending and (
            self._pending_bytes + pixels.nbytes > self.window_bytes or len(self._pending) >= MAX_PENDING
        ):
            return wire.Reason.WINDOW, (
                f"{self._pending_bytes / 1e6:.1f} MB of this run are not on the disk yet, and "
                f"{self.window_bytes / 1e6:.1f} MB is the most: send frame {seq} again later."
            )
        return None

    def take(self, frame: Frame, when_taken: Callable[[int], None]) -> None:
        """Hand a frame on; `when_taken` gets its number, on whatever thread the sink calls from."""
        seq, nbytes = frame.info.seq, frame.pixels.nbytes
        self._frames += 1
        self._bytes += nbytes
        self._out_of_order += seq < self.received.highest
        self.received.add(seq)
        self._pending[seq] = nbytes
        self._pending_bytes += nbytes
        self.line_of(seq).to_confirm.append(seq)
        if self._sink is not None:
            self._sink.frame(frame, partial(when_taken, seq))

    def taken(self, seq: int) -> None:
        """Note that a frame is safe."""
        self._pending_bytes -= self._pending.pop(seq, 0)

    def confirmed(self) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Yield peers and the numbers that may be confirmed to them now, in the order of arrival."""
        for line in self.lines.values():
            waiting = line.to_confirm
            while waiting and waiting[0] not in self._pending:
                batch: list[int] = []
                while waiting and len(batch) < BATCH and waiting[0] not in self._pending:
                    batch.append(waiting.popleft())
                yield line.peer, tuple(batch)

    def opening(self, first_seq: int, attempt: int, server: str) -> wire.Ack:
        """Return the answer to `start`: how much may be on its way, and what need not be sent again."""
        after = self._firsts[bisect_right(self._firsts, first_seq) :]
        stop = after[0] if after else None
        held = (seq for seq in self._pending if first_seq <= seq and (stop is None or seq < stop))
        return wire.Ack(
            run=self.header.run_id,
            attempt=attempt,
            window_bytes=self.window_bytes,
            held=tuple(islice(held, wire.MAX_HELD)) if self.state is RunState.OPEN else (),
            server=server,
        )

    def progressed(self, message: wire.RunProgress) -> None:
        """Note how far the sender is."""
        self._announced, self._dropped = message.announced, message.dropped
        if self._sink is not None:
            self._sink.progress(message)

    def reopen(self, sink: RunSink) -> None:
        """Go on with the run after it was closed, with a sink that knows what this one has pending."""
        self._sink = sink
        self.state, self.reason, self.asks_for_more = RunState.OPEN, "", False

    def ended(self, message: wire.RunEnd) -> None:
        """Take a sender's last word, and close the run where the sink agrees."""
        self._announced, self._dropped = message.announced, message.dropped
        self.lines[message.first_seq].end = message
        if self._sink is not None and self._sink.end(message) is not False:
            self.close(RunState.ENDED, f"the run is over ({message.reason}).")

    def fall_silent(self, reason: str) -> None:
        """Close the run because its sender says nothing."""
        sink = self._sink
        self.close(RunState.SILENT, reason)
        if sink is not None:
            sink.silent(reason)

    def close(self, state: RunState, reason: str) -> None:
        """Take no more frames; those that are pending may still become safe, and are confirmed then."""
        self.state, self.reason = state, reason
        self._sink = None  # what is remembered of a run that is over must not keep it in memory

    def count_refused(self, reason: str) -> None:
        """Count a message of this run that was dropped."""
        self._refused[str(reason)] += 1
