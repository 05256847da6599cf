"""The driver's end of the wire: takes frames without ever blocking, and gets them to the daemon.

`Sender` owns two threads: its own, which owns the `Connection` to the daemon and runs the `SenderProtocol`
over it, and that of the `Spill`, where there is a journal. `put` may be called from a camera callback: it
copies the pixels into a `SendBuffer` and returns; it never touches the disk. A daemon that is absent at
the start, that restarts or hangs, or a line that breaks costs no frame while there is room in memory and
journal; the receiver discards what it gets twice. Where both are full, `put` drops and counts, and `end`
announces it. What is left at the end stays in the journal for `delivery.deliver`.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from microdiffusion import wire
from microdiffusion.errors import AcquisitionError, AddressError, ConfigError, MddError, WireError
from microdiffusion.frames import Frame, FrameInfo
from microdiffusion.header import RunHeader
from microdiffusion.sender.buffer import SendBuffer
from microdiffusion.sender.buffered import BufferStats
from microdiffusion.sender.connection import Connection
from microdiffusion.sender.faults import Faults, FaultSource
from microdiffusion.sender.journal import Journal
from microdiffusion.sender.protocol import SenderProtocol
from microdiffusion.sender.spill import Spill
from microdiffusion.wire import ClientKeys, SweepFeedback

SAVE_S = 10.0
"""Most time that the end of a sender takes to write what is left to the journal."""
TICK_S = 0.05
_POLL_S = 0.01


@dataclass(slots=True)
class SenderStats(BufferStats):
    """Counters of the frames that were offered, at one moment; see `BufferStats` for the other fields.

    Attributes
    ----------
    sent, resent : int
        Frames that went out at least once; transmissions beyond each frame's first.
    unsent : int
        Of the waiting, once the sender has ended: those that the journal keeps for later.
    connected, ended : bool
        The daemon answers; it has acknowledged the end of the run.
    """

    sent: int = 0
    resent: int = 0
    unsent: int = 0
    connected: bool = False
    ended: bool = False


class Sender:
    """Sends one run to the daemon.

    Parameters
    ----------
    address : str
        Where the daemon listens, such as ``tcp://127.0.0.1:5750``.
    header : RunHeader
        Describes the run; each frame must fit it.
    buffer_bytes : int
        Limit for the pixels of unanswered frames in memory.
    faults : Faults or None
        Deliberate faults.
    journal : Path, Journal or None
        Folder for frames that do not fit into memory; None: they are dropped. Of a left-over journal, the
        frames are sent, and no others; from then on it is the sender's own.
    journal_bytes : int
        Limit for journals in that folder; 0: no journal.
    security : ClientKeys or None
        None only where the address is on loopback.
    first_seq : int
        The lowest number of its frames; distinguishes the senders of one run.
    secret : str, optional
        Of a run that another sender began: that one's `secret`, without which the daemon refuses it. By
        default a new one, or that of the left-over journal.

    Attributes
    ----------
    secret : str
        What proves to the daemon that the run is this sender's.

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
        journal: Path | Journal | None = None,
        journal_bytes: int = 0,
        security: ClientKeys | None = None,
        first_seq: int = 0,
        secret: str | None = None,
    ) -> None:
        self._shape = header.shape[1:]
        self._dtype = np.dtype(header.dtype)
        frame_bytes = self._shape[0] * self._shape[1] * self._dtype.itemsize
        if buffer_bytes < frame_bytes:
            raise ConfigError(
                f"The send buffer of {buffer_bytes} bytes does not hold one frame of {frame_bytes}: "
                f"set wire.send_buffer_mb to {max(1, 8 * frame_bytes // 1_000_000)} or more."
            )
        wire.encode(wire.RunStart(header=header))  # too large: say so now, in the caller's thread
        if secret is None:
            secret = journal.secret if isinstance(journal, Journal) else secrets.token_hex(16)
        self.secret = secret
        if isinstance(journal, Path):
            own = Journal(journal, header, first_seq, secret=secret, limit_bytes=journal_bytes)
            journal = own if journal_bytes > 0 else None
        self._buffer = SendBuffer(buffer_bytes, frame_bytes, journal=journal is not None, first_seq=first_seq)
        self._spill: Spill | None = None
        if journal is not None:
            self._spill = Spill(self._buffer, journal, on_read=self._wake, on_failure=self._fail)
            if journal.records:
                self._buffer.adopt(journal.records, announced=journal.announced, dropped=journal.dropped)
        source = FaultSource(faults) if faults is not None else None
        self._connection = Connection(address, security)
        self._protocol = SenderProtocol(self._connection, self._buffer, header, first_seq, secret, source)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mdd-sender", daemon=True)
        self._failure: MddError | None = None
        self._deadline_s = float("inf")
        self._unsent = 0

    def start(self) -> None:
        """Connect and start the thread. The daemon need not be there yet.

        Raises
        ------
        AddressError, ConfigError
            The address is malformed, or on another machine and there are no keys.
        """
        try:
            self._connection.open()
        except MddError:
            self._release()
            raise
        if self._spill is not None:
            self._spill.start()
        self._thread.start()

    def put(self, info: FrameInfo, pixels: NDArray[Any]) -> bool:
        """Copy a frame (Y, X) into the buffer; never blocks, never raises.

        Returns False where it was not taken: counted as dropped. A frame that does not fit the run's
        header is a mistake of the driver and ends the run; see `raise_if_failed`.
        """
        try:
            if pixels.shape != self._shape or pixels.dtype.newbyteorder("=") != self._dtype:
                raise WireError(
                    f"The run's frames are {self._shape} {self._dtype}, frame {info.seq} is "
                    f"{pixels.shape} {pixels.dtype}: fix the driver or the run's header."
                )
            taken = self._buffer.put(Frame(info, pixels))
        except Exception as error:  # a camera callback that raises would hang the acquisition
            self._buffer.count_dropped()
            self._fail(error)
            return False
        if taken:
            self._wake()
        return taken

    def leave_out(self) -> None:
        """Count an image that the run has no place for as dropped, so that its ledger knows of it."""
        self._buffer.count_dropped()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until `put` would take a frame; False after `timeout_s`, or where it never will again.

        For sources that can wait (a file); a camera cannot.
        """
        return self._buffer.wait_for_room(timeout_s)

    def meet(self, stop: Callable[[], bool], timeout_s: float, hint: str = "") -> None:
        """Wait until the daemon has answered, or until `stop`.

        Raises
        ------
        AddressError
            It has not within `timeout_s`; the message ends with what to do, and `hint`.
        MddError
            What ended the run early.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._protocol.open and not stop():
            self.raise_if_failed()
            if time.monotonic() > deadline_s:
                raise AddressError(
                    f"Nobody answered at {self._connection.address} within {timeout_s:g} s: "
                    f"start `mdd serve` there first{hint}. {self.trouble}".rstrip()
                )
            time.sleep(_POLL_S)

    def drain(self, stop: Callable[[], bool], standstill_s: float = float("inf")) -> bool:
        """Wait until the daemon has everything; False on `stop`, or if it takes nothing for `standstill_s`.

        For sources that can wait. Raises what ended the run early.
        """
        left, since_s = -1, time.monotonic()
        while now_left := self._buffer.stats().buffered_bytes:
            self.raise_if_failed()
            if now_left != left:
                left, since_s = now_left, time.monotonic()
            if stop() or time.monotonic() - since_s > standstill_s:
                return False
            time.sleep(_POLL_S)
        return True

    def finish(self, *, reason: str = "finished", timeout_s: float = 10.0) -> SenderStats:
        """Take no more frames, deliver those that are left, send `end`, and close.

        Returns after `timeout_s` (and at most one second more, or what it takes to write the rest to the
        journal, `SAVE_S` at most) even if the daemon does not answer; `SenderStats.ended` says whether it
        did. Does not raise; harmless when called again.
        """
        self._deadline_s = time.monotonic() + timeout_s
        if self._protocol.finishing is None:
            self._protocol.finishing = reason
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
            sent=self._protocol.sent,
            resent=self._protocol.resent,
            unsent=self._unsent,
            connected=self._protocol.open,
            ended=self._protocol.ended and self._failure is None,
        )

    @property
    def wanted(self) -> Literal["go", "pause", "stop"]:
        """The daemon's latest request to the driver."""
        return self._protocol.wanted

    @property
    def wanted_text(self) -> str:
        """The reason for that request, one sentence, or empty."""
        return self._protocol.wanted_text

    @property
    def feedback(self) -> Mapping[tuple[int, int], SweepFeedback]:
        """The engine's last word on each session (channel, position) of an adaptive run."""
        return dict(self._protocol.feedback)

    @property
    def server(self) -> str:
        """The daemon's version of mdd; empty until it has answered."""
        return self._protocol.server

    def raise_if_failed(self) -> None:
        """Raise the error that ended the run early: the daemon's refusal, or a mistake of the driver."""
        if self._failure is not None:
            raise self._failure

    @property
    def trouble(self) -> str:
        """The obstacle to the frames at the moment, one sentence; empty where none is known."""
        return (
            self._connection.refusal
            or self._connection.trouble
            or (self._spill.trouble if self._spill else "")
        )

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            if not isinstance(error, MddError):
                wrapped = AcquisitionError(f"The sender failed: {type(error).__name__}: {error}")
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
        self._connection.close()
        if self._spill is not None:
            self._spill.stop()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        protocol = self._protocol
        try:
            self._serve()
        except Exception as error:
            self._fail(error)
        try:
            if self._spill is not None and not self._buffer.is_empty():
                self._spill.save_all(SAVE_S)
                self._unsent = self._buffer.stats().journaled
            if not protocol.ended:
                protocol.send_end(str(self._failure or protocol.finishing or "aborted"))
        finally:
            protocol.open = False
            self._release()

    def _serve(self) -> None:
        protocol = self._protocol
        while not protocol.ended and self._failure is None and time.monotonic() <= self._deadline_s:
            blocked = protocol.step()
            if self._spill is not None:
                self._spill.line_down = protocol.is_down()
            self._connection.wait(self._wake_out, TICK_S, to_send=blocked)
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
            protocol.receive_answers()
