"""The daemon's end of the wire: receives frames of several runs, checks them, hands them on, and answers.

`Ingest` owns one daemon thread; the thread owns the ROUTER socket and calls every method of the sinks. What
a message means is decided in `protocol.IngestProtocol`, what a run knows is in `run.IngestRun`. `on_start`
alone is called on a thread of its own, one call at a time, because making or reopening a run file may
take seconds and the frames of other runs do not wait.

A frame is acknowledged when its sink says that it is safe, and is handed on at most once, whatever the line
repeats. Frames may come out of order: `FrameInfo` says where they belong. Nothing waits: not for a sink
(a sender may only have `window_bytes` unconfirmed, and is refused beyond), not for a peer (answers that a
peer does not read are dropped; it asks again).

A message that breaks the format or does not fit its run is dropped under a counted reason, and nothing that
arrives ends the thread. An `MddError` from a sink closes that run and is told to its sender; from `on_start`,
it turns the run away; any other exception is a mistake in the daemon and ends the thread (`raise_if_failed`).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import zmq

from microdiffusion import wire
from microdiffusion.daemon.ingest.protocol import Answer, IngestProtocol, NotYet
from microdiffusion.daemon.ingest.run import RunState, RunStats
from microdiffusion.daemon.ingest.sink import PlainSink, RunSink
from microdiffusion.errors import AddressError, MddError, RunError
from microdiffusion.header import RunHeader
from microdiffusion.wire import Gate, ServerKeys, secure_server

__all__ = ["Ingest", "IngestStats", "NotYet", "PlainSink", "RunSink", "RunState", "RunStats"]

TICK_S = 1.0
AT_ONCE = 8
"""Most messages that are read before the answers go out."""
MOST_PARTS = 3
QUEUED_MESSAGES = 16
"""Most that ZeroMQ reads ahead for one connection: the window bounds an honest sender to less."""
QUEUED_ANSWERS = 256
LINGER_MS = 200


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
    runs : int
        Runs that are open.
    """

    frames: int
    bytes: int
    duplicates: int
    out_of_order: int
    refused: Mapping[str, int]
    runs: int


class Ingest:
    """Receives runs.

    Parameters
    ----------
    address : str
        Where to listen, such as ``tcp://127.0.0.1:5750``; ``*`` as the port takes a free one.
    on_start : callable
        A run begins, or goes on (after its end, or a silence): returns where its frames go. An `MddError`
        turns it away, its sentence goes to the sender; `NotYet` makes the sender ask again. Called on a
        thread of its own.
    security : ServerKeys or None
        Whom to let in; None lets in everybody, and is refused where other machines reach the address.
    runs : int
        Most runs that are open at the same time.
    silent_s : float
        A run whose sender says nothing for so long is closed.
    max_frame_bytes : int
        Largest frame that is received.

    Attributes
    ----------
    address : str
        As given; once started, the real one.
    pulse_s : float
        `time.monotonic()` of the thread's last round, at most a second ago while all is well.
    """

    def __init__(
        self,
        address: str,
        *,
        on_start: Callable[[RunHeader], RunSink],
        security: ServerKeys | None = None,
        runs: int = 8,
        silent_s: float = 120.0,
        max_frame_bytes: int = 64_000_000,
    ) -> None:
        self.address = address
        self._on_start = on_start
        self._security = security
        self._max_frame_bytes = max_frame_bytes
        self._reception = IngestProtocol(
            answer=self._answer,
            ask=self._ask,
            taken=lambda run, seq: self._call(partial(run.taken, seq)),
            runs=runs,
            silent_s=silent_s,
            max_frame_bytes=max_frame_bytes,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate()
        self._router: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-ingest", daemon=True)
        self._stopping = threading.Event()
        self._one_start = threading.Lock()
        self._failure: MddError | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._awake = False
        self.pulse_s = time.monotonic()
        self._inbox: deque[Callable[[], None]] = deque()  # from other threads, to be done on this one

    def start(self) -> None:
        """Bind and start the thread; afterwards `address` holds the real port.

        Raises
        ------
        AddressError
            The address is malformed, not of this machine, or its port is in use.
        ConfigError
            There are no keys, but other machines reach the address.
        """
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.SNDHWM, QUEUED_ANSWERS)
        router.setsockopt(zmq.MAXMSGSIZE, self._max_frame_bytes + wire.MAX_HEADER_BYTES)
        router.setsockopt(zmq.LINGER, LINGER_MS)
        # A machine that went off without a word must not hold its connection for ever.
        router.setsockopt(zmq.TCP_KEEPALIVE, 1)
        router.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        try:
            self._gate = secure_server(router, self.address, self._security)
            router.bind(self.address)
        except zmq.ZMQError as error:
            self._release(router)
            raise _address_error(self.address, error) from error
        except MddError:
            self._release(router)
            raise
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._router = router
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop reading and free the port; a run that is open gets no `end`. Harmless when repeated.

        Raises
        ------
        RunError
            A callback did not return in time.
        """
        deadline_s = time.monotonic() + timeout_s
        self._stopping.set()
        if self._thread.ident is None:
            if not self._context.closed:
                self._release(None)
            return
        self._call(lambda: None)
        self._thread.join(timeout_s)
        no_start = self._one_start.acquire(timeout=max(0.0, deadline_s - time.monotonic()))
        if no_start:
            self._one_start.release()
        if self._thread.is_alive() or not no_start:
            raise RunError(
                f"The ingest thread did not stop within {timeout_s:g} s: a callback does not return."
            )

    def tell(self, run_id: str, what: Literal["go", "pause", "stop"], text: str = "") -> None:
        """Tell the driver of a run what is wanted of it, and again until the run is over."""
        self._call(partial(self._reception.tell, wire.Tell(run=run_id, what=what, text=text[:2000])))

    def close_run(self, run_id: str, reason: str) -> None:
        """Close a run from this side; its sender is told `reason`. Takes effect shortly; no `end`.

        Frames that were handed on and become safe afterwards are still acknowledged; the sender keeps
        the others. A run that is not open is left as it is.
        """
        self._call(partial(self._reception.close_run, run_id, reason))

    @property
    def stats(self) -> IngestStats:
        """The counters of this moment, over all runs."""
        each = [run.stats for run in list(self._reception.runs.values())]
        gone = dict(self._reception.forgotten)
        return IngestStats(
            frames=gone.get("frames", 0) + sum(run.frames for run in each),
            bytes=gone.get("bytes", 0) + sum(run.bytes for run in each),
            duplicates=gone.get("duplicates", 0) + sum(run.duplicates for run in each),
            out_of_order=gone.get("out_of_order", 0) + sum(run.out_of_order for run in each),
            refused=MappingProxyType(dict(self._reception.refused)),
            runs=sum(run.state == RunState.OPEN for run in each),
        )

    def run_stats(self, run_id: str) -> RunStats:
        """Return the counters of this moment of one run; all zero where it is not known here (yet)."""
        run = self._reception.runs.get(run_id)
        return run.stats if run is not None else RunStats()

    def raise_if_failed(self) -> None:
        """Raise what a callback raised and thereby ended the thread."""
        if self._failure is not None:
            raise self._failure

    def _call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the ingest thread; from any thread."""
        self._inbox.append(work)
        # On the ingest thread itself it is done before the next look at the line.
        if not self._awake and threading.get_ident() != self._thread.ident:
            self._awake = True
            # Full: it is awake already. Closed: it is gone.
            with contextlib.suppress(OSError):
                self._wake_in.send(b"\0")

    def _release(self, router: zmq.Socket[bytes] | None) -> None:
        if router is not None:
            router.close()
        self._gate.close()
        self._wake_in.close()
        self._wake_out.close()
        self._context.term()

    def _run(self) -> None:
        router = self._router
        if router is None:
            return
        try:
            self._serve(router)
        except Exception as error:
            failure = RunError(f"Receiving frames broke off: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._failure = failure
        finally:
            self._release(router)

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        wake = self._wake_out.fileno()
        ticked_s = time.monotonic()
        while not self._stopping.is_set():
            self.pulse_s = time.monotonic()
            if wake in dict(poller.poll(int(TICK_S * 1000))):
                self._wake_out.recv(4096)
            self._do_inbox()
            for _ in range(AT_ONCE):
                if not self._receive(router):
                    break
            now_s = time.monotonic()
            if now_s - ticked_s >= TICK_S:
                gap_s = now_s - ticked_s
                self._reception.look_for_silence(now_s, stood_still_s=gap_s if gap_s > 3 * TICK_S else 0.0)
                ticked_s = now_s
            self._do_inbox()
            self._reception.confirm()
        self._do_inbox()
        self._reception.confirm()

    def _do_inbox(self) -> None:
        self._awake = False  # before looking: who adds from here on wakes the thread again
        while self._inbox:
            self._inbox.popleft()()

    def _receive(self, router: zmq.Socket[bytes]) -> bool:
        """Read and answer one message; False where there is none."""
        try:
            peer = router.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        received_s = time.monotonic()
        parts: list[bytes | memoryview] = []
        while router.getsockopt(zmq.RCVMORE):
            # Only the body is worth not copying. One part too many shows; of a million none is kept.
            part = router.recv(copy=False).buffer if len(parts) == 1 else router.recv()
            if len(parts) <= MOST_PARTS:
                parts.append(part)
        self._reception.received(peer, parts, received_s)
        return True

    def _ask(self, header: RunHeader) -> None:
        threading.Thread(target=self._start_run, args=(header,), name="mdd-ingest-start", daemon=True).start()

    def _start_run(self, header: RunHeader) -> None:
        """Ask `on_start`, on a thread of its own, and bring its answer to the ingest thread."""
        with self._one_start:
            if self._stopping.is_set():
                return
            try:
                sink = self._on_start(header)
            except Exception as error:
                self._call(partial(self._reception.turn_away, header.run_id, error))
            else:
                self._call(lambda: self._reception.begin(header.run_id, sink, time.monotonic()))

    def _answer(self, peer: bytes, answer: Answer) -> None:
        # A ROUTER drops what its peer does not read, or what is for a peer that is gone.
        if self._router is not None:
            with contextlib.suppress(zmq.Again):
                self._router.send_multipart([peer, *wire.encode(answer)], zmq.NOBLOCK)


def _address_error(address: str, error: zmq.ZMQError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        port = address.rpartition(":")[2]
        advice = f"port {port} is in use: stop the program that holds it, or set wire.data to another port"
    elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        advice = "no network interface of this machine has that address: use tcp://127.0.0.1 or tcp://*"
    else:
        advice = f"expected an address such as tcp://127.0.0.1:5750 ({error.strerror})"
    return AddressError(f"Cannot listen at {address!r}: {advice}.")
