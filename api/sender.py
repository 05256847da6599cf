"""The driver's end of the wire: takes frames without ever blocking, and gets them to the daemon.

`Sender` owns one daemon thread; the thread owns the DEALER socket. `put` may be called from a camera
callback: it copies the pixels into a `SendBuffer` and returns. The thread moves through three states:

    opening --ack of start--> open --ack of end, or time is up--> closed
       ^------- an answer is overdue, or the daemon does not know the run

In *opening* nothing but `start` goes out, so the answer to it proves that everything sent before has been
read or is gone; the unanswered frames are then sent again. Thus a daemon that is absent at the start,
that restarts, or a line that breaks costs no frame while the buffer has room. The receiver discards what
it gets twice. Where the buffer is full, `put` drops and counts, and `end` announces it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from microdiffusion import wire
from microdiffusion.errors import AcquisitionError, AddressError, ConfigError, MddError, WireError
from microdiffusion.faults import Fault, Faults, FaultSource
from microdiffusion.run_header import RunHeader
from microdiffusion.send_buffer import BufferStats, Entry, SendBuffer
from microdiffusion.sweep import Frame, FrameInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_BYTES = 32 << 20
"""Most that is on its way unanswered: bounds the receiver's queue and what a broken line costs."""
OVERDUE_S = 1.0
"""After this long without an answer the sender asks again."""
TICK_S = 0.05
LINGER_MS = 1000
MAX_TRANSMISSIONS = 5
"""A frame whose checksum is refused this often is damaged before it is sent."""


@dataclass(frozen=True, slots=True)
class SenderStats(BufferStats):
    """What became of the frames that were offered, at one moment; see `BufferStats` for the other fields.

    Attributes
    ----------
    sent, resent : int
        Frames that went out at least once; transmissions beyond each frame's first.
    connected, ended : bool
        The daemon answers; it has confirmed the end of the run.
    """

    sent: int
    resent: int
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
        Most that the pixels of unanswered frames may take.
    faults : Faults or None
        What goes wrong on purpose.

    Raises
    ------
    ConfigError
        The buffer does not even hold one frame.
    WireError
        The header is too large to be sent.
    """

    def __init__(
        self, address: str, header: RunHeader, *, buffer_bytes: int, faults: Faults | None = None
    ) -> None:
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
        self._buffer = SendBuffer(buffer_bytes)
        self._faults = FaultSource(faults) if faults is not None else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mdd-sender", daemon=True)
        self._failure: MddError | None = None
        self._finishing: str | None = None
        self._deadline_s = float("inf")
        self._quiet_until_s = 0.0
        self._attempt = 0
        self._asked_s = -float("inf")
        self._open = False
        self._end_sent_s: float | None = None
        self._ended = False
        self._turned_away = False
        self._sent = self._resent = 0

    def start(self) -> None:
        """Connect and start the thread. The daemon need not be there yet.

        Raises
        ------
        AddressError
            The address is malformed.
        """
        connection = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for a daemon that is not there
        connection.setsockopt(zmq.RECONNECT_IVL, 50)
        connection.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        connection.setsockopt(zmq.LINGER, LINGER_MS)
        # A daemon's machine that goes off without a word is noticed by TCP, not by ZeroMQ's heartbeat:
        # a daemon that does not read because its disk is slow would look dead to that.
        connection.setsockopt(zmq.TCP_KEEPALIVE, 1)
        connection.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        connection.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        connection.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        try:
            # What listens on all interfaces is reached on this one; Windows does not do that by itself.
            connection.connect(self._address.replace("//0.0.0.0:", "//127.0.0.1:"))
        except zmq.ZMQError as error:
            connection.close(linger=0)
            self._release()
            raise AddressError(
                f"Cannot connect to {self._address!r} ({error.strerror}): expected an address such as "
                "tcp://127.0.0.1:5750."
            ) from error
        self._socket = connection
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

        Returns after `timeout_s` (and at most one second more) even if the daemon does not answer;
        `SenderStats.ended` says whether it did. Does not raise; harmless when called again.
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
            connected=self._open,
            ended=self._ended,
        )

    def raise_if_failed(self) -> None:
        """Raise what ended the run early: the daemon's refusal, or a mistake of the driver."""
        if self._failure is not None:
            raise self._failure

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
        self._wake_in.close()
        self._wake_out.close()
        self._context.term()

    def _run(self) -> None:
        connection = self._socket
        if connection is None:
            return
        try:
            self._serve(connection)
        except Exception as error:
            self._fail(error)
        try:
            if not self._ended and not self._turned_away:
                self._say_end(connection)
        finally:
            self._open = False
            connection.close()
            self._release()

    def _serve(self, connection: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        while not self._is_done():
            blocked = self._step(connection)
            poller.register(connection, zmq.POLLIN | (zmq.POLLOUT if blocked else 0))
            ready = dict(poller.poll(int(TICK_S * 1000)))
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            while self._failure is None and connection.poll(0):
                self._on_answer(connection.recv_multipart())

    def _is_done(self) -> bool:
        return self._ended or self._failure is not None or time.monotonic() > self._deadline_s

    def _step(self, connection: zmq.Socket[bytes]) -> bool:
        """Send what can be sent now; True where the connection, being open, takes no more at the moment."""
        if self._is_quiet():
            return False
        now = time.monotonic()
        if self._open and self._is_overdue(now):
            self._reopen()
        if not self._open:
            if now - self._asked_s > OVERDUE_S:
                start = wire.RunStart(header=self._header, attempt=self._attempt)
                if _send(connection, wire.encode(start)):
                    self._asked_s = now
            return False
        while (entry := self._buffer.next_to_send(WINDOW_BYTES)) is not None:
            if not self._transmit(connection, entry):
                return not self._is_quiet()
        if self._finishing is not None and self._end_sent_s is None and self._buffer.is_empty():
            self._say_end(connection)
        return False

    def _is_quiet(self) -> bool:
        """Whether a deliberate stall lasts."""
        return time.monotonic() < self._quiet_until_s

    def _is_overdue(self, now: float) -> bool:
        oldest = self._buffer.oldest_sent_s()
        if oldest is None:
            oldest = self._end_sent_s
        return oldest is not None and now - oldest > OVERDUE_S

    def _reopen(self) -> None:
        self._open = False
        self._attempt += 1
        self._asked_s = -float("inf")

    def _transmit(self, connection: zmq.Socket[bytes], entry: Entry) -> bool:
        """Pass one frame to the line, faults included; False where it takes nothing now."""
        if self._faults is not None and entry.fault is None:
            entry.fault = self._faults.draw()
            self._quiet_until_s = time.monotonic() + self._faults.stall_s()
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
        parts: wire.Parts = wire.encode_frame(self._header.run_id, entry.frame)
        if self._faults is not None and fault is Fault.CORRUPT:
            parts = self._faults.damage(*parts)
        if not _send(connection, parts):
            return False
        if fault is Fault.DUPLICATE:
            _send(connection, parts)
        if entry.transmissions:
            self._resent += 1
        else:
            self._sent += 1
        self._buffer.mark_sent()
        return True

    def _say_end(self, connection: zmq.Socket[bytes]) -> None:
        stats = self._buffer.stats()
        reason = _sendable(str(self._failure)) if self._failure else self._finishing or "broken off"
        end = wire.RunEnd(
            run=self._header.run_id,
            announced=stats.put + stats.dropped,
            dropped=stats.dropped + stats.waiting,
            reason=reason,
        )
        if _send(connection, wire.encode(end)):
            self._end_sent_s = time.monotonic()

    def _on_answer(self, parts: list[bytes]) -> None:
        try:
            message = wire.decode(parts)
        except WireError:
            return  # nothing of ours: the frame that it may have meant will be overdue
        if isinstance(message, wire.Ack) and message.run == self._header.run_id:
            for seq in message.received:
                self._buffer.acknowledge(seq)
            if message.attempt == self._attempt and not self._open:
                self._open = True
                self._end_sent_s = None
                self._buffer.resend_all()
            self._ended = self._ended or message.ended
        elif isinstance(message, wire.Refuse) and message.run in (self._header.run_id, None):
            self._on_refusal(message)

    def _on_refusal(self, refusal: wire.Refuse) -> None:
        if refusal.reason == wire.Reason.UNKNOWN_RUN:
            if self._open:  # a daemon that has restarted
                self._reopen()
        elif refusal.seq is None:
            self._turned_away = True
            self._fail(AcquisitionError(f"The daemon at {self._address} refused the run: {refusal.text}"))
        else:
            damaged = refusal.reason in (wire.Reason.CHECKSUM, wire.Reason.SIZE)
            self._buffer.refuse(refusal.seq, attempts=MAX_TRANSMISSIONS if damaged else 0)


def _sendable(reason: str) -> str:
    return reason.encode(errors="replace").decode()[:2000]


def _send(connection: zmq.Socket[bytes], parts: wire.Parts) -> bool:
    """Send a message whole, or not at all (False) where the line takes nothing now."""
    try:
        connection.send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return False
    return True
