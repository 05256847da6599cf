"""Asks a running daemon over its control channel: one command, one answer; any thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import zmq

from microdiffusion.addresses import reached
from microdiffusion.errors import AddressError, UserError, WireError
from microdiffusion.wire.codec import decode, encode
from microdiffusion.wire.handshake import HandshakeWatch
from microdiffusion.wire.messages import Answer, Command
from microdiffusion.wire.security import ClientKeys, secure_client, when_elsewhere

TIMEOUT_S = 5.0
_LOOK_S = 0.1  # how often to look whether the handshake failed


def zmq_reason(error: zmq.ZMQError) -> str:
    """Return the system's reason for an error, without the address that pyzmq adds."""
    return zmq.strerror(error.errno) if error.errno else str(error)


def connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect a socket to what listens at `address`, now or later.

    Raises
    ------
    AddressError
        The address is malformed.
    """
    try:
        socket.connect(reached(address))
    except zmq.ZMQError as error:
        raise AddressError(
            f"Cannot connect to {address!r} ({zmq_reason(error)}): expected an address such as "
            "tcp://127.0.0.1:5750."
        ) from error


@contextlib.contextmanager
def connected(
    kind: int, address: str, security: ClientKeys | None
) -> Iterator[tuple[zmq.Socket[bytes], HandshakeWatch]]:
    """Yield a client's socket and the watch over its handshake.

    Raises
    ------
    AddressError
        The address is malformed.
    ConfigError
        The daemon is on another machine, and there are no keys.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    with contextlib.ExitStack() as stack:
        stack.enter_context(socket)
        socket.setsockopt(zmq.LINGER, 0)
        secure_client(socket, address, security)
        watch = HandshakeWatch(socket, address, security)
        stack.callback(watch.close)
        connect(socket, address)
        yield socket, watch


def ask(
    address: str,
    command: str,
    *,
    key: str = "",
    value: str = "",
    timeout_s: float = TIMEOUT_S,
    security: ClientKeys | None = None,
) -> Answer:
    """Ask the daemon at `address`, and return its answer.

    Raises
    ------
    UserError
        No answer came within `timeout_s`, or the daemon refuses: its sentence.
    AddressError
        The address is malformed, or needs keys.
    """
    number = time.monotonic_ns() % (1 << 53)
    with connected(zmq.DEALER, address, security) as (socket, watch):
        socket.send_multipart(encode(Command(command=command, key=key, value=value, number=number)))
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if refusal := watch.refusal():
                raise UserError(refusal)
            if not socket.poll(int(1000 * min(left_s, _LOOK_S)) + 1):
                continue
            try:
                answer = decode(socket.recv_multipart())
            except WireError:
                continue  # not of our daemon
            if isinstance(answer, Answer) and answer.number == number:
                if not answer.ok:
                    raise UserError(f"The daemon refused: {answer.text}")
                return answer
    raise UserError(
        f"No daemon answered at {address} within {timeout_s:g} s: start one with `mdd serve`, or give its "
        f"wire.control address with --address{when_elsewhere(address)}."
    )
