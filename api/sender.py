"""The driver's end of the wire: takes frames without ever blocking, and gets them to the daemon.

`Sender` owns two daemon threads: its own, which owns the `Line` to the daemon, and that of the `Spill`, where
there is a journal. `put` may be called from a camera callback: it copies the pixels into a `SendBuffer` and
returns; it never touches the disk. The sender's thread moves through three states:

    opening --ack of start--> open --ack of end, or time is up--> closed
       ^------- an answer is overdue, the line broke, or the daemon does not know the run

In *opening* nothing but `start` goes out, so the answer to it proves that everything sent before has been
read or is gone; what is unanswered, and not held by the daemon, is then sent again. Where nothing at
all comes back for some seconds, a fresh connection is tried. Thus a daemon that is absent at the start, that
restarts or stands still, or a line that breaks costs no frame while there is room in memory and journal.
The receiver discards what it gets twice. Where both are full, `put` drops and counts, and `end` announces it.
What is left at the end stays in the journal for `deliver`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microdiffusion import wire
from microdiffusion.errors import AcquisitionError, AddressError, ConfigError, MddError, WireError
from microdiffusion.faults import Fault, Faults, FaultSource
from microdiffusion.journal import Journal
from microdiffusion.keys import ClientKeys
from microdiffusion.line import Line
from microdiffusion.run_header import RunHeader
from microdiffusion.send_buffer import BufferStats, Entry, SendBuffer
from microdiffusion.spill import Spill
from microdiffusion.sweep import Frame, FrameInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_BYTES = 32 << 20
"""Most that is on its way unanswered, where the daemon does not say."""
OVERDUE_S = 1.0
"""After this long without an answer the sender asks again."""
PROGRESS_S = 1.0
"""How often the daemon is told how far the run is."""
RENEW_S = (3.0, 10.0)
"""After this long without a word there is a fresh connection: at first, and at most."""
NO_ROOM_S = 0.2
"""After this long a frame is offered again that the daemon had no room for."""
SAVE_S = 10.0
"""Most that the end of a sender takes to write what is left to the journal."""
TICK_S = 0.05
MAX_TRANSMISSIONS = 5
"""A frame whose checksum is refused this often is damaged before it is sent."""


@dataclass(frozen=True, slots=True)
class SenderStats(BufferStats):
    """What became of the frames that were offered, at one moment; see `BufferStats` for the other fields.

    Attributes
    ----------
    sent, resent : int
        Frames that went out at least once; transmissions beyond each frame's first.
    unsent : int
        Of the waiting, once the sender has ended: those that the journal keeps for later.
    connected, ended : bool
        The daemon answers; it has confirmed the end of the run.
    """

    sent: int
    resent: int
    unsent: int
    connected: bool
    ended: bool


class Sender:
    """Sends one run to the daemon.

    Parameters
    ----------
    address : str
        Where the daemon listens, such as ``tcp://127.0.0.1:5750``.
    header : RunHeader
        Describes the run; each frame must fit it.
    buffer_bytes : int
        Most that the pixels of unanswered frames may take in memory.
    faults : Faults or None
        What goes wrong on purpose.
    journal : Path or None
        Folder where frames go that do not fit into memory; None: they are dropped.
    journal_bytes : int
        Most that journals may take there; 0 is as no folder.
    security : ClientKeys or None
        None only where the address is on loopback.
    first_seq : int
        The lowest number of its frames; tells the senders of one run apart.

    Attributes
    ----------
    wanted : "go", "pause" or "stop"
        What the daemon last told; `wanted_text` says why.
    server : str
        The daemon's version of mdd; empty until it has answered.

    Raises
    ------
    ConfigError
        The buffer does not even hold one frame.
    WireError
        The header is too large to be sent.
    """

    def __init__(
        self,
        address: str,
        header: RunHeader,
        *,
        buffer_bytes: int,
        faults: Faults | None = None,
        journal: Path | None = None,
        journal_bytes: int = 0,
        security: ClientKeys | None = None,
        first_seq: int = 0,
    ) -> None:
        self.wanted: Literal["go", "pause", "stop"] = "go"
        self.wanted_text = ""
        self.server = ""
        self._address = address
        self._header = header
        self._shape = header.shape[1:]
        self._dtype = np.dtype(header.dtype)
        frame_bytes = self._shape[0] * self._shape[1] * self._dtype.itemsize
        if buffer_bytes < frame_bytes:
            raise ConfigError(
                f"The send buffer of {buffer_bytes} bytes does not hold one frame of {frame_bytes}: "
                f"set wire.send_buffer_mb to {max(1, 8 * frame_bytes // 1_000_000)} or more."
            )
        wire.encode(wire.RunStart(header=header))  # too large: say so now, in the caller's thread
        self._first_seq = first_seq
        self._buffer_bytes = buffer_bytes
        spills = journal is not None and journal_bytes > 0
        self._buffer = SendBuffer(buffer_bytes, journal=spills, first_seq=first_seq)
        self._faults = FaultSource(faults) if faults is not None else None
        self._line = Line(address, security)
        self._spill: Spill | None = None
        if journal is not None and journal_bytes > 0:
            self._spill = self._make_spill(journal, journal_bytes)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mdd-sender", daemon=True)
        self._failure: MddError | None = None
        self._finishing: str | None = None
        self._deadline_s = float("inf")
        self._quiet_until_s = self._no_room_until_s = 0.0
        self._attempt = 0
        self._asked_s = self._told_s = -float("inf")
        self._answered_s = self._heard_s = self._up_s = 0.0
        self._renew_s = RENEW_S[0]
        self._window_bytes = WINDOW_BYTES
        self._open = self._was_open = False
        self._end_sent_s: float | None = None
        self._ended = False
        self._turned_away = False
        self._sent = self._resent = self._unsent = 0

    @classmethod
    def of_journal(
        cls, address: str, journal: Journal, *, buffer_bytes: int, security: ClientKeys | None = None
    ) -> Sender:
        """Return a sender, not started, of what a left-over journal holds; from then on it is its own."""
        header = journal.header
        sender = cls(
            address, header, buffer_bytes=buffer_bytes, security=security, first_seq=journal.first_seq
        )
        sender._buffer = SendBuffer(buffer_bytes, journal=True)
        sender._buffer.adopt(journal.records, announced=journal.announced, dropped=journal.dropped)
        sender._spill = sender._make_spill(journal.path.parent, 0, journal)
        return sender

    def _make_spill(self, folder: Path, limit_bytes: int, journal: Journal | None = None) -> Spill:
        return Spill(
            self._buffer,
            folder=folder,
            header=self._header,
            first_seq=self._first_seq,
            limit_bytes=limit_bytes,
            on_fetched=self._wake,
            on_failure=self._fail,
            journal=journal,
        )

    def start(self) -> None:
        """Connect and start the thread. The daemon need not be there yet.

        Raises
        ------
        AddressError, ConfigError
            The address is malformed, or on another machine and there are no keys.
        """
        try:
            self._line.open()
        except MddError:
            self._release()
            raise
        self._heard_s = self._up_s = time.monotonic()
        if self._spill is not None:
            self._spill.start()
        self._thread.start()

    def put(self, info: FrameInfo, pixels: NDArray[Any]) -> bool:
        """Copy a frame (Y, X) into the buffer; never blocks, never raises.

        Returns False where it was not taken: counted as dropped. A frame that does not fit the run's
        header is a mistake of the driver and ends the run; `raise_if_failed` tells.
        """
        try:
            if pixels.shape != self._shape or pixels.dtype.newbyteorder("=") != self._dtype:
                raise WireError(
                    f"The run's frames are {self._shape} {self._dtype}, frame {info.seq} is "
                    f"{pixels.shape} {pixels.dtype}: mend the driver or the run's header."
                )
            taken = self._buffer.put(Frame(info, pixels))
        except Exception as error:  # a camera callback that raises would hang the acquisition
            self._buffer.count_dropped()
            self._fail(error)
            return False
        if taken:
            self._wake()
        return taken

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until `put` would take a frame; False after `timeout_s`, or where it never will again.

        For sources that can wait (a file); a camera cannot.
        """
        height, width = self._shape
        return self._buffer.wait_for_room(height * width * self._dtype.itemsize, timeout_s)

    def finish(self, *, reason: str = "finished", timeout_s: float = 10.0) -> SenderStats:
        """Take no more frames, deliver those that are left, say `end`, and close.

        Returns after `timeout_s` (and at most one second more, or what it takes to write the rest to the
        journal, `SAVE_S` at most) even if the daemon does not answer; `SenderStats.ended` says whether it
        did. Does not raise; harmless when called again.
        """
        self._deadline_s = time.monotonic() + timeout_s
        if self._finishing is None:
            self._finishing = _sendable(reason)
        self._buffer.close()
        self._wake()
        if self._thread.ident is None:
            self._release()
        else:
            self._thread.join()
        return self.stats

    @property
    def stats(self) -> SenderStats:
        """The counters of this moment."""
        return SenderStats(
            **asdict(self._buffer.stats()),
            sent=self._sent,
            resent=self._resent,
            unsent=self._unsent,
            connected=self._open,
            ended=self._ended,
        )

    def raise_if_failed(self) -> None:
        """Raise what ended the run early: the daemon's refusal, or a mistake of the driver."""
        if self._failure is not None:
            raise self._failure

    @property
    def trouble(self) -> str:
        """What stands in the way of the frames at the moment, one sentence; empty: nothing that is known."""
        return self._line.refusal or self._line.trouble or (self._spill.trouble if self._spill else "")

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            if not isinstance(error, MddError):
                wrapped = AcquisitionError(f"The sender broke off: {type(error).__name__}: {error}")
                wrapped.__cause__ = error
                error = wrapped
            self._failure = error
        self._buffer.close()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: the thread is awake already; closed: it is gone
            self._wake_in.send(b"\0")

    def _release(self) -> None:
        self._buffer.close()
        self._line.close()
        if self._spill is not None:
            self._spill.stop()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._fail(error)
        try:
            if self._spill is not None and not self._buffer.is_empty():
                self._spill.save_all(SAVE_S)
            stats = self._buffer.stats()
            self._unsent = stats.journaled
            if not self._ended and not self._turned_away:
                self._say_end()
        finally:
            self._open = False
            self._release()

    def _serve(self) -> None:
        line = self._line
        while not self._is_done():
            if line.broke() and self._open:
                self._reopen()
            if line.refusal and not self._was_open:
                raise AddressError(line.refusal)
            blocked = self._step()
            line.wait(self._wake_out, TICK_S, to_send=blocked)
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
            while self._failure is None and (parts := line.receive()) is not None:
                self._heard_s = time.monotonic()
                self._on_answer(parts)

    def _is_done(self) -> bool:
        return self._ended or self._failure is not None or time.monotonic() > self._deadline_s

    def _step(self) -> bool:
        """Send what can be sent now; True where the connection, being open, takes no more at the moment."""
        now = time.monotonic()
        if self._open:
            self._up_s = now
        if self._spill is not None:
            self._spill.line_down = now - self._up_s > OVERDUE_S
        if self._is_quiet() or self._line.is_cut():
            self._heard_s = now
            return False
        if self._open and self._is_overdue(now):
            self._reopen()
        if not self._open:
            self._ask(now)
            return False
        if now - self._told_s >= PROGRESS_S:
            self._say_progress(now)
        while now >= self._no_room_until_s:
            entry = self._buffer.next_to_send(self._window_bytes)
            if entry is None:
                break
            if not self._transmit(entry):
                return self._open and not self._is_quiet()
        if self._finishing is not None and self._end_sent_s is None and self._buffer.is_empty():
            self._say_end()
        return False

    def _ask(self, now: float) -> None:
        """Say `start`, and now and then try a fresh connection, until it is answered."""
        if now - self._heard_s > self._renew_s:
            self._renew_s = min(2 * self._renew_s, RENEW_S[1])
            self._heard_s = now
            self._asked_s = -float("inf")
            self._line.renew()
        if now - self._asked_s > OVERDUE_S:
            start = wire.RunStart(header=self._header, first_seq=self._first_seq, attempt=self._attempt)
            if self._line.send(wire.encode(start)):
                self._asked_s = now

    def _is_quiet(self) -> bool:
        """Whether a deliberate stall lasts."""
        return time.monotonic() < self._quiet_until_s

    def _is_overdue(self, now: float) -> bool:
        oldest = self._buffer.oldest_sent_s()
        if oldest is None:
            oldest = self._end_sent_s
        return oldest is not None and now - max(oldest, self._answered_s) > OVERDUE_S

    def _reopen(self) -> None:
        self._open = False
        self._attempt += 1
        self._asked_s = -float("inf")

    def _transmit(self, entry: Entry) -> bool:
        """Pass one frame to the line, faults included; False where it takes nothing now."""
        if self._faults is not None and entry.fault is None:
            entry.fault = self._faults.draw()
            self._quiet_until_s = time.monotonic() + self._faults.stall_s()
            if (cut_s := self._faults.cut_s()) > 0:
                self._line.cut(cut_s)
                self._reopen()
                return False
            if self._is_quiet():
                return False
        fault = Fault.NONE if entry.fault is None or entry.transmissions else entry.fault
        if fault is Fault.DROP:
            self._buffer.lose()
            return True
        if fault is Fault.REORDER:
            entry.fault = Fault.NONE
            self._buffer.set_aside()
            return True
        parts = entry.encoded(self._header.run_id)
        if self._faults is not None and fault is Fault.CORRUPT:
            parts = self._faults.damage(parts)
        if not self._line.send(parts):
            return False
        if fault is Fault.DUPLICATE:
            self._line.send(parts)
        if entry.transmissions:
            self._resent += 1
        else:
            self._sent += 1
        self._buffer.mark_sent()
        return True

    def _say_progress(self, now: float) -> None:
        stats = self._buffer.stats()
        progress = wire.RunProgress(
            run=self._header.run_id,
            first_seq=self._first_seq,
            announced=stats.put + stats.dropped,
            dropped=stats.dropped,
        )
        if self._line.send(wire.encode(progress)):
            self._told_s = now

    def _say_end(self) -> None:
        stats = self._buffer.stats()
        reason = _sendable(str(self._failure)) if self._failure else self._finishing or "broken off"
        end = wire.RunEnd(
            run=self._header.run_id,
            first_seq=self._first_seq,
            announced=stats.put + stats.dropped,
            dropped=stats.dropped + self._buffer.unsaved(),
            unsent=stats.journaled,
            damaged=stats.refused + stats.damaged,
            reason=reason,
        )
        if self._line.send(wire.encode(end)):
            self._end_sent_s = time.monotonic()

    def _on_answer(self, parts: list[bytes]) -> None:
        try:
            message = wire.decode(parts)
        except WireError:
            return  # nothing of ours: the frame that it may have meant will be overdue
        if isinstance(message, wire.Ack) and message.run == self._header.run_id:
            self._on_ack(message)
        elif isinstance(message, wire.Refuse) and message.run in (self._header.run_id, None):
            self._on_refusal(message)
        elif isinstance(message, wire.Tell) and message.run == self._header.run_id:
            self.wanted, self.wanted_text = message.what, message.text

    def _on_ack(self, ack: wire.Ack) -> None:
        if ack.received:
            self._answered_s = time.monotonic()
            self._no_room_until_s = 0.0
            self._buffer.acknowledge(ack.received)
        if ack.attempt == self._attempt and not self._open:
            self._open = self._was_open = True
            self._end_sent_s = None
            self._renew_s = RENEW_S[0]
            self.server = ack.server
            if ack.window_bytes is not None:
                self._window_bytes = ack.window_bytes
            self._buffer.resend_all(frozenset(ack.held))
        self._ended = self._ended or ack.ended

    def _on_refusal(self, refusal: wire.Refuse) -> None:
        if refusal.reason == wire.Reason.UNKNOWN_RUN:
            if self._open:  # a daemon that has restarted
                self._reopen()
        elif refusal.seq is None:
            self._turned_away = True
            self._fail(AcquisitionError(f"The daemon at {self._address} refused the run: {refusal.text}"))
        elif refusal.reason == wire.Reason.WINDOW:
            self._no_room_until_s = time.monotonic() + NO_ROOM_S
            self._buffer.refuse(refusal.seq, attempts=None)
        else:
            damaged = refusal.reason in (wire.Reason.CHECKSUM, wire.Reason.SIZE)
            self._buffer.refuse(refusal.seq, attempts=MAX_TRANSMISSIONS if damaged else 0)


def _sendable(reason: str) -> str:
    return reason.encode(errors="replace").decode()[:2000]
