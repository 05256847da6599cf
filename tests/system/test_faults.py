"""A few faults of each sort, played through the real command; `benchmarks/faults.py` plays hundreds."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.bad_line import CUTS, BadLine
from support.fault_checks import Expected, check_frames, check_ledger
from support.fault_scenarios import KINDS, play
from support.fault_stage import Source, Stage, make_source
from support.mdd_process import Mdd

from microdiffusion import open_run

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups"),
]

PLAYED = (
    *(("kill-daemon", 1), ("kill-driver", 2), ("kill-engine", 3), ("kill-demo-daemon", 1)),
    *(("cut", 1), ("disk-full", 1), ("lost-frames", 1)),
)
"""One of each sort, in under a minute; the rest is for the benchmark."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.mark.acquisition
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), PLAYED, ids=[f"{kind} {seed}" for kind, seed in PLAYED])
def test_a_fault_loses_nothing_that_is_not_in_the_ledger(
    kind: str, seed: int, tmp_path: Path, sources: Path
) -> None:
    outcome = play(kind, seed, tmp_path / "stage", sources, longest_cut_s=3.0)
    assert outcome.problems == (), outcome.facts


def test_every_fault_of_the_list_has_a_scenario() -> None:
    assert set(KINDS) >= {kind for kind, _ in PLAYED}
    assert len(set(KINDS.values())) == len(KINDS)


# What judges must be able to say no ---------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    """Return a run file, and the source that it was made of."""
    folder = tmp_path_factory.mktemp("recorded")
    source = make_source(sources, sweeps=3, edge=32, slices=16)
    output = folder / "runs"
    arguments = ("replay", source.path, "--serve", "--output", output, "--set", "engine.method=linear")
    with Mdd(*arguments, folder=folder) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = output.glob("*.h5")
    return path, source


def _judge(path: Path, source: Source) -> list[str]:
    with open_run(path, check=False) as run:
        return [*check_frames(run, source), *check_ledger(run, Expected(source))]


def _spoilt(recorded: tuple[Path, Source], folder: Path, name: str, index: object, value: object) -> Path:
    path = folder / "run.h5"
    path.write_bytes(recorded[0].read_bytes())
    with h5py.File(path, "r+", locking=False) as file:
        file[name][index] = value
    return path


def test_a_sound_run_is_not_complained_about(recorded: tuple[Path, Source]) -> None:
    assert _judge(*recorded) == []


@pytest.mark.parametrize(
    ("name", "index", "value", "complaint"),
    [
        pytest.param("projections", (1, 2, 3, 4), 9, "not the source's", id="a pixel"),
        pytest.param("mdd/frames/seq", (1, 2), 0, "there twice", id="a number twice"),
        pytest.param("mdd/frames/z_um", (1, 2), np.nan, "frames in the file", id="a frame that is not there"),
        pytest.param("mdd/ledger", 0, 99, "announced is not", id="the ledger"),
    ],
)
def test_what_is_wrong_is_found(
    recorded: tuple[Path, Source], tmp_path: Path, name: str, index: object, value: object, complaint: str
) -> None:
    problems = _judge(_spoilt(recorded, tmp_path, name, index, value), recorded[1])
    assert any(complaint in text for text in problems), problems


def test_a_process_that_outlives_its_stage_is_found(tmp_path: Path, sources: Path) -> None:
    source = make_source(sources, sweeps=3, edge=32, slices=16)
    with Stage(tmp_path / "stage", "left") as stage:
        waiting = stage.replay(source, 1.0)  # for a daemon that never comes
        stage.until(lambda: bool(stage.left(0)), "a process")
        assert "replay" in stage.left(0)[0]
        waiting.send(signal.SIGKILL)
        waiting.finish(10)
        assert stage.left(10) == []


# The line -----------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a server that says everything back."""
    server = socket.create_server(("127.0.0.1", 0))

    def say_back(line: socket.socket) -> None:
        with line:
            try:
                while block := line.recv(1000):
                    line.sendall(block)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=say_back, args=(line,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def _connect(line: BadLine) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=0.3)


def _asked(connection: socket.socket) -> bytes:
    connection.sendall(b"ping")
    return connection.recv(100)


@pytest.mark.parametrize("how", CUTS)
def test_a_cut_line_carries_nothing_and_a_mended_one_everything(echo: int, how: str) -> None:
    with BadLine(echo) as line, _connect(line) as connection:
        assert _asked(connection) == b"ping"
        line.cut(how)
        try:
            silent = _asked(connection) == b""  # closed
        except OSError:  # broken, or no answer in time
            silent = True
        assert silent
        line.mend()
        if how == "silence":
            assert connection.recv(100) == b"ping"  # late, not lost
        with _connect(line) as another:
            assert _asked(another) == b"ping"


def test_a_line_turns_bits_over_and_counts_them(echo: int) -> None:
    with BadLine(echo, seed=1) as line, _connect(line) as connection:
        line.flip_every(500)
        connection.sendall(bytes(20_000))
        came = b""
        deadline_s = time.monotonic() + 10
        while len(came) < 20_000 and time.monotonic() < deadline_s:
            came += connection.recv(20_000)
        # A bit may be turned over and back, on the way there and on the way here.
        assert 0 < sum(byte.bit_count() for byte in came) <= line.flipped
