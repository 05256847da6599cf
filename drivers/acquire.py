"""The driver that `acquisition.driver` names, imported when it is wanted. No state; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.drivers.sending import FINISH_S
from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import ResumeFrom
    from microdiffusion.sender import SenderStats
    from microdiffusion.wire import ClientKeys


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
        from microdiffusion.drivers.passive import watch

        return watch.acquire
    import pycromanager  # noqa: F401 here rather than when the camera is opened: it is slow

    from microdiffusion.drivers.micromanager import acquisition as micromanager

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
