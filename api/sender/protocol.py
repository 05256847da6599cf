"""The sender's side of the protocol: its messages to the daemon, and its reactions to the answers.

    opening --ack of start--> open --ack of end--> ended
       ^------- an answer is overdue, the line broke, or the daemon does not know the run

In *opening* nothing but `start` goes out, so the answer to it proves that everything sent before has been
read or is gone; what is unanswered, and not held by the daemon, is then sent again. Where nothing at
all comes back for some seconds, a new connection is tried.

No thread: everything is called on the sender's; the attributes may be read from any.
"""

from __future__ import annotations

import time
from typing import Literal

from microdiffusion import wire
from microdiffusion.errors import AcquisitionError, AddressError, WireError
from microdiffusion.header import MOST_SESSIONS, RunHeader
from microdiffusion.sender.buffer import SendBuffer
from microdiffusion.sender.buffered import BufferedFrame
from microdiffusion.sender.connection import Connection
from microdiffusion.sender.faults import Fault, FaultSource
from microdiffusion.wire import SweepFeedback

WINDOW_BYTES = 32 << 20
"""Limit for what is sent and unanswered, until the daemon sets one."""
OVERDUE_S = 1.0
"""Timeout for an answer, after which the sender asks again."""
PROGRESS_S = 1.0
"""Interval between reports of the run's progress."""
RENEW_S = (3.0, 10.0)
"""Time without any message after which a new connection is opened: at first, and at most."""
NO_ROOM_S = 0.2
"""Delay before a frame is sent again that the daemon had no room for."""
MAX_TRANSMISSIONS = 5
"""A frame whose checksum is refused this often was damaged before it was sent."""
OVERTAKEN_S = 0.5
"""Longest wait of a frame that is to be overtaken by another one."""
_SHORT_S = 0.01


class SenderProtocol:
    """One run's exchange of messages with the daemon.

    Parameters
    ----------
    connection : Connection
    buffer : SendBuffer
    header, first_seq, secret
        The run, where the sender's numbers begin, and what proves that the run is its own.
    faults : FaultSource or None
        Deliberate faults.

    Attributes
    ----------
    open, was_open, ended : bool
        The daemon answers; it has, at some time; it has acknowledged the end of the run, or refused it.
    finishing : str or None
        The reason why the run ends; None while more frames may come.
    wanted, wanted_text, feedback, server
        As of `Sender`.
    up_s : float
        `time.monotonic()` when the daemon was last known to be there.
    sent, resent : int
        Frames that went out at least once; transmissions beyond each frame's first.
    """

    def __init__(
        self,
        connection: Connection,
        buffer: SendBuffer,
        header: RunHeader,
        first_seq: int,
        secret: str,
        faults: FaultSource | None,
    ) -> None:
        self.open = self.was_open = self.ended = False
        self.finishing: str | None = None
        self.wanted: Literal["go", "pause", "stop"] = "go"
        self.wanted_text = ""
        self.feedback: dict[tuple[int, int], SweepFeedback] = {}
        self.server = ""
        self.up_s = time.monotonic()
        self.sent = self.resent = 0
        self._connection = connection
        self._buffer = buffer
        self._header = header
        self._first_seq = first_seq
        self._secret = secret
        self._faults = faults
        self._quiet_until_s = self._no_room_until_s = 0.0
        self._attempt = 0
        self._asked_s = self._reported_s = -float("inf")
        self._heard_s = self.up_s
        self._answered_s = 0.0
        self._renew_s = RENEW_S[0]
        self._window_bytes = WINDOW_BYTES
        self._end_sent_s: float | None = None

    def step(self) -> bool:
        """Send what can be sent now; True where the connection, being open, takes no more at the moment.

        Raises
        ------
        AddressError
            The daemon has never been reached, and will not be with these keys.
        WireError
            A frame cannot be sent as it is.
        """
        now = time.monotonic()
        if self._connection.broke() and self.open:
            self._reopen()
        if self._connection.refusal and not self.was_open:
            raise AddressError(self._connection.refusal)
        if self.open:
            self.up_s = now
        if self._is_quiet():
            self._heard_s = now
            return False
        if self.open and self._is_overdue(now):
            self._reopen()
        if not self.open:
            self._ask(now)
            return False
        if now - self._reported_s >= PROGRESS_S:
            self._report(now)
        while now >= self._no_room_until_s:
            entry = self._buffer.next_to_send(self._window_bytes)
            if entry is None:
                break
            if not self._transmit(entry):
                return self.open and not self._is_quiet()
        if self.finishing is not None and self._end_sent_s is None and self._buffer.is_empty():
            self.send_end(self.finishing)
        return False

    def is_down(self) -> bool:
        """Return whether the daemon has not been there for a while."""
        return time.monotonic() - self.up_s > OVERDUE_S

    def _ask(self, now: float) -> None:
        """Send `start`, and now and then try a new connection, until it is answered."""
        self._connection.open()
        if now - self._heard_s > self._renew_s:
            self._renew_s = min(2 * self._renew_s, RENEW_S[1])
            self._heard_s = now
            self._asked_s = -float("inf")
            self._connection.renew()
        if now - self._asked_s > OVERDUE_S:
            start = wire.RunStart(
                header=self._header,
                first_seq=self._first_seq,
                attempt=self._attempt,
                secret=self._secret,
            )
            if self._connection.send(wire.encode(start)):
                self._asked_s = now

    def _is_quiet(self) -> bool:
        """Return whether a deliberate fault keeps the sender from sending."""
        return time.monotonic() < self._quiet_until_s

    def _is_overdue(self, now: float) -> bool:
        oldest = self._buffer.oldest_sent_s()
        if oldest is None:
            oldest = self._end_sent_s
        return oldest is not None and now - max(oldest, self._answered_s) > OVERDUE_S

    def _reopen(self) -> None:
        self.open = False
        self._attempt += 1
        self._asked_s = -float("inf")

    def _transmit(self, entry: BufferedFrame) -> bool:
        """Pass one frame to the connection, faults included; False where it does not go out now."""
        fault = Fault.NONE if self._faults is None else self._draw(entry, self._faults)
        if self._is_quiet():
            return False
        if fault is Fault.DROP:
            self._buffer.lose()
            return True
        if fault is Fault.REORDER:
            return self._let_overtake(entry)
        parts = entry.encoded(self._header.run_id)
        if self._faults is not None and fault is Fault.CORRUPT:
            parts = self._faults.damage(parts)
        if not self._connection.send(parts):
            return False
        if fault is Fault.DUPLICATE:
            self._connection.send(parts)
        if entry.transmissions:
            self.resent += 1
        else:
            self.sent += 1
        self._buffer.mark_sent()
        return True

    def _draw(self, entry: BufferedFrame, faults: FaultSource) -> Fault:
        """Return the fault of this transmission; begin a stall or a cut where it is due."""
        if entry.fault is None:
            entry.fault = faults.draw()
            cut_s = faults.cut_s()
            self._quiet_until_s = time.monotonic() + max(faults.stall_s(), cut_s)
            if cut_s > 0:
                self._connection.drop()
                self._reopen()
        return Fault.NONE if entry.transmissions else entry.fault

    def _let_overtake(self, entry: BufferedFrame) -> bool:
        """Let a frame be overtaken by the next one; False while that has to come first."""
        now = time.monotonic()
        entry.sent_s = entry.sent_s or now
        is_last = self.finishing is not None or now - entry.sent_s > OVERTAKEN_S
        if self._buffer.overtake() or is_last:
            entry.fault = Fault.NONE
            return True
        self._quiet_until_s = now + _SHORT_S
        return False

    def _report(self, now: float) -> None:
        stats = self._buffer.stats()
        progress = wire.RunProgress(
            run=self._header.run_id,
            first_seq=self._first_seq,
            announced=stats.put + stats.dropped,
            dropped=stats.dropped,
            # What is in memory as well is not what fills the disk.
            journal_bytes=max(0, stats.buffered_bytes - stats.memory_bytes) if stats.journaled else 0,
        )
        if self._connection.send(wire.encode(progress)):
            self._reported_s = now

    def send_end(self, reason: str) -> None:
        """Say that the run is over, and what became of its frames."""
        stats = self._buffer.stats()
        end = wire.RunEnd(
            run=self._header.run_id,
            first_seq=self._first_seq,
            announced=stats.put + stats.dropped,
            dropped=stats.dropped + self._buffer.unsaved(),
            unsent=stats.journaled,
            damaged=stats.refused + stats.damaged,
            reason=reason.encode(errors="replace").decode()[:2000],
        )
        if self._connection.send(wire.encode(end)):
            self._end_sent_s = time.monotonic()

    def receive_answers(self) -> None:
        """Take the answers that have come.

        Raises
        ------
        AcquisitionError
            The daemon refuses the run.
        """
        while (parts := self._connection.receive()) is not None:
            self._heard_s = time.monotonic()
            try:
                message = wire.decode(parts)
            except WireError:
                continue  # nothing of ours: the frame that it may have meant will be overdue
            if isinstance(message, wire.Ack) and message.run == self._header.run_id:
                self._on_ack(message)
            elif isinstance(message, wire.Refuse) and message.run in (self._header.run_id, None):
                self._on_refusal(message)
            elif isinstance(message, wire.Tell) and message.run == self._header.run_id:
                self.wanted, self.wanted_text = message.what, message.text
            elif isinstance(message, wire.Feedback) and message.run == self._header.run_id:
                told = message.feedback
                if (told.channel, told.position) in self.feedback or len(self.feedback) < MOST_SESSIONS:
                    self.feedback[told.channel, told.position] = told

    def _on_ack(self, ack: wire.Ack) -> None:
        if ack.received:
            self._answered_s = time.monotonic()
            self._no_room_until_s = 0.0
            self._buffer.acknowledge(ack.received)
        if ack.attempt == self._attempt and not self.open:
            self.open = self.was_open = True
            self._end_sent_s = None
            self._renew_s = RENEW_S[0]
            self.server = ack.server
            if ack.window_bytes is not None:
                self._window_bytes = ack.window_bytes
            self._buffer.resend_all(frozenset(ack.held))
        self.ended = self.ended or ack.ended

    def _on_refusal(self, refusal: wire.Refuse) -> None:
        if refusal.reason == wire.Reason.UNKNOWN_RUN:
            if self.open:  # a daemon that has restarted
                self._reopen()
        elif refusal.seq is None:
            self.ended = True
            raise AcquisitionError(
                f"The daemon at {self._connection.address} refused the run: {refusal.text}"
            )
        elif refusal.reason == wire.Reason.WINDOW:
            self._no_room_until_s = time.monotonic() + NO_ROOM_S
            self._buffer.refuse(refusal.seq, attempts=None)
        else:
            damaged = refusal.reason in (wire.Reason.CHECKSUM, wire.Reason.SIZE)
            self._buffer.refuse(refusal.seq, attempts=MAX_TRANSMISSIONS if damaged else 0)
