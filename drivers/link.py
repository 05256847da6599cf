"""A driver's end of the line: the sender as the configuration wants it, and who drives for which setting.

`open_sender` is the one place where the configuration's buffers, journal folder and keys meet `Sender`;
`acquire` finds the driver that `acquisition.driver` names. No state; any thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.errors import ConfigError
from microdiffusion.folders import journal_folder
from microdiffusion.sender import Sender, SenderStats

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.keys import ClientKeys
    from microdiffusion.run_header import RunHeader

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


class Teller:
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


def load_driver(config: Config) -> Callable[..., SenderStats | None]:
    """Return the `acquire` of the driver that the configuration names, imported: which takes a while.

    Raises
    ------
    ConfigError
        The configuration names none.
    """
    if config.acquisition.driver == "none":
        raise ConfigError(
            'There is nothing to acquire with acquisition.driver = "none": set it to "micromanager" or '
            '"watch".'
        )
    if config.acquisition.driver == "watch":
        from microdiffusion.drivers import watch

        return watch.acquire
    import pycromanager  # noqa: F401 here rather than when the camera is opened: it is slow

    from microdiffusion.drivers import micromanager

    return micromanager.acquire


def acquire(
    config: Config,
    address: str,
    *,
    stop: threading.Event,
    note: Callable[[str], None] = lambda _: None,
    resume: ResumeFrom | None = None,
    security: ClientKeys | None = None,
    patience_s: Callable[[], float] = lambda: FINISH_S,
    on_stats: Callable[[SenderStats], None] | None = None,
) -> SenderStats | None:
    """Run the driver that `acquisition.driver` names; see `micromanager.acquire` and `watch.acquire`.

    Raises
    ------
    ConfigError
        The configuration names no driver.
    MddError
        Whatever the driver raises.
    """
    return load_driver(config)(
        config,
        address,
        stop=stop,
        note=note,
        resume=resume,
        security=security,
        patience_s=patience_s,
        on_stats=on_stats,
    )
