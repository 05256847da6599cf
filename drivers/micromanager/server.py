"""Handshake with Micro-Manager's pycro-manager server, with a timeout.

The bridge of pycromanager (PyJavaZ) waits for ever if something else listens at the port, and only warns if
the server has another version of the protocol. So we connect first, send the same request, and wait a limited
time for the answer. Any thread.
"""

from __future__ import annotations

import json
import socket

import zmq

from microdiffusion.errors import AcquisitionError

HOST = "127.0.0.1"
"""The only address that PyJavaZ uses."""
TIMEOUT_S = 3.0
_BEFORE_VERSIONS = "2.0.0"


def server_menu(port: int) -> str:
    """Return instructions to start a server at `port`."""
    return f"start Micro-Manager and tick Tools > Options > Run pycro-manager server on port {port}"


def ask_server(port: int) -> str:
    """Return the protocol version of the server at `port` of this computer.

    Raises
    ------
    AcquisitionError
        Nothing listens there, or something else does.
    """
    try:
        socket.create_connection((HOST, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        raise AcquisitionError(
            f"No pycro-manager server answers at port {port} of this computer: {server_menu(port)}, or set "
            "acquisition.port to the port shown there."
        ) from error
    reply = _connect(port)
    if not isinstance(reply, dict) or "type" not in reply:
        raise AcquisitionError(
            f"What listens at port {port} does not answer as a pycro-manager server does: "
            f"{server_menu(port)}, and see that no other program uses that port."
        )
    return str(reply.get("version", _BEFORE_VERSIONS))


def expected_version() -> str:
    """Return the protocol version of the installed PyJavaZ; empty if it has none."""
    from pyjavaz import bridge

    return str(getattr(bridge.Bridge, "_EXPECTED_ZMQ_SERVER_VERSION", ""))


def check_version(answered: str, expected: str) -> None:
    """Raise `AcquisitionError` if the major versions of the two ends of the bridge differ."""
    if expected and answered.partition(".")[0] != expected.partition(".")[0]:
        older = "Micro-Manager" if _numbers(answered) < _numbers(expected) else "pycromanager"
        raise AcquisitionError(
            f"Micro-Manager's pycro-manager server has protocol version {answered}, pycromanager here "
            f"has {expected}: update {older} (a nightly build of Micro-Manager 2.0; python -m pip install "
            "--upgrade pycromanager)."
        )


def _connect(port: int) -> object:
    with zmq.Context() as context, context.socket(zmq.REQ) as request:
        request.setsockopt(zmq.LINGER, 0)
        request.connect(f"tcp://{HOST}:{port}")
        request.send(json.dumps({"command": "connect", "debug": False}).encode("iso-8859-1"))
        if not request.poll(int(1000 * TIMEOUT_S)):
            return None
        try:
            reply: object = json.loads(request.recv_multipart()[0].decode("iso-8859-1"))
        except ValueError:
            return None
        return reply


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
