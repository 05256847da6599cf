"""The daemon as a service: tells the service manager that it is ready, alive, stopping.

systemd's protocol (sd_notify(3)): one datagram per message to the socket that NOTIFY_SOCKET names. Where
there is no such socket (a terminal, Windows, macOS) every method does nothing. Belongs to the main thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


class ServiceManager:
    """Talks to systemd, where it listens.

    Attributes
    ----------
    interval_s : float or None
        How often systemd wants a sign of life; None where it does not watch.
    """

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self.interval_s = _watchdog_s()
        self._told_s = -float("inf")
        self._status = ""

    def ready(self, status: str) -> None:
        """Say that frames are taken from now on."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """Give a sign of life, when it is time for one; call it only while everything is well."""
        now = time.monotonic()
        # Twice as often as asked for, as sd_watchdog_enabled(3) advises.
        if self.interval_s is not None and now - self._told_s >= self.interval_s / 2:
            self._told_s = now
            self._send("WATCHDOG=1")
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Say that the daemon is closing its files."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._path or not hasattr(socket, "AF_UNIX"):
            return
        # A manager that has gone away must not stop a run.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto("\n".join(lines).encode(), self._path)


def _watchdog_s() -> float | None:
    """Return WATCHDOG_USEC in seconds, None where it is absent or meant for another process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6
