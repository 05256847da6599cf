"""Addresses and keys: whether the ports are free, and who may come in."""

from __future__ import annotations

import errno
import re
import socket
import sys
from collections.abc import Callable

from microdiffusion.config import Config, WireConfig
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.run import Check
from microdiffusion.errors import MddError
from microdiffusion.wire import is_loopback, server_security

THEME = "Ports and keys"
_NAMES = ("data", "status", "control")
_PROBE_S = 1.5


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    wire = config.wire

    def port_check(name: str) -> Check:
        address = str(getattr(wire, name))
        return Check(
            THEME,
            f"wire.{name}",
            lambda: port(f"wire.{name}", address, try_to_bind, lambda: holder(address, wire)),
        )

    return [*(port_check(name) for name in _NAMES), Check(THEME, "keys", lambda: keys(wire, need_keys))]


def port(name: str, address: str, bind: Callable[[str], OSError | None], who: Callable[[], str]) -> Finding:
    """Judge an address that a daemon here would listen at."""
    if address.endswith(":*"):
        return ok(name, f"{address}, whichever port is free")
    error = bind(address)
    if error is None:
        return ok(name, f"{address} is free")
    if error.errno == errno.EADDRINUSE:
        found = who()
        return failure(
            name,
            f"{address} is in use by {found or 'another program'}",
            f"End it, or give another {name} (port * takes a free one); `{_list_command(address)}` names it.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return failure(name, f"{address} is not allowed here", f"Give a port above 1023 in {name}.")
    return failure(
        name,
        f"{address} cannot be used ({error.strerror or error})",
        f"Correct {name}: its host is an address of this computer, 127.0.0.1 or 0.0.0.0.",
    )


def keys(wire: WireConfig, ask: Callable[[WireConfig], tuple[str, ...]]) -> Finding:
    """Judge the keys, where the addresses ask for any."""
    try:
        names = ask(wire)
    except MddError as error:
        found, _, cure = str(error).partition(": ")
        return failure("keys", found, cure[:1].upper() + cure[1:])
    open_to = [f"wire.{name}" for name in _NAMES if not is_loopback(getattr(wire, name))]
    if not open_to and not wire.encrypt_loopback and wire.server_key is None:
        return ok("keys", "not needed: only this computer can reach the daemon")
    if open_to and not names:
        return warning(
            "keys",
            f"{', '.join(open_to)} can be reached from elsewhere, but nobody is trusted",
            "Let the microscope's computer in: mdd keys trust NAME KEY (mdd keys show says it there).",
        )
    return ok("keys", f"there, {len(names)} others trusted" + (f" ({', '.join(names)})" if names else ""))


def need_keys(wire: WireConfig) -> tuple[str, ...]:
    """Read the keys that the addresses ask for, and return the names of those that are let in.

    Raises
    ------
    ConfigError, MissingFileError
        They are missing, or others can read them.
    """
    from microdiffusion.paths import keys_folder
    from microdiffusion.wire import client_security, trusted_keys

    for name in _NAMES:
        server_security(wire, getattr(wire, name))
    client_security(wire, wire.data)
    return tuple(trusted_keys(wire.keys or keys_folder()))


def try_to_bind(address: str) -> OSError | None:
    """Return why `address` cannot be listened at, None where it can."""
    host, _, number = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":  # there it would take a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("" if host == "*" else host, int(number)))
            probe.listen(1)
    except OSError as error:
        return error
    return None


def holder(address: str, wire: WireConfig) -> str:
    """Return who listens at `address`, as far as it can be told; empty where it cannot."""
    if address == wire.status and is_loopback(address) and _is_daemon(address):
        return "a running mdd daemon"
    try:
        import psutil
    except ImportError:
        return ""
    number = int(address.rpartition(":")[2])
    try:
        for line in psutil.net_connections("tcp"):
            if line.laddr and line.laddr.port == number and line.status == psutil.CONN_LISTEN and line.pid:
                return f"{psutil.Process(line.pid).name()} (process {line.pid})"
    except psutil.Error:
        return ""
    return ""


def _is_daemon(address: str) -> bool:
    from microdiffusion.daemon.status import subscribe

    try:
        return next(iter(subscribe(address, _PROBE_S)), None) is not None
    except MddError:
        return False


def _list_command(address: str) -> str:
    number = re.sub(r".*:", "", address)
    if sys.platform == "win32":
        return f"netstat -ano | findstr :{number}"
    return f"lsof -i :{number}" if sys.platform == "darwin" else f"ss -ltnp sport = :{number}"
