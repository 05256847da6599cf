"""What tests of several drivers are given: a stand-in for the daemon, watchers, a stand-in for the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.driver_support import Daemon, Outbox, Watch

from microdiffusion.drivers.passive import watch as watching
from microdiffusion.drivers.sending import DriverTask


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.stop()


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
