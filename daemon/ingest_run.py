"""What ingest knows of one run: which frames came, which of them are safe, and whom to tell.

A frame has three states here: *handed on* (the sink has it), *pending* (handed on and not safe yet), *safe*
(the sink called `taken`). Safe frames are confirmed in the order in which they came, whatever order they
became safe in, because a sender concludes from the order of the answers what the line has lost.

No thread and no socket: everything is called on the ingest thread, times are handed in. Memory is bounded
by the window (bytes), by `MAX_PENDING` (frames) and by `MAX_RANGES` (gaps between the numbers).
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np

from microdiffusion import wire
from microdiffusion.daemon.seq_set import SeqSet
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Frame

MAX_PENDING = 16_384
"""Frames of one run that wait to become safe, whatever their size."""
MAX_RANGES = 1 << 20
"""Ranges of consecutive frame numbers in one run: 16 MB."""
BATCH = 1024
"""Frame numbers in one answer."""
_FORMER_PEERS = 16


class RunSink(Protocol):
    """Where the frames of one run go. All methods are called on the ingest thread and must not block.

    Attributes
    ----------
    received : SeqSet
        Frames that the run has; ingest alone changes it from then on.
    window_bytes : int
        Most pixels, in bytes, of frames that are handed on and not safe yet.
    """

    received: SeqSet
    window_bytes: int

    def frame(self, frame: Frame, taken: Callable[[], None]) -> None:
        """Take a frame (read-only pixels); `taken`, from any thread, once it is safe."""

    def duplicate(self) -> None:
        """Note that a frame came once more and was discarded."""

    def progress(self, message: wire.RunProgress) -> None:
        """Note how far the sender is."""

    def end(self, message: wire.RunEnd) -> None:
        """Note the sender's last word; every frame that it still had has been handed on."""

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
        self.received = SeqSet()
        self.window_bytes = window_bytes
        self.last_word: wire.RunEnd | None = None
        self.ended = threading.Event()
        self._on_frame = on_frame

    def frame(self, frame: Frame, taken: Callable[[], None]) -> None:
        """Hand the frame to the function."""
        self._on_frame(frame)
        taken()

    def duplicate(self) -> None:
        """Do nothing."""

    def progress(self, message: wire.RunProgress) -> None:
        """Do nothing."""

    def end(self, message: wire.RunEnd) -> None:
        """Keep the sender's last word."""
        self.last_word = message
        self.ended.set()

    def silent(self, reason: str) -> None:
        """Wait for nobody any more."""
        self.ended.set()


def frame_bytes(header: RunHeader) -> int:
    """Return the size of one frame's pixels."""
    return math.prod(header.shape[1:]) * np.dtype(header.dtype).itemsize


class RunState(StrEnum):
    """Where a run stands."""

    OPEN = "open"
    ENDED = "ended"  # the sender said so
    SILENT = "silent"  # the sender said nothing for too long; it may come back
    CLOSED = "closed"  # the daemon wanted so


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
    peer : bytes
        Who asked for it: the socket's name for its sender.
    now_s : float
        `time.monotonic()`.
    """

    def __init__(self, header: RunHeader, sink: RunSink, peer: bytes, now_s: float) -> None:
        self.header = header
        self._sink: RunSink | None = sink
        self.received = sink.received
        self.peer = peer
        self.heard_s = now_s
        self.state = RunState.OPEN
        self.reason = ""
        self.end: wire.RunEnd | None = None
        self.told: wire.Tell | None = None
        self.asks_for_more = False
        height, width = header.shape[1:]
        self._shape = (height, width)
        self._dtype = np.dtype(header.dtype).newbyteorder("<")
        most = MAX_PENDING * frame_bytes(header)
        self.window_bytes = max(frame_bytes(header), min(sink.window_bytes, most))
        self._former: deque[bytes] = deque(maxlen=_FORMER_PEERS)
        self._pending: dict[int, int] = {}  # seq to bytes, in the order in which they came
        self._pending_bytes = 0
        self._to_confirm: deque[int] = deque()
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

    def heard(self, peer: bytes, now_s: float) -> bool:
        """Note that `peer` spoke for this run; False where another has taken over from it.

        A sender whose line broke comes back under another name, so a name that is not known takes over.
        """
        self.heard_s = now_s
        if peer != self.peer:
            if peer in self._former:
                return False
            self._hand_over(peer)
        return True

    def asked(self, peer: bytes, now_s: float) -> None:
        """Note that `peer` sent `start`: whoever says so last is the run's sender."""
        self.heard_s = now_s
        if peer in self._former:
            self._former.remove(peer)
        if peer != self.peer:
            self._hand_over(peer)

    def _hand_over(self, peer: bytes) -> None:
        self._former.append(self.peer)
        self.peer = peer

    def has(self, seq: int) -> bool:
        """Whether a frame need not be taken (again); one that a closed run had pending may be gone."""
        return seq in self.received and (self.state is RunState.OPEN or seq not in self._pending)

    def repeat(self, seq: int) -> None:
        """Discard a frame that came once more, and confirm it (again) as soon as it is safe."""
        self._duplicates += 1
        # One that is pending is confirmed anyway. The bound is for a peer that repeats itself for ever.
        if seq not in self._pending and len(self._to_confirm) < 2 * MAX_PENDING:
            self._to_confirm.append(seq)
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
        self._to_confirm.append(seq)
        if self._sink is not None:
            self._sink.frame(frame, partial(when_taken, seq))

    def taken(self, seq: int) -> None:
        """Note that a frame is safe."""
        self._pending_bytes -= self._pending.pop(seq, 0)

    def confirmed(self) -> Iterator[tuple[int, ...]]:
        """Yield the numbers that may be confirmed now, in the order of arrival, at most `BATCH` at a time."""
        while self._to_confirm and self._to_confirm[0] not in self._pending:
            batch: list[int] = []
            while self._to_confirm and len(batch) < BATCH and self._to_confirm[0] not in self._pending:
                batch.append(self._to_confirm.popleft())
            yield tuple(batch)

    def opening(self, attempt: int, server: str) -> wire.Ack:
        """Return the answer to `start`: how much may be on its way, and what need not be sent again."""
        held = list(self._pending)[: wire.MAX_HELD] if self.state is RunState.OPEN else ()
        return wire.Ack(
            run=self.header.run_id,
            attempt=attempt,
            window_bytes=self.window_bytes,
            held=tuple(held),
            server=server,
        )

    def progressed(self, message: wire.RunProgress) -> None:
        """Note how far the sender is."""
        self._announced, self._dropped = message.announced, message.dropped
        if self._sink is not None:
            self._sink.progress(message)

    def reopen(self, sink: RunSink, peer: bytes, now_s: float) -> None:
        """Go on with the run after it was closed, with a sink that knows what this one has pending."""
        self._sink = sink
        self.state, self.reason, self.asks_for_more = RunState.OPEN, "", False
        self.asked(peer, now_s)

    def finish(self, message: wire.RunEnd) -> None:
        """Close the run in good order."""
        sink = self._sink
        self.close(RunState.ENDED, f"the run is over ({message.reason}).")
        self.end = message
        self._announced, self._dropped = message.announced, message.dropped
        if sink is not None:
            sink.end(message)

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
