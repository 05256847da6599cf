"""The daemon's end of the wire: receives frames of several runs, checks them, hands them on, and answers.

`Ingest` owns one daemon thread; the thread owns the ROUTER socket and calls every method of the runs. What
a message means is decided in `protocol.IngestProtocol`. `on_start` alone is called on a thread of its own for
each run, because making or reopening a run file may take seconds, and other runs do not wait.

A frame is acknowledged when its `Receipt` is complete, which wakes the thread; it is handed on at most once,
however often it comes. Frames may come out of order: `FrameInfo` says where they belong. Nothing waits: not
for a run (a sender may only have `window_bytes` unacknowledged, and is refused beyond), not for a peer
(answers that a peer does not read are dropped; it asks again).

A message that breaks the format or does not fit its run is dropped under a counted reason, and nothing that
arrives ends the thread. An `MddError` from a run aborts it and is told to its sender; from `on_start`, it
turns the run away; any other exception is a mistake in the daemon and ends the thread (`raise_if_failed`).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal

import zmq

from microdiffusion import wire
from microdiffusion.daemon.ingest.intake import Origin, RunStats
from microdiffusion.daemon.ingest.protocol import Answer, IngestProtocol
from microdiffusion.daemon.ingest.sink import RunSink
from microdiffusion.errors import AddressError, MddError, RunError
from microdiffusion.header import RunHeader
from microdiffusion.wire import Gate, ServerKeys, SweepFeedback, secure_server

TICK_S = 1.0
AT_ONCE = 8
"""Most messages that are read before the answers go out."""
MOST_PARTS = 3
QUEUED_MESSAGES = 16
"""Most that ZeroMQ reads ahead for one connection: the window bounds an honest sender to less."""
QUEUED_ANSWERS = 256
LINGER_MS = 200


class Ingest:
    """Receives runs.

    Parameters
    ----------
    address : str
        Where to listen, such as ``tcp://127.0.0.1:5750``; ``*`` as the port takes a free one.
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
        security: ServerKeys | None = None,
        runs: int = 8,
        silent_s: float = 120.0,
        max_frame_bytes: int = 64_000_000,
    ) -> None:
        self.address = address
        self._security = security
        self._max_frame_bytes = max_frame_bytes
        self._on_start: Callable[[RunHeader, str], RunSink]
        self._protocol = IngestProtocol(
            answer=self._answer,
            ask=self._ask,
            wake=self._wake,
            runs=runs,
            silent_s=silent_s,
            max_frame_bytes=max_frame_bytes,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate()
        self._router: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-ingest", daemon=True)
        self._starts: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._awake = False
        self.pulse_s = time.monotonic()
        self._inbox: deque[Callable[[], None]] = deque()  # from other threads, to be done on this one

    def start(self, on_start: Callable[[RunHeader, str], RunSink]) -> None:
        """Bind and start the thread; afterwards `address` holds the real port.

        Parameters
        ----------
        on_start : callable
            Takes a header and an `owner_of`, and returns the run of a sender that asks to start (or resume)
            one. An `MddError` turns it away, its
            sentence goes to the sender; `NotYet` makes the sender ask again. Called on a thread of its own.

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
        self._on_start = on_start
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
        self._wake()
        self._thread.join(timeout_s)
        for start in self._starts:
            start.join(max(0.0, deadline_s - time.monotonic()))
        if self.is_stuck:
            raise RunError(
                f"The ingest thread did not stop within {timeout_s:g} s: a callback does not return."
            )

    @property
    def is_stuck(self) -> bool:
        """True where a thread of this runs: after `stop` one whose callback does not return."""
        return any(thread.is_alive() for thread in (self._thread, *self._starts))

    def tell(self, run_id: str, what: Literal["go", "pause", "stop"], text: str = "") -> None:
        """Tell the driver of a run what is wanted of it, and again until the run is over."""
        self._call(partial(self._protocol.tell, wire.Tell(run=run_id, what=what, text=text[:2000])))

    def feedback(self, run_id: str, feedback: SweepFeedback) -> None:
        """Tell the driver of an adaptive run what a sweep showed; lost where its line is down."""
        message = wire.Feedback(run=run_id, feedback=feedback)
        self._call(partial(self._protocol.pass_on, message))

    def close_run(self, run_id: str, reason: str) -> None:
        """Abort a run and tell its senders `reason`; takes effect shortly.

        Frames that were handed on and are recorded afterwards are still acknowledged; the sender keeps
        the others. A run that has ended is left as it is.
        """
        self._call(partial(self._protocol.close_run, run_id, reason))

    @property
    def refused(self) -> dict[str, int]:
        """Dropped messages since the start, by `wire.Reason`, those of no run included."""
        return dict(self._protocol.refused)

    def run_stats(self, run_id: str) -> RunStats:
        """Return the counters of this moment of one run; all zero where it is not known here (yet)."""
        intake = self._protocol.runs.get(run_id)
        return intake.stats if intake is not None else RunStats()

    def raise_if_failed(self) -> None:
        """Raise what a callback raised and thereby ended the thread."""
        if self._failure is not None:
            raise self._failure

    def _call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the ingest thread; from any thread."""
        self._inbox.append(work)
        self._wake()

    def _wake(self) -> None:
        """Have the thread look at its inbox and at the receipts; from any thread."""
        # On the ingest thread itself that is done before the next look at the socket.
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
                self._protocol.look_for_silence(now_s, stood_still_s=gap_s if gap_s > 3 * TICK_S else 0.0)
                ticked_s = now_s
            self._do_inbox()
            self._protocol.acknowledge()
        self._do_inbox()
        self._protocol.acknowledge()

    def _do_inbox(self) -> None:
        self._awake = False  # before looking: whoever adds from here on wakes the thread again
        while self._inbox:
            self._inbox.popleft()()

    def _receive(self, router: zmq.Socket[bytes]) -> bool:
        """Read and answer one message; False where there is none."""
        try:
            if self._security is None:
                origin = Origin(router.recv(zmq.NOBLOCK))
            else:
                name = router.recv(zmq.NOBLOCK, copy=False)
                origin = Origin(name.bytes, str(name.get("User-Id")))  # the key, as the gate says
        except zmq.Again:
            return False
        received_s = time.monotonic()
        parts: list[bytes | memoryview] = []
        while router.getsockopt(zmq.RCVMORE):
            # Only the body is worth not copying. One part too many shows; of a million none is kept.
            part = router.recv(copy=False).buffer if len(parts) == 1 else router.recv()
            if len(parts) <= MOST_PARTS:
                parts.append(part)
        self._protocol.received(origin, parts, received_s)
        return True

    def _ask(self, header: RunHeader, owner: str) -> None:
        start = threading.Thread(
            target=self._start_run, args=(header, owner), name="mdd-ingest-start", daemon=True
        )
        self._starts = [*(each for each in self._starts if each.is_alive()), start]
        start.start()

    def _start_run(self, header: RunHeader, owner: str) -> None:
        """Ask `on_start`, on a thread of its own, and bring its answer to the ingest thread."""
        if self._stopping.is_set():
            return
        try:
            run = self._on_start(header, owner)
        except Exception as error:
            turn_away = partial(self._protocol.turn_away, header.run_id, error)
            self._call(lambda: turn_away(time.monotonic()))
        else:
            self._call(lambda: self._protocol.begin(header.run_id, run, time.monotonic()))

    def _answer(self, origin: Origin, answer: Answer) -> None:
        # A ROUTER drops what its peer does not read, or what is for a peer that is gone.
        if self._router is not None:
            with contextlib.suppress(zmq.Again):
                self._router.send_multipart([origin.peer, *wire.encode(answer)], zmq.NOBLOCK)


def _address_error(address: str, error: zmq.ZMQError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        port = address.rpartition(":")[2]
        advice = f"port {port} is in use: stop the program that holds it, or set wire.data to another port"
    elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        advice = "no network interface of this machine has that address: use tcp://127.0.0.1 or tcp://*"
    else:
        advice = f"expected an address such as tcp://127.0.0.1:5750 ({error.strerror})"
    return AddressError(f"Cannot listen at {address!r}: {advice}.")
