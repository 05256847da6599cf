"""Which addresses only this machine can reach. A pure function."""

from __future__ import annotations

import ipaddress


def loopback(address: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT", where the host is this machine to itself.

    Port 0 takes a free one.

    Raises
    ------
    ValueError
        It is no such address, or other machines can reach it.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected an address like 127.0.0.1:9464")
    if host != "localhost":
        try:
            here = ipaddress.ip_address(host).is_loopback
        except ValueError:
            here = False
        if not here:
            raise ValueError(
                "other machines could reach this address, and the figures have no keys: give 127.0.0.1:PORT, "
                "and let an agent or an SSH tunnel on this machine carry them on"
            )
    return host, int(port)
