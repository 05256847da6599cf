"""Acquire on this machine for a daemon on another one, until Ctrl-C or the last sweep.

  mdd acquire --config my.toml --address tcp://ENGINE:5750
  mdd acquire --config passive --set acquisition.watch=D:/data    follow what Micro-Manager saves

The configuration is that of a microscope: [acquisition], [sweep], [volume], [camera]. What an interrupted
acquisition has left in its journal is delivered first. Ctrl-C ends in good order; a second one at once. Exit
code 3 where frames were lost, or wait in the journal for `mdd deliver`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import AcquisitionError, ConfigError
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
"""How long the driver may take to end in good order."""
HURRIED_S = 1.0
"""How much longer where that did not do, or the user asks twice."""

logger = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config_options(parser)
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.data")
    parser.add_argument(
        "--log", type=options.file, metavar="FILE", help="what camera libraries print; left out: driver.log"
    )


def run(args: Namespace) -> int:
    """Deliver what is left over, then acquire."""
    wish = StopRequest()
    with wish.heard():  # loading takes a second, and a stop is one from now on
        return _acquire(args, wish)


def _acquire(args: Namespace, wish: StopRequest) -> int:
    config = options.config_from(args, {"wire.data": args.address})
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
    _deliver_leftovers(config, address, security, wish)
    if wish.is_set():
        return 0
    driver = DriverProcess(config, address, log=args.log or _log_file(), security=security)
    driver.start()
    try:
        _watch(driver, wish.is_set)
        if driver.alive:
            logger.info("stopping; once more for at once")
            driver.ask_to_stop()
            deadline_s = time.monotonic() + STOP_S
            _watch(driver, lambda: wish.hurry or time.monotonic() > deadline_s)
    finally:
        driver.stop(HURRIED_S)
        _tell(driver)
    driver.raise_if_failed()
    return _verdict(driver.stats)


def _log_file() -> Path | None:
    """Return where the driver's process writes; None where that is not possible."""
    from microdiffusion.paths import journal_folder

    folder = journal_folder().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / "driver.log"


def _deliver_leftovers(config: Config, address: str, security: ClientKeys | None, wish: StopRequest) -> None:
    """Deliver what interrupted acquisitions have left here, or say why that has to wait."""
    from microdiffusion.errors import AddressError
    from microdiffusion.paths import journal_folder
    from microdiffusion.sender import deliver

    folder = config.wire.journal or journal_folder()
    try:
        for delivered in deliver(folder, address, security=security, stop=wish.is_set):
            logger.info("left over from earlier: %s", delivered)
    except AddressError as error:  # the daemon may come later: the camera does not wait for it
        logger.warning("what is left over from earlier waits in %s: %s", folder, error)


def _watch(driver: DriverProcess, is_enough: Callable[[], bool]) -> None:
    """Log what the driver tells, and its counters, until it ends or `is_enough`."""
    told_s = time.monotonic()
    while driver.alive and not is_enough():
        time.sleep(TICK_S)
        _tell(driver)
        if time.monotonic() - told_s >= STATS_S:
            told_s = time.monotonic()
            if driver.stats is not None:
                logger.info(_line(driver.stats))


def _tell(driver: DriverProcess) -> None:
    for text in driver.take_notes():
        logger.info(text)


def _line(stats: SenderStats) -> str:
    return (
        f"connected={'yes' if stats.connected else 'no'} frames={stats.put} "
        f"acknowledged={stats.acknowledged} dropped={stats.dropped} refused={stats.refused} "
        f"resent={stats.resent} journaled={stats.journaled} buffered_mb={stats.buffered_bytes / 1e6:.1f}"
    )


def _verdict(stats: SenderStats | None) -> int:
    """Log what became of the frames; 0 where the daemon has all of them.

    Raises
    ------
    AcquisitionError
        It has not.
    """
    if stats is None:
        logger.info("no images came")
        return 0
    logger.info(_line(stats))
    if stats.unsent:
        left = count_noun(stats.unsent, "frame was not delivered and is", "frames were not delivered and are")
        raise AcquisitionError(f"{left} in the journal: run `mdd deliver` when the daemon is there again.")
    lost = stats.dropped + stats.refused + stats.waiting + stats.on_the_way
    if lost:
        raise AcquisitionError(
            f"{count_noun(lost, 'frame')} did not reach the daemon ({stats.dropped} dropped, {stats.refused} "
            "refused): see the lines above, and give wire.send_buffer_mb or wire.journal_gb more room."
        )
    return 0
