"""Acquire on this machine for a daemon on another, until Ctrl-C or the last sweep.

  mdd acquire --config my.toml --address tcp://ENGINE:5750
  mdd acquire --config passive --set acquisition.watch=D:/data
                                         follow what Micro-Manager saves

The configuration is that of a microscope: [acquisition], [sweep], [volume],
[camera]. First, frames that an earlier acquisition left in its journal are
delivered. Ctrl-C stops cleanly, a second Ctrl-C at once. Exit code 3 if frames
were lost, or wait in the journal for `mdd deliver`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import AcquisitionError, AddressError, ConfigError
from microdiffusion.paths import journal_folder
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.drivers.process import DriverProcess
    from microdiffusion.sender import SenderStats
    from microdiffusion.wire import ClientKeys

STATS_S = 10.0
TICK_S = 0.1
STOP_S = 20.0
"""Time that the driver gets for a clean shutdown."""
HURRIED_S = 1.0
"""Time that it gets afterwards, or after a second Ctrl-C."""

logger = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config(parser)
    options.add(parser, "--address tcp://HOST:PORT", "the daemon's wire.data", key="wire.data")
    options.add(parser, "--log FILE", "output of camera libraries; default: driver.log", options.file)


def run(args: Namespace) -> int:
    """Deliver what is left over, then acquire."""
    stop = StopRequest()
    with stop.heard():  # loading takes a second, and a signal counts from now on
        return _acquire(args, stop)


def _acquire(args: Namespace, stop: StopRequest) -> int:
    config = options.config_from(args)
    address = config.wire.data
    if config.acquisition.driver == "none":
        raise ConfigError(
            'There is nothing to acquire with acquisition.driver = "none": set it to "micromanager" or '
            '"watch", or give the microscope\'s configuration with --config.'
        )
    from microdiffusion.drivers.process import DriverProcess
    from microdiffusion.drivers.sending import require_port
    from microdiffusion.wire import client_security

    require_port(address)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    security = client_security(config.wire, address)
    _deliver_leftovers(config, address, security, stop)
    if stop.is_set():
        return 0
    driver = DriverProcess(config, address, log=args.log or _log_file(), security=security)
    driver.start()
    try:
        _watch(driver, stop.is_set)
        if driver.alive:
            logger.info("stopping; press Ctrl-C again to stop at once")
            driver.ask_to_stop()
            deadline_s = time.monotonic() + STOP_S
            _watch(driver, lambda: stop.hurry or time.monotonic() > deadline_s)
    finally:
        driver.stop(HURRIED_S)
        _log_notes(driver)
    driver.raise_if_failed()
    _judge(driver.stats)
    return 0


def _log_file() -> Path | None:
    """Return where the driver's process writes; None where that is not possible."""
    folder = journal_folder().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / "driver.log"


def _deliver_leftovers(config: Config, address: str, security: ClientKeys | None, stop: StopRequest) -> None:
    """Deliver what interrupted acquisitions left here, or log why it has to wait."""
    from microdiffusion.sender import deliver

    folder = config.wire.journal or journal_folder()
    try:
        for delivered in deliver(folder, address, security=security, stop=stop.is_set):
            logger.info("left over from earlier: %s", delivered)
    except AddressError as error:  # the daemon may start later: the camera does not wait for it
        logger.warning("frames left over from earlier stay in %s: %s", folder, error)


def _watch(driver: DriverProcess, is_enough: Callable[[], bool]) -> None:
    """Log the driver's notes and counters until it ends or `is_enough`."""
    logged_s = time.monotonic()
    while driver.alive and not is_enough():
        time.sleep(TICK_S)
        _log_notes(driver)
        if time.monotonic() - logged_s >= STATS_S:
            logged_s = time.monotonic()
            if driver.stats is not None:
                logger.info(_counters(driver.stats))


def _log_notes(driver: DriverProcess) -> None:
    for text in driver.take_notes():
        logger.info(text)


def _counters(stats: SenderStats) -> str:
    return (
        f"connected={'yes' if stats.connected else 'no'} frames={stats.put} "
        f"acknowledged={stats.acknowledged} dropped={stats.dropped} refused={stats.refused} "
        f"resent={stats.resent} journaled={stats.journaled} buffered_mb={stats.buffered_bytes / 1e6:.1f}"
    )


def _judge(stats: SenderStats | None) -> None:
    """Log what became of the frames.

    Raises
    ------
    AcquisitionError
        The daemon does not have all of them.
    """
    if stats is None:
        logger.info("no images came")
        return
    logger.info(_counters(stats))
    if stats.unsent:
        left = count_noun(stats.unsent, "frame was not delivered and is", "frames were not delivered and are")
        raise AcquisitionError(f"{left} in the journal: run `mdd deliver` when the daemon is back.")
    lost = stats.dropped + stats.refused + stats.waiting + stats.on_the_way
    if lost:
        raise AcquisitionError(
            f"{count_noun(lost, 'frame')} did not reach the daemon ({stats.dropped} dropped, {stats.refused} "
            "refused): see the lines above; where the buffer was full, raise wire.send_buffer_mb or "
            "wire.journal_gb."
        )
