"""The control channel: the few things that may be asked of a running daemon, and nothing else.

The daemon binds a ROUTER; a client asks with `wire.ask`, one `wire.Command`, one `wire.Answer`.
`ControlServer` has no thread: the daemon's main thread polls it a few times a second and executes what is
asked, so a command never meets a daemon in the middle of something. No command names a file, a module or a
program.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import zmq

from microdiffusion import wire
from microdiffusion.errors import AddressError, MddError, WireError
from microdiffusion.wire import Gate, ServerKeys, Value, secure_server, zmq_reason

COMMANDS = {
    "status": "say what the daemon is doing",
    "start": "begin the acquisition that waits for it (acquisition.begin)",
    "pause": "take no further sweep until `go`",
    "go": "continue after a pause",
    "stop": "end the acquisition; what was taken is finished",
    "set": "change a setting that may be changed during a run",
    "mark": "put a remark into the files of the open runs",
    "snapshot": "save the newest volume as a TIFF beside its run file",
}
MOST_AT_ONCE = 64
"""Commands that one poll answers: the daemon has other things to do."""
MAX_COMMAND_BYTES = 64 * 1024
QUEUED_COMMANDS = 16


class BoundSocket:
    """A server socket with a context of its own, as a gate guards one; belongs to the thread that made it.

    `name` is its key below [wire]; a port ``*`` of `address` is resolved in the attribute.

    Raises
    ------
    AddressError
        The address is malformed or its port is taken.
    ConfigError
        Other machines can reach the address, and there are no keys.
    """

    def __init__(
        self, kind: int, name: str, address: str, security: ServerKeys | None, limits: dict[int, int]
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate: Gate | None = None
        self._socket = self._context.socket(kind)
        for option, value in {zmq.LINGER: 200, **limits}.items():
            self._socket.setsockopt(option, value)
        try:
            self._gate = secure_server(self._socket, address, security)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"The {name} address {address} cannot be used ({zmq_reason(error)}): close the other daemon "
                f'there, or add --set "wire.{name}=tcp://127.0.0.1:*" for a free port, and the same for the '
                "other addresses under [wire]."
            ) from error
        except BaseException:
            self.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        """Unbind."""
        self._socket.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()


class ControlServer(BoundSocket):
    """Answers commands; raises as `BoundSocket` does.

    Parameters
    ----------
    execute : callable
        Executes a command and returns the answer's text and values. An `MddError` is a refusal.

    `refused` counts the messages that were dropped, by `wire.Reason`.
    """

    def __init__(
        self,
        address: str,
        execute: Callable[[wire.Command], tuple[str, dict[str, Value]]],
        *,
        security: ServerKeys | None = None,
    ) -> None:
        self._execute = execute
        self.refused: Counter[str] = Counter()
        limits: dict[int, int] = {zmq.RCVHWM: QUEUED_COMMANDS, zmq.SNDHWM: QUEUED_COMMANDS}
        limits[zmq.MAXMSGSIZE] = MAX_COMMAND_BYTES
        super().__init__(zmq.ROUTER, "control", address, security, limits)

    def poll(self) -> None:
        """Execute what was asked since the last call; returns at once where nothing was."""
        for _ in range(MOST_AT_ONCE):
            if not self._socket.poll(0):
                return
            peer, *parts = self._socket.recv_multipart()
            try:
                message = wire.decode(parts)
            except WireError as error:
                self.refused[str(error.reason)] += 1
                continue
            if not isinstance(message, wire.Command):
                self.refused[wire.Reason.KIND.value] += 1
                continue
            answer = self._answer(message)
            with contextlib.suppress(zmq.ZMQError):  # whoever asked is gone
                self._socket.send_multipart([peer, *_encoded(answer)], flags=zmq.NOBLOCK)

    def _answer(self, command: wire.Command) -> wire.Answer:
        ok = False
        values: dict[str, Value] = {}
        if command.command not in COMMANDS:
            text = f"there is no command {command.command!r}: give {', '.join(COMMANDS)}"
        else:
            try:
                text, values = self._execute(command)
                ok = True
            except (MddError, OSError) as error:  # what was asked for failed, and the daemon goes on
                text = str(error)
        return wire.Answer(number=command.number, ok=ok, text=text[:2000], values=values)


def _encoded(answer: wire.Answer) -> list[bytes]:
    try:
        return wire.encode(answer)
    except WireError:  # the names of very many files; the sentence is worth more than silence
        return wire.encode(answer.model_copy(update={"values": {}}))
