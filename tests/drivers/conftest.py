"""What tests of several drivers are given: a stand-in for the daemon, watchers, a stand-in for the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.driver_support import Daemon, Outbox, Watch

from microdiffusion.config import Config
from microdiffusion.drivers.passive import watch as watching
from microdiffusion.drivers.process import DriverProcess
from microdiffusion.drivers.sending import DriverTask


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@pytest.fixture
def start(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[[Config], DriverProcess]]:
    """Start drivers that are ended with the test, whatever it does."""
    drivers: list[DriverProcess] = []

    def starter(config: Config) -> DriverProcess:
        driver = DriverProcess(config, daemon.address, log=tmp_path / "driver.log")
        driver.start()
        drivers.append(driver)
        return driver

    yield starter
    for driver in drivers:
        driver.stop(timeout_s=1.0)


@pytest.fixture
def watch(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watch]]:
    """Start watchers that end with the test, whatever it does."""
    monkeypatch.setattr(watching, "SETTLE_S", 0.2)
    monkeypatch.setattr(watching, "LOOK_S", 0.05)
    started: list[Watch] = []

    def start(place: Path, **options: Any) -> Watch:
        started.append(Watch(place, options.pop("address", daemon.address), **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def outbox(monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Stand in for the sender of whatever is attached."""
    outbox = Outbox()
    monkeypatch.setattr(DriverTask, "open_sender", lambda *_, **__: outbox)
    return outbox
