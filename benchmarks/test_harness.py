"""The self-check of the campaigns: what judges must be able to say no. Run with `pytest benchmarks`.

No part of the tests of the product: these look at the helpers in `tests/support` that the campaigns rest on,
and at whether each script of this folder still imports.
"""

from __future__ import annotations

import importlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.bad_line import CUTS, BadLine
from support.fault_checks import Expected, check_frames, check_ledger
from support.fault_stage import Source, Stage, make_source
from support.file_mutations import open_all
from support.load import Latencies, slope_mb_per_min
from support.mdd_process import Mdd
from support.run_file_trials import base_of, check_run, truth, writing
from support.wire_mutations import valid_messages

from microdiffusion import open_run, wire

SCRIPTS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if not path.stem.startswith(("test_", "conftest", "fuzz_coverage"))
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports(name: str) -> None:
    importlib.import_module(name)


# The judges of the fault campaign -----------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


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


# The trials of the run file ------------------------------------------------------------------------


def test_the_trials_notice_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    base = base_of((6, 72, 80))
    with writing(path, (6, 72, 80), 3, {}) as target:
        for sweep in range(3):
            target.write(sweep, truth(sweep + (sweep == 1), base).astype(np.float32))
    written, wrong = check_run(path, base)
    assert written == {0, 1, 2}
    assert wrong == ["sweep 1, level 0", "sweep 1, level 1", "sweep 1, read by h5py"]


def test_a_file_that_takes_its_process_down_is_found(
    recorded: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = recorded[0]
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, sys\n"
        "def die_at(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('killer.h5'):\n"
        "        os._exit(139)\n"
        "sys.addaudithook(die_at)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with h5py.File(tmp_path / "killer.h5", "w") as file:
        file["x"] = 1
    findings = open_all([tmp_path / "killer.h5", sound], tmp_path, sound)
    assert findings.outcomes["crash"] == 1
    assert "ended with 139" in findings.strange[0][1]
    assert findings.outcomes["sound"] == 1, "the next file is opened by a process of its own"


def test_what_is_spoilt_was_valid_before() -> None:
    for message in valid_messages():
        wire.decode(message)


# The load ------------------------------------------------------------------------------------------


def test_a_slope_leaves_the_beginning_out() -> None:
    samples = [(float(at_s), 1, int(1e6 * (100 + min(at_s, 60) + 3.0 * at_s / 60))) for at_s in range(300)]
    assert slope_mb_per_min(samples) == pytest.approx(3.0)


def test_latencies_are_counted_in_bins_of_a_few_per_cent() -> None:
    latencies = Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(1e-3 * milliseconds)
    assert latencies.quantile_ms(0.5) == pytest.approx(500, rel=0.07)
    assert latencies.quantile_ms(1.0) == pytest.approx(1000, rel=0.07)
