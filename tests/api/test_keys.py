"""Keys: who is let in, who is not and hears why, and files that are as private as they must be."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from support.wire_support import RUN, make_header, put_all, receiving, sending, wait_until

from microdiffusion import wire
from microdiffusion.addresses import is_loopback
from microdiffusion.config.models import WireConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.errors import AddressError, ConfigError, DependencyError, MissingFileError
from microdiffusion.sender.sender import Sender
from microdiffusion.wire import security as keys

EVERYWHERE = "tcp://*:*"
ELSEWHERE = "tcp://192.0.2.1:5750"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    keys.new_keys(folder)
    return folder


@pytest.fixture
def client(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    keys.new_keys(folder)
    return folder


def client_of(client: Path, server: Path) -> keys.ClientKeys:
    return keys.client_keys(client, keys.public_key(server))


def test_who_is_trusted_gets_frames_through_on_any_address(server: Path, client: Path) -> None:
    keys.trust(server, "scope", keys.public_key(client))
    security = client_of(client, server)
    with (
        receiving(EVERYWHERE, security=keys.server_keys(server)) as receiver,
        sending(receiver.address, security=security) as sender,
    ):
        put_all(sender, range(20))
        assert sender.finish().ended
        assert receiver.seqs == list(range(20))
        receiver.assert_intact()


def test_a_key_is_trusted_and_forgotten_while_the_daemon_runs(server: Path, client: Path) -> None:
    security = client_of(client, server)
    with receiving(security=keys.server_keys(server)) as receiver:
        for trusted in (False, True, False):
            if trusted:
                keys.trust(server, "scope", keys.public_key(client))
            elif "scope" in keys.trusted_keys(server):
                keys.forget(server, "scope")
            with sending(receiver.address, security=security) as sender:
                wait_until(lambda sender=sender: sender.stats.connected or sender._failure is not None)
                assert sender.stats.connected is trusted
                if not trusted:
                    with pytest.raises(AddressError, match="mdd keys trust"):
                        sender.raise_if_failed()


def test_a_daemon_lets_its_own_user_in(server: Path) -> None:
    security = keys.server_keys(server)
    with (
        receiving(security=security) as receiver,
        sending(receiver.address, security=security.as_client()) as sender,
    ):
        assert sender.finish().ended


REFUSALS = [
    pytest.param(True, None, "asks for keys", id="no keys here"),
    pytest.param(False, "server", "has no keys", id="no keys there"),
    pytest.param(True, "client", "perhaps its key is not the one", id="another daemon's key"),
]


@pytest.mark.parametrize(("guarded", "expected_key", "text"), REFUSALS)
def test_who_has_the_wrong_keys_hears_so_within_seconds(
    server: Path, client: Path, guarded: bool, expected_key: str | None, text: str
) -> None:
    keys.trust(server, "scope", keys.public_key(client))
    folders = {"server": server, "client": client}
    security = client_of(client, folders[expected_key]) if expected_key else None
    with (
        receiving(security=keys.server_keys(server) if guarded else None) as receiver,
        sending(receiver.address, security=security) as sender,
    ):
        wait_until(lambda: text in sender.trouble, timeout_s=5.0)
        assert receiver.headers == []


def test_an_unknown_peer_gets_no_answer_at_all(server: Path) -> None:
    with receiving(security=keys.server_keys(server)) as receiver:
        context = zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(receiver.address)
            for _ in range(5):
                socket.send_multipart(wire.encode(wire.RunStart(header=make_header())))
            assert not socket.poll(500)
            assert (receiver.headers, receiver.ingest.refused) == ([], {})
        finally:
            context.destroy(linger=0)


def test_nobody_is_let_in_once_the_gate_is_closed(server: Path) -> None:
    security = keys.server_keys(server)
    context = zmq.Context()
    try:
        router = context.socket(zmq.ROUTER)
        gate = keys.secure_server(router, "tcp://127.0.0.1:*", security)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        gate.close()
        dealer = context.socket(zmq.DEALER)
        keys.secure_client(dealer, f"tcp://127.0.0.1:{port}", security.as_client())
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"hello")
        assert not router.poll(500)
    finally:
        context.destroy(linger=0)


def test_without_keys_no_other_machine_is_talked_to() -> None:
    with pytest.raises(ConfigError, match="mdd keys new"):
        Sender(ELSEWHERE, make_header(), buffer_bytes=1 << 20).start()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:5750", True),
        ("tcp://127.9.8.7:*", True),
        ("tcp://localhost:5750", True),
        ("tcp://[::1]:5750", True),
        ("inproc://status", True),
        ("tcp://*:5750", False),
        ("tcp://0.0.0.0:5750", False),
        ("tcp://[::]:5750", False),
        ("tcp://192.168.0.4:5750", False),
        ("tcp://localhost.example.org:5750", False),
        ("tcp://127.0.0.1.example.org:5750", False),
        ("tcp://127.0.0.1:0;192.168.0.4:5750", False),
        ("tcp://eth0:5750", False),
        ("nonsense", False),
    ],
)
def test_loopback_is_told_from_everything_else(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_the_configuration_says_where_keys_are_needed(server: Path, client: Path) -> None:
    public = keys.public_key(server)
    plain = WireConfig(keys=client)
    known = WireConfig(keys=client, server_key=public)
    strict = WireConfig(keys=client, encrypt_loopback=True)
    assert keys.client_security(plain, "tcp://127.0.0.1:5750") is None
    assert keys.server_security(plain, "tcp://127.0.0.1:5750") is None
    assert keys.client_security(known, ELSEWHERE) == client_of(client, server)
    assert keys.client_security(strict, "tcp://127.0.0.1:5750") == keys.server_keys(client).as_client()
    assert keys.client_security(plain, "tcp://*:5750") == keys.server_keys(client).as_client()
    assert keys.server_security(plain, "tcp://*:5750") == keys.server_keys(client)
    assert keys.server_security(strict, "tcp://127.0.0.1:5750") == keys.server_keys(client)
    with pytest.raises(ConfigError, match=r"wire\.server_key"):
        keys.client_security(plain, ELSEWHERE)
    # A daemon's own driver is let in with the daemon's own keys, whatever address it is bound to.
    assert keys.own_security(plain, "tcp://127.0.0.1:5750") is None
    for kind, address in ((strict, "tcp://127.0.0.1:5750"), (plain, ELSEWHERE), (plain, "tcp://0.0.0.0:1")):
        assert keys.own_security(kind, address) == keys.server_keys(client).as_client()


def test_missing_keys_are_said_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="mdd keys new"):
        keys.server_security(WireConfig(keys=tmp_path), "tcp://*:5750")


@pytest.mark.skipif(sys.platform == "win32", reason="rights of files are of another kind there")
def test_the_secret_is_readable_by_its_owner_alone(server: Path) -> None:
    secret = server / keys.SECRET
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.server_keys(server)


def test_secrets_are_not_in_what_is_printed(server: Path) -> None:
    security = keys.server_keys(server)
    assert security.secret not in repr(security)
    assert security.secret not in repr(security.as_client())


def test_keys_that_are_no_pair_are_refused(server: Path, client: Path) -> None:
    (server / keys.PUBLIC).write_text(keys.public_key(client))
    with pytest.raises(ConfigError, match="not a pair"):
        keys.server_keys(server)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_that_is_no_name_of_a_file_is_refused(server: Path, client: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="A name has"):
        keys.trust(server, name, keys.public_key(client))


@pytest.mark.parametrize("text", ["", "short", "x" * 41, "ü" * 40, "g" * 64, "ab" * 31])
def test_what_is_no_key_is_not_trusted(server: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="64 digits"):
        keys.trust(server, "scope", text)


def test_a_damaged_file_among_the_trusted_locks_out_nobody_else(server: Path, client: Path) -> None:
    keys.trust(server, "scope", keys.public_key(client))
    (server / keys.TRUSTED / "broken.public").write_bytes(b"\xff\x00")
    assert keys.trusted_keys(server) == {"scope": keys.public_key(client)}


AWKWARD = "-$&>#(!%^)*?<[]{}@=+vx1sh)2n$&=&>#!%a%b%"
"""A key in ZeroMQ's own encoding, of characters that shells read as theirs."""


def test_what_is_printed_means_the_same_in_every_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zmq.curve_keypair", lambda: (AWKWARD.encode(), b"c" * 40))
    there, here = (f"wire.keys={tmp_path / name}" for name in ("there", "here"))
    assert main(["keys", "new", "--set", there]) == 0
    said = capsys.readouterr().out
    line = next(line.strip() for line in said.splitlines() if line.lstrip().startswith("mdd keys trust"))
    # Letters, digits, dots, dashes and underscores: plain words to bash, PowerShell and cmd.
    assert re.fullmatch(r"[\w. -]+", line, re.ASCII)
    bash = shutil.which("bash")
    if bash is not None:
        parrot = f"mdd() {{ printf '%s\\n' \"$@\"; }}; {line}"
        heard = subprocess.run([bash, "-c", parrot], capture_output=True, text=True, check=True).stdout
        assert heard.split("\n")[:-1] == shlex.split(line)[1:]
    assert main([*shlex.split(line)[1:], "--set", here]) == 0
    assert list(keys.trusted_keys(tmp_path / "here").values()) == [AWKWARD]
    assert (tmp_path / "there" / keys.SECRET).read_text().strip() == "c" * 40


@pytest.mark.parametrize("suffix", ["", "\n"])
def test_a_key_is_trusted_from_either_encoding_and_from_a_file(
    server: Path, client: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys.public_key(client)
    shown = keys.readable(key)
    (tmp_path / "mailed.txt").write_text(shown + suffix)
    forms = [key, shown, shown.upper(), str(client / keys.PUBLIC), str(tmp_path / "mailed.txt")]
    for number, form in enumerate(forms):
        # ZeroMQ's own writing may begin with a dash
        words = ["keys", "trust", "--set", f"wire.keys={server}", "--", f"scope{number}", form]
        assert main(words) == 0
    assert list(keys.trusted_keys(server).values()) == [key] * len(forms)
    assert client_of(client, server) == keys.client_keys(client, keys.readable(keys.public_key(server)))
    assert keys.ServerKeys("", "", server).trusts(key)


def test_the_command_makes_shows_trusts_lists_and_forgets(
    tmp_path: Path, client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mdd(*arguments: str, code: int = 0) -> str:
        assert main(["keys", *arguments, "--set", f"wire.keys={tmp_path / 'mine'}"]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    public = mdd("new").splitlines()[0]
    assert mdd("show").strip() == public
    assert "holds keys already" in mdd("new", code=2)
    other = keys.readable(keys.public_key(client))
    mdd("trust", "scope", other)
    mdd("trust", "scope", other)
    assert "another key" in mdd("trust", "scope", public, code=2)
    assert mdd("list").split() == ["scope", other]
    mdd("forget", "scope")
    assert mdd("list") == ""
    assert "Nobody called 'scope'" in mdd("forget", "scope", code=2)


def test_a_run_of_a_trusted_sender_is_resumed_after_its_daemon_restarts(server: Path, client: Path) -> None:
    keys.trust(server, "scope", keys.public_key(client))
    with receiving(security=keys.server_keys(server)) as first:
        address = first.address
        with sending(address, security=client_of(client, server)) as sender:
            put_all(sender, range(5))
            wait_until(lambda: sender.stats.acknowledged == 5)
            first.stop()
            put_all(sender, range(5, 10))
            with receiving(address, security=keys.server_keys(server)) as second:
                assert sender.finish().ended
                assert second.seqs == list(range(5, 10))
                assert second.headers[0].run_id == RUN


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("inner", [".", keys.TRUSTED])
def test_a_folder_of_keys_that_others_may_write_is_refused(server: Path, client: Path, inner: str) -> None:
    keys.trust(server, "scope", keys.public_key(client))
    (server / inner).chmod(0o777)
    for read in (keys.server_keys, keys.trusted_keys):
        with pytest.raises(ConfigError, match=r"Others may write into the folder of the keys .*chmod go-w"):
            read(server)
    (server / inner).chmod(0o755)
    assert keys.trusted_keys(server)


def test_a_zeromq_without_encryption_is_named(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    with pytest.raises(DependencyError, match="pip install --upgrade pyzmq"):
        keys.new_keys(client / "others")
