"""Where a daemon's own frames come from: the driver's process, or a function on a thread.

A daemon may have no source of its own and wait for senders on the wire. All methods are for the main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.wire import own_security

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom

Feed = Callable[[str, Callable[[], bool]], object]
"""Sends frames to an address until done, or until the second argument says stop; runs on a thread."""

STOP_S = 10.0
"""How long a source may take to deliver its last frames and say `end`."""


class Source(Protocol):
    """Where frames come from, as far as the daemon minds."""

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self, timeout_s: float = ...) -> None:
        """Deliver what there is, say `end`, and be gone."""
        ...

    def take_notes(self) -> list[str]:
        """Return what the source has told since the last call."""
        ...

    def raise_if_failed(self) -> None:
        """Raise what ended it early."""
        ...


class FeedThread:
    """A `Source` that runs a function on a thread of the daemon (the replay of a file)."""

    def __init__(self, feed: Feed, address: str) -> None:
        self._feed = feed
        self._address = address
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-feed", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it still sends."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask it to stop, and wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def take_notes(self) -> list[str]:
        """Return nothing: a replay has nothing to tell."""
        return []

    def raise_if_failed(self) -> None:
        """Raise what ended it early."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._feed(self._address, self._stopping.is_set)
        except MddError as error:
            self._failure = error
        except Exception as error:  # the main thread hears of it
            self._failure = AcquisitionError(f"The replay broke off ({type(error).__name__}: {error}).")
            self._failure.__cause__ = error


def open_source(
    config: Config, address: str, *, feed: Feed | None = None, resume: ResumeFrom | None = None
) -> Source | None:
    """Return the daemon's own source, not started; None where it waits for senders.

    Parameters
    ----------
    address
        Where the daemon takes frames.
    feed
        Sends the frames instead of the configured driver.
    resume
        Where an acquisition goes on that was cut off.
    """
    if feed is not None:
        return FeedThread(feed, address)
    if config.acquisition.driver == "none":
        return None
    # Only here: a daemon without a driver of its own pays for no import of it.
    from microdiffusion.drivers.process import DriverProcess

    return DriverProcess(
        config,
        address,
        log=config.recorder.output / "driver.log",
        resume=resume,
        security=own_security(config.wire, address),
    )
