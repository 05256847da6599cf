"""A thread that stands still is told once, and only while it has to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from microdiffusion.config.load import load_config
from microdiffusion.daemon.server.daemon import STUCK_S, Daemon

ANYWHERE = "tcp://127.0.0.1:*"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    wire = {f"wire.{name}": ANYWHERE for name in ("data", "status", "control")}
    config = load_config("remote-engine", overrides={"recorder.output": tmp_path, **wire}, environ={})
    made = Daemon(config)
    yield made
    made._ingest.stop()


def gives_sign_of_life(daemon: Daemon) -> bool:
    told: list[str] = []
    daemon._service.alive = told.append  # type: ignore[method-assign]
    daemon._give_sign_of_life(daemon.board.snapshot())
    return bool(told)


def notes(daemon: Daemon) -> list[str]:
    return [note.text for note in daemon.board.snapshot().notes]


def test_an_ingest_thread_that_stands_still_is_told_once_each_time(daemon: Daemon) -> None:
    assert gives_sign_of_life(daemon)
    pulse_s = daemon._ingest.pulse_s
    for _ in range(3):
        daemon._ingest.pulse_s = pulse_s - 2 * STUCK_S
        assert not gives_sign_of_life(daemon)
    assert len(notes(daemon)) == 1
    daemon._ingest.pulse_s = pulse_s
    assert gives_sign_of_life(daemon)
    daemon._ingest.pulse_s = pulse_s - 2 * STUCK_S
    assert not gives_sign_of_life(daemon)
    assert len(notes(daemon)) == 2


def test_an_ingest_thread_that_was_stopped_does_not_stand_still(daemon: Daemon) -> None:
    daemon._close(None, lambda: None)
    daemon._ingest.pulse_s -= 2 * STUCK_S
    assert gives_sign_of_life(daemon)
    assert notes(daemon) == []
