"""The sender of a driver, with the buffers, journal and keys of the configuration. No state; any thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.errors import ConfigError
from microdiffusion.paths import journal_folder
from microdiffusion.sender import Sender, SenderStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.header import RunHeader
    from microdiffusion.wire import ClientKeys

FINISH_S = 6.0
"""How long the end of a run may take to deliver what is left; what then remains goes to the journal."""
STATS_S = 1.0
"""How often the counters are told."""


def open_sender(
    config: Config,
    address: str,
    header: RunHeader,
    security: ClientKeys | None,
    *,
    first_seq: int = 0,
    journal: bool = True,
) -> Sender:
    """Return a sender, not started, with the buffers, the journal and the keys of the configuration.

    Parameters
    ----------
    first_seq : int
        The lowest number of its frames.
    journal : bool
        False for frames that lie on a disk already: they can wait there.

    Raises
    ------
    ConfigError, WireError
        See `Sender`.
    """
    return Sender(
        address,
        header,
        buffer_bytes=int(config.wire.send_buffer_mb * 1e6),
        journal=(config.wire.journal or journal_folder()) if journal else None,
        journal_bytes=int(config.wire.journal_gb * 1e9),
        security=security,
        first_seq=first_seq,
    )


def require_port(address: str) -> None:
    """Raise `ConfigError` where `address` leaves the port to whoever listens there."""
    if address.endswith(":*"):
        raise ConfigError(
            f"The daemon has a port, {address} names none: give one, as in tcp://127.0.0.1:5750."
        )


class SenderProgress:
    """Tells a sender's counters now and then, and what stands in its way; for one thread."""

    def __init__(
        self, sender: Sender, note: Callable[[str], None], on_stats: Callable[[SenderStats], None] | None
    ) -> None:
        self._sender, self._note, self._on_stats = sender, note, on_stats
        self._told_s = -float("inf")
        self._trouble = ""

    def __call__(self) -> None:
        """Tell, if it is time."""
        if time.monotonic() - self._told_s < STATS_S:
            return
        self._told_s = time.monotonic()
        if self._on_stats is not None:
            self._on_stats(self._sender.stats)
        before, self._trouble = self._trouble, self._sender.trouble
        if self._trouble and self._trouble != before:
            self._note(self._trouble)
