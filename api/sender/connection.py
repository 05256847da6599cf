"""A sender's connection to the daemon: opened, watched, and opened again where it seems dead.

ZeroMQ reconnects by itself where TCP says that the line is broken. What TCP does not notice for minutes
(a machine gone without a word, a process that hangs) is for the owner to notice, who then calls `renew`: a
new socket, with nothing of the old one in it. ZeroMQ is silent about a handshake that fails for want of the
right keys; here it becomes a sentence.

No thread: a connection belongs to one thread at a time, `trouble` and `refusal` may be read from any.
"""

from __future__ import annotations

import socket

import zmq
from zmq.utils.monitor import recv_monitor_message

from microdiffusion import wire
from microdiffusion.wire import HANDSHAKE_FAILED, ClientKeys, connect, secure_client, why_refused

LINGER_MS = 1000
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED


class Connection:
    """A DEALER socket with its keys and its monitor.

    Parameters
    ----------
    address : str
        Where the daemon listens.
    security : ClientKeys or None
        None only on loopback.

    Attributes
    ----------
    refusal : str
        The reason why the connection is refused until keys are changed; empty if it is not.
    trouble : str
        A suspected problem with the keys.
    """

    def __init__(self, address: str, security: ClientKeys | None) -> None:
        self.address = address
        self.refusal = ""
        self.trouble = ""
        self._security = security
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        """Connect, where there is no connection; the daemon need not be there yet.

        Raises
        ------
        AddressError, ConfigError
            The address is malformed, or on another machine and there are no keys.
        """
        if self._socket is not None:
            return
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for a daemon that is not there
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_BYTES)  # a daemon sends no bodies
        try:
            secure_client(self._socket, self.address, self._security)
            self._monitor = self._socket.get_monitor_socket(_WATCHED)
            connect(self._socket, self.address)
        except BaseException:
            self.drop()
            raise

    def drop(self, *, linger_ms: int = 0) -> None:
        """Close the connection, and forget what is in it after `linger_ms`."""
        connection, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        if connection is not None:
            if monitor is not None:
                connection.disable_monitor()
            connection.close(linger=linger_ms)
        if monitor is not None:
            monitor.close(linger=0)

    def renew(self) -> None:
        """Begin with a new connection."""
        self.drop()
        self.open()

    def close(self) -> None:
        """Close for good; what was sent may still go out for a second."""
        self.drop(linger_ms=LINGER_MS)
        self._context.term()

    def send(self, parts: wire.Parts) -> bool:
        """Send a message whole, or not at all (False) where the line takes nothing now."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """Return a message that has come, None where there is none."""
        if self._socket is None:
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def wait(self, wake: socket.socket, timeout_s: float, *, to_send: bool) -> None:
        """Wait until something comes, `wake` is written to, or (`to_send`) something can be sent."""
        poller = zmq.Poller()
        poller.register(wake, zmq.POLLIN)
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if to_send else 0))
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        poller.poll(int(timeout_s * 1000))

    def broke(self) -> bool:
        """Read what happened to the connection; return whether it was lost since the last time."""
        lost = False
        while self._monitor is not None and self._monitor.poll(0):
            message = recv_monitor_message(self._monitor)
            event, value = message["event"], message["value"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.refusal = self.trouble = ""
            elif event == zmq.EVENT_DISCONNECTED:
                lost = True
            elif event & HANDSHAKE_FAILED:
                refusal, trouble = why_refused(self.address, event, value, self._security)
                self.refusal, self.trouble = refusal or self.refusal, trouble or self.trouble
        return lost
