"""The daemon's end of the wire: receives frames, checks them, answers, and hands them on.

`Ingest` owns one daemon thread; the thread owns the ROUTER socket, and the three callbacks run on it, one at
a time, in this order for a run: `on_start`, any number of `on_frame`, `on_end`. A frame is acknowledged
after `on_frame` took it, and is handed on at most once, whatever the line repeats. Frames may come
out of order: `FrameInfo` says where they belong.

While `on_frame` has no room, the frame is held and nothing more is read, so the sender's buffer fills, and
it is the sender that drops and counts. A message that breaks the format or does not fit the run is dropped
under a counted reason; nothing that arrives ends the thread. A callback that raises does (`raise_if_failed`),
except that `on_start` may turn a run away with a `UserError`. One run is open at a time; the latest ones
are remembered after their end, so that late or repeated messages of theirs are answered rightly.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import zmq

from microdiffusion import wire
from microdiffusion.daemon.seq_set import SeqSet
from microdiffusion.errors import AddressError, MddError, RunError, UserError, WireError
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Frame

TICK_MS = 50
RETRY_S = 0.002
"""How long a held frame waits before it is offered again."""
QUEUED_MESSAGES = 16
"""Most that ZeroMQ reads ahead per sender; the sender's window bounds the bytes."""
LINGER_MS = 200
SILENT_S = 120.0
"""After so long without a word from its sender an open run gives way to a new one."""
REMEMBERED_RUNS = 32


@dataclass(frozen=True, slots=True)
class IngestStats:
    """What came in since the start, over all runs.

    Attributes
    ----------
    frames, bytes : int
        Frames that were handed on, and the size of their pixels.
    duplicates : int
        Frames that came once more and were discarded.
    out_of_order : int
        Of `frames`: came after one with a higher number.
    refused : mapping of str to int
        Dropped messages by `wire.Reason`.
    """

    frames: int
    bytes: int
    duplicates: int
    out_of_order: int
    refused: Mapping[str, int]


@dataclass(slots=True)
class _Run:
    """What is known of a run. `closed` is None while it is open, afterwards says why it is not."""

    header: RunHeader
    received: SeqSet = field(default_factory=SeqSet)
    ended: bool = False
    closed: str | None = None
    heard_s: float = field(default_factory=time.monotonic)


class Ingest:
    """Receives runs.

    Parameters
    ----------
    address : str
        Where to listen, such as ``tcp://127.0.0.1:5750``; ``*`` as the port takes a free one.
    on_start : callable
        A run begins. A `UserError` turns it away, its sentence goes to the sender.
    on_frame : callable
        A frame; its pixels are read-only. Returns False where there is no room now: it is offered again.
    on_end : callable
        The sender says that the run is over; every frame that it still had has been handed on.
    """

    def __init__(
        self,
        address: str,
        *,
        on_start: Callable[[RunHeader], None],
        on_frame: Callable[[Frame], bool],
        on_end: Callable[[wire.RunEnd], None],
    ) -> None:
        self.address = address
        self._on_start = on_start
        self._on_frame = on_frame
        self._on_end = on_end
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._loop, name="mdd-ingest", daemon=True)
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._runs: dict[str, _Run] = {}  # the latest one, the only one that may be open, is the last
        self._close_request: str | None = None
        self._frames = self._bytes = self._duplicates = self._out_of_order = 0
        self._refused: Counter[str] = Counter()

    def start(self) -> None:
        """Bind and start the thread; afterwards `address` holds the real port.

        Raises
        ------
        AddressError
            The address is malformed, not of this machine, or its port is in use.
        """
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY_BYTES)
        router.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            router.bind(self.address)
        except zmq.ZMQError as error:
            router.close(linger=0)
            self._context.term()
            raise _address_error(self.address, error) from error
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket = router
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop reading and free the port; a run that is open gets no `on_end`. Harmless when repeated.

        Raises
        ------
        RunError
            A callback did not return in time.
        """
        self._stopping.set()
        if self._thread.ident is None:
            self._context.term()
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RunError(
                f"The ingest thread did not stop within {timeout_s:g} s: a callback does not return."
            )

    def close_run(self, reason: str) -> None:
        """Close the open run from this side, so that another may begin; its sender is told `reason`.

        For a sender that is gone, or whose run the daemon gives up. Takes effect shortly; no `on_end`.
        """
        self._close_request = reason

    @property
    def stats(self) -> IngestStats:
        """The counters of this moment."""
        return IngestStats(
            frames=self._frames,
            bytes=self._bytes,
            duplicates=self._duplicates,
            out_of_order=self._out_of_order,
            refused=MappingProxyType(dict(self._refused)),
        )

    def raise_if_failed(self) -> None:
        """Raise what a callback raised and thereby ended the thread."""
        if self._failure is not None:
            raise self._failure

    def _loop(self) -> None:
        router = self._socket
        if router is None:
            return
        try:
            while not self._stopping.is_set():
                self._obey_close_request()
                if router.poll(TICK_MS):
                    self._receive(router)
        except MddError as error:
            self._failure = error
        except Exception as error:
            self._failure = RunError(f"Receiving frames broke off: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
        finally:
            router.close()
            self._context.term()

    def _obey_close_request(self) -> None:
        reason, self._close_request = self._close_request, None
        run = self._latest()
        if reason is not None and run is not None and run.closed is None:
            run.closed = reason

    def _latest(self) -> _Run | None:
        return next(reversed(self._runs.values()), None)

    def _receive(self, router: zmq.Socket[bytes]) -> None:
        received_s = time.monotonic()
        peer, *parts = router.recv_multipart(copy=False)
        try:
            message = wire.decode([part.buffer for part in parts])
        except WireError as error:
            self._refused[str(error.reason)] += 1
            if error.seq is not None or error.reason == wire.Reason.VERSION:
                _reply(
                    router,
                    peer,
                    wire.Refuse(run=error.run, seq=error.seq, reason=error.reason, text=str(error)),
                )
            return
        answer: wire.Ack | wire.Refuse | None
        if isinstance(message, wire.RunFrame):
            message.frame.received_s = received_s
            answer = self._take_frame(message)
        elif isinstance(message, wire.RunStart):
            answer = self._take_start(message, router, peer)
        elif isinstance(message, wire.RunEnd):
            answer = self._take_end(message)
        else:
            self._refused[wire.Reason.KIND.value] += 1  # only a daemon says this
            return
        if isinstance(answer, wire.Refuse):
            self._refused[str(answer.reason)] += 1
        if answer is not None:
            _reply(router, peer, answer)

    def _take_start(
        self, message: wire.RunStart, router: zmq.Socket[bytes], peer: zmq.Frame
    ) -> wire.Ack | wire.Refuse:
        run_id = message.header.run_id
        run = self._runs.get(run_id)
        if run is not None:
            if run.closed is not None and not run.ended:
                return _refuse(run_id, wire.Reason.CLOSED, run.closed)
            return wire.Ack(run=run_id, attempt=message.attempt)
        latest = self._latest()
        if latest is not None and latest.closed is None:
            silent_s = time.monotonic() - latest.heard_s
            if silent_s < SILENT_S:
                return _refuse(
                    run_id,
                    wire.Reason.BUSY,
                    f"run {latest.header.name!r} is still open here; wait for its end or, if its sender is "
                    f"gone, try again in {SILENT_S - silent_s:.0f} s.",
                )
            self._give_way(latest)
        try:
            self._on_start(message.header)
        except UserError as error:
            return _refuse(run_id, wire.Reason.DECLINED, str(error))
        except Exception as error:
            _reply(router, peer, _refuse(run_id, wire.Reason.DECLINED, f"the daemon failed: {error}"))
            raise
        self._runs[run_id] = _Run(message.header)
        if len(self._runs) > REMEMBERED_RUNS:
            del self._runs[next(iter(self._runs))]
        return wire.Ack(run=run_id, attempt=message.attempt)

    def _give_way(self, run: _Run) -> None:
        """End a run whose sender died without saying so; what was announced is what can be known."""
        run.closed = "its sender was silent, and another run began."
        run.ended = True
        announced = run.received.highest + 1
        self._on_end(wire.RunEnd(run=run.header.run_id, announced=announced, dropped=0, reason=run.closed))

    def _take_frame(self, message: wire.RunFrame) -> wire.Ack | wire.Refuse | None:
        run, frame = self._runs.get(message.run), message.frame
        seq = frame.info.seq
        if run is None:
            return _unknown_run(message.run)
        run.heard_s = time.monotonic()
        if seq in run.received:
            self._duplicates += 1
            return wire.Ack(run=message.run, received=(seq,))
        if run.closed is not None:
            return _refuse(message.run, wire.Reason.CLOSED, run.closed)
        misfit = _misfit(run.header, frame)
        if misfit is not None:
            return wire.Refuse(run=message.run, seq=seq, reason=wire.Reason.FRAME, text=misfit)
        while not self._on_frame(frame):
            if self._stopping.wait(RETRY_S) or self._close_request is not None:
                return None  # unanswered, so the sender asks again, and hears what became of the run
        self._frames += 1
        self._bytes += frame.pixels.nbytes
        self._out_of_order += seq < run.received.highest
        run.received.add(seq)
        return wire.Ack(run=message.run, received=(seq,))

    def _take_end(self, message: wire.RunEnd) -> wire.Ack | wire.Refuse:
        run = self._runs.get(message.run)
        if run is None:
            return _unknown_run(message.run)
        if run.closed is not None and not run.ended:
            return _refuse(message.run, wire.Reason.CLOSED, run.closed)
        if run.closed is None:
            run.closed = f"the run is over ({message.reason})."
            run.ended = True
            self._on_end(message)
        return wire.Ack(run=message.run, ended=True)


def _misfit(header: RunHeader, frame: Frame) -> str | None:
    """Return why a well-formed frame does not belong into the run, None where it does."""
    info, pixels = frame.info, frame.pixels
    found = pixels.dtype.newbyteorder("=").name
    expected = header.shape[1:]
    if pixels.shape != expected or found != header.dtype:
        return f"The run's frames are {expected} {header.dtype}, frame {info.seq} is {pixels.shape} {found}."
    for name, value, limit in (
        ("sweep", info.sweep, header.sweeps),
        ("channel", info.channel, len(header.channels)),
        ("position", info.position, len(header.positions)),
    ):
        if limit is not None and value >= limit:
            return f"Frame {info.seq} belongs to {name} {value}, but the run has {limit}, counted from 0."
    return None


def _refuse(run: str, reason: wire.Reason, text: str) -> wire.Refuse:
    return wire.Refuse(run=run, reason=reason, text=text[:2000])


def _unknown_run(run: str) -> wire.Refuse:
    return _refuse(run, wire.Reason.UNKNOWN_RUN, f"run {run} has not been started here; send start first.")


def _reply(router: zmq.Socket[bytes], peer: zmq.Frame, answer: wire.Ack | wire.Refuse) -> None:
    router.send_multipart([peer.bytes, *wire.encode(answer)])


def _address_error(address: str, error: zmq.ZMQError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        port = address.rpartition(":")[2]
        advice = f"port {port} is in use: stop the program that holds it, or set wire.data to another port"
    elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        advice = "no network interface of this machine has that address: use tcp://127.0.0.1 or tcp://*"
    else:
        advice = f"expected an address such as tcp://127.0.0.1:5750 ({error.strerror})"
    return AddressError(f"Cannot listen at {address!r}: {advice}.")
