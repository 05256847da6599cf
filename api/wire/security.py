"""Keys: this machine's own, those that it trusts, and sockets that ask for them.

CURVE (ZeroMQ's own: Curve25519, each message encrypted and authenticated) between daemon and driver. A folder
holds one pair for this user on this machine, used on either side, and the public keys of the others:

    mdd.public   mdd.secret   trusted/NAME.public

People see a public key as 64 hexadecimal digits, which every shell leaves alone; ZeroMQ and this code use
Z85.

Invariants: on any address but loopback a socket without keys is refused before it binds or connects; a
server socket admits only keys that are in the folder *now* (keys may be trusted and forgotten while it
runs), and none at all once its `Gate` is closed. The secret file is readable by its owner alone.
A `Gate` owns one thread and is the owner's to close; everything else may be called from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.base import Authenticator
from zmq.utils import z85

from microdiffusion.addresses import is_loopback
from microdiffusion.config import WireConfig
from microdiffusion.errors import AddressError, ConfigError, DependencyError, MissingFileError
from microdiffusion.paths import keys_folder
from microdiffusion.text import command_line

PUBLIC = "mdd.public"
SECRET = "mdd.secret"  # noqa: S105  # the name of a file
TRUSTED = "trusted"
_DIGITS = re.compile(r"[0-9A-Fa-f]{64}")
_ADDRESS = re.compile(r"tcp://[^\s;]+:(\d+|\*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOMAIN = "mdd"
_TICK_MS = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """A client's keys: the daemon's public key and a pair of its own; Z85 text of 40 characters each."""

    server_key: str
    public: str
    secret: str = field(repr=False)

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket`, not connected yet, speak to that daemon alone."""
        socket.curve_serverkey = self.server_key.encode()
        socket.curve_publickey = self.public.encode()
        socket.curve_secretkey = self.secret.encode()


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A daemon's keys: a pair of its own, and the keys that it trusts.

    Attributes
    ----------
    public, secret : str
        Z85 text of 40 characters each.
    folder : Path or None
        Where the trusted keys are looked up at each connection; None: its own are the only ones.
    """

    public: str
    secret: str = field(repr=False)
    folder: Path | None = None

    def trusts(self, key: str) -> bool:
        """Return whether the owner of the public key `key` is let in."""
        return key == self.public or (self.folder is not None and key in trusted_keys(self.folder).values())

    def as_client(self) -> ClientKeys:
        """Return keys for a client of this daemon that runs on its own machine, for its own user."""
        return ClientKeys(self.public, self.public, self.secret)

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket`, not bound yet, ask for keys; `secure_server` also admits peers."""
        socket.curve_server = True
        socket.curve_publickey = self.public.encode()
        socket.curve_secretkey = self.secret.encode()
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        # Without this, ZeroMQ admits anyone who knows the public key when no handler answers for the domain.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Gate:
    """Decides who is let in to the server sockets of one context; close it before the context is terminated.

    Without arguments, a gate that does nothing.
    """

    def __init__(self, context: zmq.Context[Any] | None = None, keys: ServerKeys | None = None) -> None:
        self._keys = keys
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        if context is not None and keys is not None:
            self._authenticator = Authenticator(context)
            self._authenticator.configure_curve_callback(_DOMAIN, credentials_provider=self)
            self._authenticator.start()
            self._thread = threading.Thread(target=self._run, name="mdd-gate", daemon=True)
            self._thread.start()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the owner of `key` is let in; called by the authenticator."""
        return self._keys is not None and self._keys.trusts(key.decode())

    def close(self) -> None:
        """Admit no one any more; harmless when called again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        # pyzmq's own thread for this needs an event loop that Windows does not have by default.
        loop = asyncio.new_event_loop()
        requests = self._authenticator.zap_socket
        try:
            while not self._stopping.is_set():
                if requests.poll(_TICK_MS):
                    message = requests.recv_multipart()
                    try:
                        loop.run_until_complete(self._authenticator.handle_zap_message(message))
                    except Exception:  # an unreadable folder, say: this peer is refused, the next may not be
                        _log.exception("A connection was turned away because its key could not be looked up.")
        finally:
            self._authenticator.stop()
            loop.close()


def secure_server(socket: zmq.Socket[Any], address: str, keys: ServerKeys | None) -> Gate:
    """Prepare a server socket for `address`, before it binds; one guarded socket for each context.

    Returns the gate, to be closed before the context is terminated.

    Raises
    ------
    ConfigError
        There are no keys, but other machines can reach the address.
    """
    if keys is None:
        require_loopback(address)
        return Gate()
    keys.apply(socket)
    return Gate(socket.context, keys)


def secure_client(socket: zmq.Socket[Any], address: str, keys: ClientKeys | None) -> None:
    """Prepare a client socket for `address`, before it connects; errors as of `secure_server`."""
    if keys is None:
        require_loopback(address)
    else:
        keys.apply(socket)


def require_loopback(address: str) -> None:
    """Raise where `address`, to be used without keys, is not on this machine alone.

    Raises
    ------
    ConfigError, AddressError
        Other machines can reach it, or be reached by it; it is malformed.
    """
    if not is_loopback(address):
        if not _ADDRESS.fullmatch(address):
            raise AddressError(f"Expected an address such as tcp://127.0.0.1:5750, not {address!r}.")
        raise ConfigError(
            f"Without keys {address!r} would be open to everybody on the network: run `mdd keys new` on both "
            "machines and `mdd keys trust` on the daemon's, or use tcp://127.0.0.1."
        )


def when_elsewhere(address: str) -> str:
    """Return a hint to add to "no daemon answered": on other machines, strangers get no answer either."""
    if is_loopback(address):
        return ""
    return "; elsewhere it answers only whom it trusts (`mdd keys trust` there, wire.server_key here)"


def client_security(wire: WireConfig, address: str) -> ClientKeys | None:
    """Return the keys for a connection to the daemon at `address`; None: it needs none.

    Raises
    ------
    ConfigError, MissingFileError
        It needs some, and there are none, or the daemon's public key is not known.
    """
    if is_loopback(address) and not wire.encrypt_loopback and wire.server_key is None:
        return None
    folder = wire.keys or keys_folder()
    if wire.server_key is not None:
        return client_keys(folder, wire.server_key)
    if is_loopback(address) or re.match(r"tcp://(\*|0\.0\.0\.0):", address):
        return server_keys(folder).as_client()
    raise ConfigError(
        f"The daemon at {address!r} is on another machine and its public key is not known: set "
        "wire.server_key to what `mdd keys show` says there."
    )


def server_security(wire: WireConfig, address: str) -> ServerKeys | None:
    """Return the keys that a socket bound to `address` asks for; None: it needs none.

    Raises
    ------
    ConfigError, MissingFileError
        It needs some, and there are none.
    """
    if is_loopback(address) and not wire.encrypt_loopback:
        return None
    return server_keys(wire.keys or keys_folder())


def own_security(wire: WireConfig, address: str) -> ClientKeys | None:
    """Return the keys of a daemon's own driver for its `address`; errors as of `server_security`."""
    keys = server_security(wire, address)
    return None if keys is None else keys.as_client()


def new_keys(folder: Path) -> str:
    """Make this machine's pair of keys in `folder` and return the public one.

    Raises
    ------
    ConfigError
        There is one already: replacing it would lock out everybody who trusts it.
    """
    if (folder / SECRET).exists():
        raise ConfigError(
            f"{folder} holds keys already: `mdd keys show` says the public one; delete {SECRET} and {PUBLIC} "
            "there to make new ones, which everybody then has to trust again."
        )
    _require_curve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    # Created as private: a file that is made private afterwards was readable for a moment.
    with open(os.open(folder / SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    (folder / PUBLIC).write_text(readable(public) + "\n", encoding="ascii")
    return public


def readable(key: str) -> str:
    """Return a public key as people copy it: 64 hexadecimal digits, nothing that a shell would interpret."""
    return z85.decode(key).hex()


def public_key(folder: Path) -> str:
    """Return this machine's public key.

    Raises
    ------
    MissingFileError, ConfigError
        There is none; the file does not hold one.
    """
    return _read_key(folder / PUBLIC)


def server_keys(folder: Path) -> ServerKeys:
    """Return this machine's keys, for a daemon; errors as of `public_key`."""
    return ServerKeys(*_read_pair(folder), folder)


def client_keys(folder: Path, server_key: str) -> ClientKeys:
    """Return this machine's keys with the public key of a daemon; errors as of `public_key`."""
    return ClientKeys(_checked_key(server_key, "wire.server_key"), *_read_pair(folder))


def trust(folder: Path, name: str, key: str) -> None:
    """Let the owner of the public key `key`, or of the one in the file `key`, in from now on, under `name`.

    Raises
    ------
    ConfigError
        The name or the key is malformed, or the name is taken by another key.
    """
    path = _trusted_path(folder, name)
    try:
        key = _checked_key(key, "the key")
    except ConfigError:
        if not os.path.isfile(key):  # pathlib's raises where the text is too long for a name
            raise
        key = _read_key(Path(key))
    known = trusted_keys(folder).get(name)
    if known not in (None, key):
        raise ConfigError(f"{name!r} is trusted with another key: `mdd keys forget {name}` first.")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(readable(key) + "\n", encoding="ascii")


def forget(folder: Path, name: str) -> None:
    """Let `name` in no more; an open connection is not cut.

    Raises
    ------
    ConfigError
        Nobody of that name is trusted.
    """
    path = _trusted_path(folder, name)
    if not path.exists():
        known = ", ".join(trusted_keys(folder)) or "nobody"
        raise ConfigError(f"Nobody called {name!r} is trusted here (trusted: {known}).")
    path.unlink()


def trusted_keys(folder: Path) -> dict[str, str]:
    """Return name and public key of those who are let in; files that hold no key are skipped."""
    _require_own(folder)
    keys = {}
    for path in sorted((folder / TRUSTED).glob("*.public")):
        with suppress(ConfigError, OSError):
            keys[path.stem] = _read_key(path)
    return keys


def _trusted_path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"A name has letters, digits, dots, dashes and underscores, 64 at most, not {name!r}: shorten it."
        )
    return folder / TRUSTED / f"{name}.public"


def _require_own(folder: Path) -> None:
    """Refuse folders of keys that others may write: they could put a key of theirs there."""
    for each in (folder, folder / TRUSTED):
        if sys.platform != "win32" and each.is_dir() and each.stat().st_mode & 0o022:
            raise ConfigError(
                f"Others may write into the folder of the keys {each}: run "
                f"`{command_line('chmod', 'go-w', each)}`."
            )


def _require_curve() -> None:
    if not zmq.has("curve"):
        raise DependencyError("This pyzmq cannot encrypt: install its wheel, `pip install --upgrade pyzmq`.")


def _read_pair(folder: Path) -> tuple[str, str]:
    _require_curve()
    _require_own(folder)
    public = _read_key(folder / PUBLIC)
    path = folder / SECRET
    secret = _read_key(path)
    if sys.platform != "win32" and path.stat().st_mode & 0o077:
        command = command_line("chmod", "600", path)
        raise ConfigError(f"Others may read the secret key {path}: run `{command}`.")
    if zmq.curve_public(secret.encode()).decode() != public:
        raise ConfigError(f"{PUBLIC} and {SECRET} in {folder} are not a pair: delete both, `mdd keys new`.")
    return public, secret


def _read_key(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise MissingFileError(f"There is no key {path}: make this machine's with `mdd keys new`.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The key {path} cannot be read: {error}.") from None
    return _checked_key(text, str(path))


def _checked_key(text: str, where: str) -> str:
    """Return a key in Z85, given in Z85 (40 characters) or as `readable` writes it."""
    text = text.strip()
    if _DIGITS.fullmatch(text):
        return str(z85.encode(bytes.fromhex(text)).decode())
    try:
        if len(z85.decode(text)) == 32:
            return text
    except (ValueError, KeyError, struct.error):  # another length, or characters that it has no value for
        pass
    raise ConfigError(
        f"A key is 64 digits from 0 to f, {where} holds {len(text)} characters: copy it once more."
    )
