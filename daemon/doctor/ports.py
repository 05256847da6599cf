"""Addresses and keys: which ports are free, and who may connect."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from functools import partial

from microdiffusion.addresses import is_loopback
from microdiffusion.config import WireConfig
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.errors import MddError
from microdiffusion.wire import server_security

THEME = "Ports and keys"
_NAMES = ("data", "status", "control")
_PROBE_S = 1.5


def checks(wire: WireConfig) -> list[Check]:
    """Return the checks of this theme."""
    ports = [
        Check(
            THEME, f"wire.{name}", partial(port, f"wire.{name}", getattr(wire, name), try_to_bind, is_daemon)
        )
        for name in _NAMES
    ]
    return [*ports, Check(THEME, "keys", lambda: keys(wire, required_keys))]


def port(
    name: str, address: str, bind: Callable[[str], OSError | None], publishes: Callable[[str], bool]
) -> Finding:
    """Judge an address that a daemon on this computer would listen at."""
    if address.endswith(":*"):
        return ok(f"{address}, any free port")
    error = bind(address)
    if error is None:
        return ok(f"{address} is free")
    if error.errno == errno.EADDRINUSE:
        who = "a running mdd daemon" if name == "wire.status" and publishes(address) else "another program"
        fix = f"Stop it (`{_list_command(address)}` names it), or choose another {name} (port *: a free one)."
        return failure(f"{address} is in use by {who}", fix)
    if error.errno in (errno.EACCES, errno.EPERM):
        return failure(f"{address} is not allowed here", f"Choose a port above 1023 for {name}.")
    fix = f"Correct {name}: its host must be an address of this computer, 127.0.0.1 or 0.0.0.0."
    return failure(f"{address} cannot be used ({error.strerror or error})", fix)


def keys(wire: WireConfig, read: Callable[[WireConfig], tuple[str, ...]]) -> Finding:
    """Judge the keys, where the addresses require any."""
    try:
        names = read(wire)
    except MddError as error:
        return refused(error)
    exposed = [f"wire.{name}" for name in _NAMES if not is_loopback(getattr(wire, name))]
    if not exposed and not wire.encrypt_loopback and wire.server_key is None:
        return ok("not needed: only this computer can reach the daemon")
    if exposed and not names:
        return warning(
            f"{', '.join(exposed)} can be reached from other machines, but none is trusted",
            "Trust the microscope's computer: mdd keys trust NAME KEY (mdd keys show prints its key there).",
        )
    return ok(f"present; trusted: {', '.join(names) or 'nobody'}")


def refused(error: MddError) -> Finding:
    """Return the failure that an error of mdd's own describes: "what is wrong: what to do"."""
    text, _, fix = str(error).partition(": ")
    return failure(text, fix[:1].upper() + fix[1:])


def required_keys(wire: WireConfig) -> tuple[str, ...]:
    """Read the keys that the addresses require, and return the names of the trusted machines.

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


def is_daemon(address: str) -> bool:
    """Return whether a daemon publishes its status at an address of this computer."""
    from microdiffusion.daemon.status import subscribe

    try:
        return is_loopback(address) and next(iter(subscribe(address, _PROBE_S)), None) is not None
    except MddError:
        return False


def _list_command(address: str) -> str:
    number = address.rpartition(":")[2]
    commands = {"win32": f"netstat -ano | findstr :{number}", "darwin": f"lsof -i :{number}"}
    return commands.get(sys.platform, f"ss -ltnp sport = :{number}")
