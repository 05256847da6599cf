"""Whatever breaks while a daemon runs, its files are closed in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sample_data import write_sample

from microdiffusion import open_run
from microdiffusion.config.models import Config, EngineConfig, RecorderConfig, WireConfig
from microdiffusion.daemon.server import daemon as daemon_module
from microdiffusion.daemon.status import StatusPublisher
from microdiffusion.drivers.replay import open_source, replay


@pytest.mark.parametrize("again", [False, True], ids=["once", "for good"])
def test_a_status_that_cannot_be_told_costs_the_order_of_no_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    broken: list[int] = []

    def publish(self: StatusPublisher, snapshot: Any) -> None:
        if snapshot.frames.received > 3 and (again or not broken):
            broken.append(1)
            raise RuntimeError("no status today")

    monkeypatch.setattr(StatusPublisher, "publish", publish)

    def feed(address: str, stop: Callable[[], bool]) -> None:
        with open_source(write_sample(tmp_path / "sample.h5", sweeps=60)) as source:
            replay(source, address, rate_hz=20, stop=stop)

    daemon = daemon_module.Daemon(
        Config(
            engine=EngineConfig(method="linear", device="cpu", threads=1),
            recorder=RecorderConfig(output=tmp_path / "runs"),
            wire=WireConfig(**dict.fromkeys(("data", "status", "control"), "tcp://127.0.0.1:*")),
        ),
        volumes=None,
        duration_s=None,
        feed=feed,
    )
    with pytest.raises(RuntimeError, match="no status today"):
        daemon.serve(dashboard=False)
    assert len(broken) == 1 or again
    told = [note.text for note in daemon.board.snapshot().notes if "status cannot be told" in note.text]
    assert len(told) == again, "hidden from nobody, and said once"
    (path,) = (tmp_path / "runs").glob("*.h5")
    with open_run(path) as run:
        assert run.closed
        assert run.ledger.complaint() == ""
        assert run.ledger.received > 3
