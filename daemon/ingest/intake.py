"""The senders of one run, and the receipts of their frames: what ingest keeps besides the run itself.

A frame is *handed on* (the run has it) and *unacknowledged* until its receipt is complete. Frames are
acknowledged in the order in which they came, whatever order they were recorded in, because a sender concludes
from the order of the answers what the connection has lost.

A run may have several senders, mostly one after the other (a driver that was killed, the one that goes on
with its run, the delivery of a journal). They are told apart by where their numbers begin. Each belongs to
the connection whose `start` proved that it may: nothing is taken from another one, and no other is answered.
A broken connection comes back under another name and says `start` again.

No thread and no socket: everything is called on the ingest thread, times are handed in. Memory is bounded by
the window (bytes), `MAX_PENDING` (frames), `MAX_RANGES` (gaps between the numbers) and `MAX_SENDERS`.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from microdiffusion import wire
from microdiffusion.daemon.ingest.sink import RunSink, RunState
from microdiffusion.daemon.receipt import Receipt, content_of
from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader

MAX_PENDING = 16_384
"""Unacknowledged frames of one run, whatever their size."""
MAX_RANGES = 1 << 20
"""Ranges of consecutive frame numbers in one run: 16 MB."""
BATCH = 1024
"""Frame numbers in one answer."""
MAX_SENDERS = 16
"""Senders of one run that are remembered; of more, the one that was silent for longest is forgotten."""
_FORMER_ORIGINS = 16


class Origin(NamedTuple):
    """The connection that a message came by: the socket's name for it, and the key that it proved."""

    peer: bytes
    key: str = ""


def owner_of(secret: str, key: str = "") -> str:
    """Return what a run remembers of its sender: of its secret, or else of its key; empty: it has neither."""
    known = f"secret {secret}" if secret else f"key {key}" if key else ""
    return hashlib.sha256(known.encode()).hexdigest() if known else ""


def admits(owners: Collection[str], owner: str) -> bool:
    """Return whether a run takes such a sender."""
    return not owners or owner in owners


def frame_bytes(header: RunHeader) -> int:
    """Return the size of one frame's pixels."""
    return math.prod(header.shape[1:]) * np.dtype(header.dtype).itemsize


@dataclass(slots=True)
class SenderState:
    """One sender of a run, whatever its socket is called at the moment.

    Attributes
    ----------
    origin : Origin
        Its connection.
    heard_s : float
        `time.monotonic()` of its last message.
    end : RunEnd or None
        Its last word.
    """

    origin: Origin
    heard_s: float
    end: wire.RunEnd | None = None
    _former: deque[Origin] = field(default_factory=lambda: deque(maxlen=_FORMER_ORIGINS))

    def knows(self, origin: Origin) -> bool:
        """Return whether this is, or was, the sender's connection: what is still on its way counts."""
        return origin == self.origin or origin in self._former

    def heard(self, origin: Origin, now_s: float) -> bool:
        """Note that `origin` spoke; False where another connection has taken over from it."""
        if origin != self.origin:
            return False
        self.heard_s = now_s
        return True

    def asked(self, origin: Origin, now_s: float) -> None:
        """Note that `origin` sent `start`: whoever says so last is the sender."""
        self.heard_s = now_s
        if origin != self.origin:
            if origin in self._former:
                self._former.remove(origin)
            self._former.append(self.origin)
            self.origin = origin


@dataclass(frozen=True, slots=True)
class RunStats:
    """Counts of what came in for one run since it was opened here.

    Attributes
    ----------
    frames, duplicates : int
        Frames that were handed on; that came once more and were discarded.
    refused : mapping of str to int
        Dropped messages of this run's senders by `wire.Reason`.
    strangers : int
        Refused messages about this run of connections that are not its senders'.
    pending_bytes, window_bytes : int
        Size of the unacknowledged frames, and the most that it may be.
    """

    frames: int = 0
    duplicates: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    strangers: int = 0
    pending_bytes: int = 0
    window_bytes: int = 0


class RunIntake:
    """The senders and receipts of one run.

    Parameters
    ----------
    run : RunSink
    wake : callable
        Called on any thread when a receipt has become complete: has `acknowledged` asked on this one.
    """

    def __init__(self, run: RunSink, wake: Callable[[], object]) -> None:
        self.run = run
        self.senders: dict[int, SenderState] = {}  # by where their numbers begin
        self.told: wire.Tell | None = None
        self.asks_for_more = False
        self.refused: Counter[str] = Counter()
        self.strangers = 0
        self.warned = False  # of a sender that is none of the run's
        self._wake = wake
        height, width = run.header.shape[1:]
        self._shape = (height, width)
        self._dtype = np.dtype(run.header.dtype).newbyteorder("<")
        most = MAX_PENDING * frame_bytes(run.header)
        self.window_bytes = max(frame_bytes(run.header), min(run.window_bytes, most))
        self._firsts: list[int] = []  # where the senders' numbers begin, ascending
        self._receipts: dict[int, Receipt] = {}  # by number, in the order in which the frames came
        self._pending_bytes = 0
        self._frames = self._duplicates = 0

    @property
    def is_open(self) -> bool:
        """True while the run takes frames."""
        return self.run.state is RunState.OPEN

    @property
    def stats(self) -> RunStats:
        """The counters of this moment; may be asked from any thread."""
        return RunStats(
            frames=self._frames,
            duplicates=self._duplicates,
            refused=MappingProxyType(dict(self.refused)),
            strangers=self.strangers,
            pending_bytes=self._pending_bytes,
            window_bytes=self.window_bytes,
        )

    @property
    def heard_s(self) -> float:
        """`time.monotonic()` of the last message of any of its senders."""
        return max(sender.heard_s for sender in self.senders.values())

    def sender_of(self, seq: int) -> SenderState:
        """Return the sender whose frame this is."""
        return self.senders[self._firsts[max(0, bisect_right(self._firsts, seq) - 1)]]

    def knows(self, origin: Origin) -> bool:
        """Return whether this is the connection of any of the run's senders."""
        return any(sender.knows(origin) for sender in self.senders.values())

    def started(self, first_seq: int, origin: Origin, now_s: float) -> None:
        """Note that `origin` sent `start`."""
        sender = self.senders.get(first_seq)
        if sender is None:
            if len(self.senders) >= MAX_SENDERS:
                del self.senders[min(self.senders, key=lambda first: self.senders[first].heard_s)]
            sender = self.senders[first_seq] = SenderState(origin, now_s)
            self._firsts = sorted(self.senders)
        sender.asked(origin, now_s)
        if self.is_open:
            sender.end = None
            self.run.started(first_seq)

    def has(self, seq: int) -> bool:
        """Return whether a frame need not be taken (again); of a closed run, only what it recorded."""
        if seq not in self.run.received:
            return False
        receipt = self._receipts.get(seq)
        return self.is_open or receipt is None or receipt.complete

    def repeat(self, frame: Frame) -> str | None:
        """Have a frame whose number came before acknowledged (again); return why not, None: nobody knows.

        It is compared with the one that is there: the same number with another content is no duplicate.
        """
        seq = frame.info.seq
        receipt = self._receipts.get(seq)
        if receipt is not None and receipt.content != content_of(frame):
            text = f"frame {seq} came before with another place or other pixels: a number is never reused."
            self.run.alarm(text)
            return text
        # One that is unacknowledged will be anyway. The bound is for a peer that repeats itself for ever.
        if receipt is not None or len(self._receipts) >= 2 * MAX_PENDING:
            self._duplicates += 1
            return ""
        receipt = self._receipts[seq] = Receipt(seq, 0, self._wake, content_of(frame))
        if self.run.repeated(frame, receipt):
            return ""
        del self._receipts[seq]
        return None

    def objection(self, frame: Frame) -> tuple[wire.Reason, str] | None:
        """Return why a frame cannot be taken (now), None where it can."""
        info, pixels = frame.info, frame.pixels
        header, received, seq = self.run.header, self.run.received, info.seq
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
        if received.ranges >= MAX_RANGES and seq != received.highest + 1:
            return wire.Reason.FRAME, f"The frame numbers of this run have more than {MAX_RANGES} gaps."
        if self._receipts and (
            self._pending_bytes + pixels.nbytes > self.window_bytes or len(self._receipts) >= MAX_PENDING
        ):
            return wire.Reason.WINDOW, (
                f"{self._pending_bytes / 1e6:.1f} MB of this run are not on the disk yet, and "
                f"{self.window_bytes / 1e6:.1f} MB is the most: send frame {seq} again later."
            )
        return None

    def admit(self, frame: Frame) -> Receipt:
        """Count a frame as received and return its receipt."""
        seq, nbytes = frame.info.seq, frame.pixels.nbytes
        self._frames += 1
        self.run.received.add(seq)
        self._pending_bytes += nbytes
        receipt = self._receipts[seq] = Receipt(seq, nbytes, self._wake, content_of(frame))
        return receipt

    def answers(self) -> Iterator[tuple[Origin, wire.Ack | wire.Refuse]]:
        """Collect complete receipts; yield the answers to their senders, in order of arrival."""
        if not self._receipts:
            return
        run_id = self.run.header.run_id
        complete = list(takewhile(lambda receipt: receipt.complete, self._receipts.values()))
        seqs: dict[Origin, list[int]] = {}
        for receipt in complete:
            seq, origin = receipt.seq, self.sender_of(receipt.seq).origin
            del self._receipts[seq]
            self._pending_bytes -= receipt.nbytes
            if receipt.refusal:
                self.run.alarm(receipt.refusal)
                yield origin, wire.Refuse(run=run_id, seq=seq, reason=wire.Reason.FRAME, text=receipt.refusal)
                continue
            self._duplicates += not receipt.nbytes
            seqs.setdefault(origin, []).append(seq)
        for origin, each in seqs.items():
            for start in range(0, len(each), BATCH):
                yield origin, wire.Ack(run=run_id, received=tuple(each[start : start + BATCH]))

    def opening(self, first_seq: int, attempt: int, server: str) -> wire.Ack:
        """Return the answer to `start`: how much may be on its way, and what need not be sent again."""
        after = self._firsts[bisect_right(self._firsts, first_seq) :]
        stop = after[0] if after else math.inf
        # Complete ones too: until they are acknowledged, this answer would declare them lost.
        held = (seq for seq in self._receipts if first_seq <= seq < stop)
        return wire.Ack(
            run=self.run.header.run_id,
            attempt=attempt,
            window_bytes=self.window_bytes,
            held=tuple(islice(held, wire.MAX_HELD)) if self.is_open else (),
            server=server,
        )

    def ended(self, message: wire.RunEnd) -> None:
        """Take a sender's last word."""
        self.senders[message.first_seq].end = message
        self.run.end(message)
