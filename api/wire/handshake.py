"""Failed handshakes in words: ZeroMQ is silent where one side lacks the right keys. Any thread."""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from microdiffusion.wire.security import ClientKeys

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MECHANISM_MISMATCH = 0x11000002
"""ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: one side asks for keys, the other has none."""


def why_refused(address: str, event: int, value: int, keys: ClientKeys | None) -> tuple[str, str]:
    """Return why a client with `keys` is refused until keys are changed, and what is only suspected."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return (
            f"The daemon at {address} does not trust this machine's key: run "
            "`mdd keys trust NAME KEY` there, with the key that `mdd keys show` says here."
        ), ""
    if value == _MECHANISM_MISMATCH and keys is None:
        return (
            f"The daemon at {address} asks for keys: set wire.server_key to what `mdd keys show` "
            "says on its machine."
        ), ""
    if value == _MECHANISM_MISMATCH:
        return (
            f"The daemon at {address} has no keys: run `mdd keys new` there and set "
            "wire.encrypt_loopback, or leave wire.server_key out here."
        ), ""
    if keys is None:
        return "", ""
    return "", (
        f"The daemon at {address} breaks the connection off: perhaps its key is not the one in "
        "wire.server_key (`mdd keys show` says it there)."
    )


class HandshakeWatch:
    """Watches the handshakes of a client socket, from before it connects; belongs to the socket's thread."""

    def __init__(self, socket: zmq.Socket[Any], address: str, keys: ClientKeys | None) -> None:
        self._socket, self._address, self._keys = socket, address, keys
        self._monitor = socket.get_monitor_socket(HANDSHAKE_FAILED)

    def refusal(self) -> str:
        """Return why the daemon refuses, as far as known by now; "" where it does not."""
        said = ""
        while self._monitor.poll(0):
            message = recv_monitor_message(self._monitor)
            said = "".join(why_refused(self._address, message["event"], message["value"], self._keys))
        return said

    def close(self) -> None:
        """Stop watching; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
