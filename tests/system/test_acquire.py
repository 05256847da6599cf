"""`mdd acquire`: the driver by itself, for a daemon on another machine."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.driver_support import FOLLOWED, Daemon, DatasetWriter, image_of
from support.mdd_process import Mdd, free_port

from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.drivers.sending import FINISH_S
from microdiffusion.errors import UserError

SMALL = """
    [acquisition]
    exposure_ms = 2
    specimen = true
    sweeps = {sweeps}
    [camera]
    width = 64
    height = 48
    [specimen]
    neurons = 1
    vessels = 1
    nuclei = 2
    [volume]
    shape_z = 24
    [sweep]
    hold_out_every = 0
    [wire]
    journal = "journal"
"""
FRAMES = 4 + 3
"""Of two sweeps."""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@pytest.fixture
def acquire(tmp_path: Path) -> Iterator[Callable[..., Mdd]]:
    """Start `mdd acquire` with a configuration; whatever is left of it ends with the test."""
    started: list[Mdd] = []

    def start(address: str, text: str = SMALL, sweeps: int = 2) -> Mdd:
        (tmp_path / "my.toml").write_text(text.replace("{sweeps}", str(sweeps)))
        log = tmp_path / "driver.log"
        mdd = Mdd("acquire", "--config", "my.toml", "--address", address, "--log", log, folder=tmp_path)
        started.append(mdd)
        return mdd

    yield start
    for mdd in started:
        mdd.__exit__(None, None, None)


@pytest.mark.acquisition
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C goes to the console there")
def test_ctrl_c_ends_it_in_good_order(daemon: Daemon, acquire: Callable[..., Mdd]) -> None:
    mdd = acquire(daemon.address, sweeps=100_000)
    mdd.wait_for(lambda: len(daemon.frames) >= 5)
    mdd.send(signal.SIGINT, group=True)
    assert mdd.finish(timeout_s=20.0) == 0
    (end,) = daemon.ends
    assert (end.reason, end.announced) == ("stopped", len(daemon.frames))
    assert mdd.orphans() == []


@pytest.mark.acquisition
def test_what_a_daemon_that_was_away_has_missed_comes_first_the_next_time(
    acquire: Callable[..., Mdd],
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    first = acquire(address)
    assert first.finish() == 3
    assert f"mdd: {FRAMES} frames were not delivered and are in the journal: run `mdd deliver`" in first.err
    with Daemon(address) as daemon:
        second = acquire(address)
        assert second.finish() == 0
        assert f"left over from earlier: run 'run': {FRAMES} of {FRAMES} frames delivered" in second.err
        assert len(daemon.frames) == 2 * FRAMES
        assert [end.reason for end in daemon.ends] == ["delivered from the journal", "finished"]
        assert daemon.headers[0].run_id != daemon.headers[-1].run_id
        assert "virtual specimen" in second.err
        line = rf"frames={FRAMES} acknowledged={FRAMES} dropped=0 refused=0 .* journaled=0 buffered_mb=0.0"
        assert re.search(line, second.err)
        assert second.out == ""
        assert second.orphans() == []


def test_a_data_set_is_brought_in(tmp_path: Path, daemon: Daemon, acquire: Callable[..., Mdd]) -> None:
    writer = DatasetWriter(tmp_path)
    for time_point in range(3):
        for z in range(4):
            writer.put(image_of(time_point, z))
    writer.finish()
    mdd = acquire(daemon.address, FOLLOWED)
    assert mdd.finish() == 0
    assert len(daemon.frames) == 12
    assert "the data set run_1 has ended (finished)" in mdd.err
    assert daemon.headers[0].voxel_size_um == (2.0, 0.25, 0.25)


def test_a_daemon_whose_driver_left_images_out_ends_with_exit_code_3(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    for place in ("A", "B"):  # one after the other, and neither is configured
        for time_point in range(2):
            for z in range(4):
                writer.put(image_of(time_point, z, position=place))
    writer.finish()
    (tmp_path / "my.toml").write_text(FOLLOWED + 'silent_s = 2\n[engine]\nmethod = "linear"\n')
    ports = [
        word for name in ("data", "status", "control") for word in ("--set", f"wire.{name}=tcp://127.0.0.1:*")
    ]
    mdd = Mdd("serve", "--config", "my.toml", *ports, "--output", "out", folder=tmp_path)
    assert mdd.finish() == 3
    assert "2 volumes" in mdd.out
    assert mdd.err.splitlines()[-1].startswith("mdd: 8 images or frames are in no run file")


def test_a_daemon_that_turns_the_run_away_is_quoted(
    tmp_path: Path, daemon: Daemon, acquire: Callable[..., Mdd], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = DatasetWriter(tmp_path)
    for z in range(4):
        writer.put(image_of(0, z))
    writer.finish()

    def refuse(*_: object) -> object:
        raise UserError("this disk is for others")

    monkeypatch.setattr(daemon.ingest, "_on_start", refuse)
    mdd = acquire(daemon.address, FOLLOWED)
    assert mdd.finish() == 3
    assert mdd.err.splitlines()[-1].startswith("mdd: ")
    assert "this disk is for others" in mdd.err


REFUSED = {
    "no driver": ('[acquisition]\ndriver = "none"\n', "tcp://127.0.0.1:5750", "nothing to acquire"),
    "no port": ("", "tcp://127.0.0.1:*", "names no port"),
    "no keys": ("", "tcp://192.0.2.7:5750", "wire.server_key"),
    "no folder": (
        '[acquisition]\ndriver = "watch"\nwatch = "nowhere"\n',
        "tcp://127.0.0.1:9",
        "nowhere does",
    ),
}


@pytest.mark.parametrize(("text", "address", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_the_user_can_mend_is_said_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    address: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(text + '[wire]\njournal = "journal"\n')
    assert main(["acquire", "--config", "my.toml", "--address", address, "--log", "driver.log"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said


@pytest.mark.acquisition
def test_a_second_ctrl_c_does_not_wait_for_a_daemon_that_is_away(acquire: Callable[..., Mdd]) -> None:
    mdd = acquire(f"tcp://127.0.0.1:{free_port()}", sweeps=100_000)
    mdd.wait_for(lambda: "virtual specimen" in mdd.err)
    mdd.send(signal.SIGTERM)
    mdd.wait_for(lambda: "stopping" in mdd.err)
    mdd.send(signal.SIGTERM)
    began_s = time.monotonic()
    assert mdd.finish(timeout_s=15.0) == 3
    assert time.monotonic() - began_s < FINISH_S
    assert mdd.orphans() == []
