"""Addresses that only this machine can reach. Pure functions, safe on any thread."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Return whether only this machine can be at the other end of `address` (``tcp://HOST:PORT``)."""
    scheme, _, rest = address.partition("://")
    return scheme in ("inproc", "ipc") or _is_this_machine(rest.rpartition(":")[0])


def reached(address: str) -> str:
    """Return the address by which this machine reaches what listens at `address`, on all interfaces perhaps.

    Windows does not do that by itself.
    """
    return address.replace("//0.0.0.0:", "//127.0.0.1:")


def loopback(address: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT", where the host is this machine to itself.

    Port 0 takes a free one.

    Raises
    ------
    ValueError
        It is no such address, or other machines can reach it.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected an address like 127.0.0.1:9464")
    if not _is_this_machine(host):
        raise ValueError(
            "other machines could reach this address, and the figures have no keys: give 127.0.0.1:PORT, "
            "and let an agent or an SSH tunnel on this machine carry them on"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
