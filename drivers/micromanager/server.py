"""Handshake with Micro-Manager's pycro-manager server, with a timeout.

The bridge of pycromanager (PyJavaZ) waits for ever if something else listens at the port, and only warns if
the server has another version of the protocol. So we connect first, send the same request, and wait a limited
time for the answer. Any thread.
"""

from __future__ import annotations

import json
import re
import socket
from enum import Enum

import zmq

from microdiffusion.errors import AcquisitionError

HOST = "127.0.0.1"
"""The only address that PyJavaZ uses."""
TIMEOUT_S = 3.0
_BEFORE_VERSIONS = "2.0.0"
_JAVA_CLASSES = re.compile(r"^(?:(?:[\w$]+\.)+[\w$]*(?:Exception|Error|Throwable)[\w$]*(?::\s*|$))+")

_TRACE = re.compile(r"at |\.\.\. |[\w$./@<>-]+\([^()]*\)$")
"""Lines of a Java trace: as Java prints them, or as the server does."""


def server_menu(port: int) -> str:
    """Return instructions to start a server at `port`."""
    return f"start Micro-Manager and tick Tools > Options > Run pycro-manager server on port {port}"


class PortFinding(Enum):
    """Finding at a port: nobody, somebody who does not answer, something else, the server."""

    NOBODY = 0
    SILENCE = 1
    OTHER = 2
    SERVER = 3


def look(port: int, timeout_s: float) -> tuple[PortFinding, str]:
    """Return what answers at `port` of this computer, and its protocol version if it is the server."""
    try:
        socket.create_connection((HOST, port), timeout=timeout_s).close()
    except OSError:
        return PortFinding.NOBODY, ""
    request: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    with request:
        request.setsockopt(zmq.LINGER, 0)
        request.connect(f"tcp://{HOST}:{port}")
        request.send(json.dumps({"command": "connect", "debug": False}).encode("iso-8859-1"))
        if not request.poll(int(1000 * timeout_s)):
            return PortFinding.SILENCE, ""
        try:
            reply = json.loads(request.recv_multipart()[0].decode("iso-8859-1"))
        except ValueError:
            return PortFinding.OTHER, ""
    if not isinstance(reply, dict) or "type" not in reply:
        return PortFinding.OTHER, ""
    return PortFinding.SERVER, str(reply.get("version", _BEFORE_VERSIONS))


def ask_server(port: int) -> str:
    """Return the protocol version of the server at `port` of this computer.

    Raises
    ------
    AcquisitionError
        Nothing listens there, or something else does.
    """
    answer, protocol = look(port, TIMEOUT_S)
    if answer is PortFinding.NOBODY:
        raise AcquisitionError(
            f"No pycro-manager server answers at port {port} of this computer: {server_menu(port)}, or set "
            "acquisition.port to the port shown there."
        )
    if answer is not PortFinding.SERVER:
        raise AcquisitionError(
            f"What listens at port {port} does not answer as a pycro-manager server does: "
            f"{server_menu(port)}, and see that no other program uses that port."
        )
    return protocol


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


def message_of(error: BaseException) -> str:
    """Return the innermost message of an error of the core, or of Java: one line, without class names."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    lines = [line for number, line in enumerate(lines) if not (number and _TRACE.match(line))]
    chain = [line.removeprefix("Caused by:").strip() for line in lines if line.startswith("Caused by:")]
    for line in (*reversed(chain), *lines):
        if message := _JAVA_CLASSES.sub("", line):
            return message.rstrip(".")
    return lines[0].rpartition(".")[2] if lines else type(error).__name__


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
