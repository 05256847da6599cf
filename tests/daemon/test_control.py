"""The control channel: a few commands of known names, and nothing else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from microdiffusion import wire
from microdiffusion.addresses import reached
from microdiffusion.daemon.control import ControlServer
from microdiffusion.daemon.status import StatusPublisher, subscribe
from microdiffusion.errors import AcquisitionError, AddressError, ConfigError, UserError
from microdiffusion.wire import ask
from microdiffusion.wire.messages import Value
from microdiffusion.wire.security import ServerKeys

ANYWHERE = "tcp://127.0.0.1:*"


class Served:
    """A control server that a thread polls."""

    def __init__(self, security: ServerKeys | None = None) -> None:
        self.heard: list[tuple[str, str, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(security,))
        self._listening = threading.Event()
        self._thread.start()
        assert self._listening.wait(10)

    def _run(self, security: ServerKeys | None) -> None:
        self.server = ControlServer(ANYWHERE, self._obey, security=security)
        self._listening.set()
        while not self._over.wait(0.01):
            self.server.poll()
        self.server.close()

    def _obey(self, command: wire.Command) -> tuple[str, dict[str, Value]]:
        self.heard.append((command.command, command.key, command.value))
        if command.command == "pause":
            raise UserError("No run is open.")
        if command.command == "start":
            raise AcquisitionError("The microscope did not start.")
        if command.command == "snapshot":
            raise OSError("no thread can be had")
        if command.command == "mark":
            return "too much", {f"run_{number}": "x" * 2000 for number in range(200)}
        return "done", {"frames": 3}

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def test_a_command_is_carried_out_and_answered(served: Served) -> None:
    answer = ask(served.server.address, "set", key="engine.steps", value="2")
    assert (answer.text, answer.values) == ("done", {"frames": 3})
    assert served.heard == [("set", "engine.steps", "2")]


@pytest.mark.parametrize("command", ["exec", "", "start; rm", "__import__"])
def test_anything_else_is_refused_and_reaches_nobody(served: Served, command: str) -> None:
    with pytest.raises(UserError, match="there is no command"):
        ask(served.server.address, command)
    assert served.heard == []


def test_what_cannot_be_done_now_is_said(served: Served) -> None:
    with pytest.raises(UserError, match="No run is open"):
        ask(served.server.address, "pause")


@pytest.mark.parametrize(
    ("command", "says"), [("start", "The microscope did not start"), ("snapshot", "no thread can be had")]
)
def test_what_fails_is_said_and_ends_nothing(served: Served, command: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ask(served.server.address, command)
    assert ask(served.server.address, "go").ok


def test_more_than_an_answer_holds_is_answered_without_it(served: Served) -> None:
    answer = ask(served.server.address, "mark")
    assert (answer.text, answer.values) == ("too much", {})


def test_what_is_no_command_is_counted_and_not_answered(served: Served) -> None:
    send: Callable[[list[bytes]], None]
    with zmq.Context.instance().socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(served.server.address)
        send = peer.send_multipart
        for parts in (
            [b"x"],
            [b"{}", b"1234"],
            [b""] * 5,
            wire.encode(wire.RunEnd(run="0" * 32, announced=0, dropped=0)),
        ):
            send(parts)
        assert ask(served.server.address, "status").ok  # it lives
        assert peer.poll(50) == 0
    assert sum(served.server.refused.values()) == 4


def test_nobody_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match="No daemon answered"):
        ask("tcp://127.0.0.1:1", "status", timeout_s=0.2)


@pytest.mark.parametrize(
    ("address", "says"),
    [("tcp://127.0.0.1:1", r"--address\)?\.$"), ("tcp://192.0.2.1:1", "mdd keys trust")],
    ids=["here", "elsewhere"],
)
def test_silence_from_another_machine_may_be_distrust(address: str, says: str) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = ServerKeys(public, secret).as_client()
    with pytest.raises(UserError, match=says):
        ask(address, "status", security=keys, timeout_s=0.2)
    with pytest.raises(UserError, match=says):
        next(subscribe(address, 0.2, security=keys))


def test_a_daemon_that_asks_for_keys_is_told_from_none() -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    guard = ServerKeys(public, secret)
    began_s = time.monotonic()
    server = ControlServer(ANYWHERE, lambda command: ("", {}), security=guard)
    with contextlib.closing(server), pytest.raises(UserError, match=r"asks for keys: set wire\.server_key"):
        ask(server.address, "status", timeout_s=10.0)
    refused = pytest.raises(UserError, match=r"asks for keys: set wire\.server_key")
    with StatusPublisher(ANYWHERE, security=guard) as publisher, refused:
        next(subscribe(publisher.address, 10.0))
    assert time.monotonic() - began_s < 8.0


def test_an_address_for_others_needs_keys() -> None:
    with pytest.raises(ConfigError, match="mdd keys new"):
        ControlServer("tcp://0.0.0.0:*", lambda command: ("", {}))
    with pytest.raises(ConfigError, match="mdd keys"):
        ask("tcp://192.0.2.1:5752", "status")


def test_what_listens_on_all_interfaces_is_reached_on_this_one() -> None:
    assert reached("tcp://0.0.0.0:5752") == "tcp://127.0.0.1:5752"
    assert reached("tcp://10.0.0.0:5752") == "tcp://10.0.0.0:5752"


def test_a_port_that_is_taken_is_one_sentence(served: Served) -> None:
    with pytest.raises(AddressError, match="cannot be used"):
        ControlServer(served.server.address, lambda command: ("", {}))


def test_strangers_get_nothing() -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    served = Served(ServerKeys(public, secret))
    try:
        with pytest.raises(UserError, match="asks for keys"):
            ask(served.server.address, "status")
        assert ask(served.server.address, "status", security=ServerKeys(public, secret).as_client()).ok
        assert served.heard == [("status", "", "")]
    finally:
        served.close()
