"""The whole daemon through the real command: the demo, replays, remote senders, stops and kills."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from support.demo import DEMO, demo, engine, settings
from support.ingest_support import Peer
from support.mdd_process import Mdd, free_port, port_is_free
from support.sample_data import SHAPE, write_sample
from support.wire_support import make_header

from microdiffusion import open_run, wire
from microdiffusion.daemon.status import subscribe
from microdiffusion.files.projections import open_projections
from microdiffusion.runfile.reader import Run
from microdiffusion.runfile.schema import SERVED, Status
from microdiffusion.wire.security import new_keys

if TYPE_CHECKING:
    from system.conftest import FinishedDemo

# Two processes that import torch, on whatever else the machine has to do.
pytestmark = pytest.mark.timeout(300)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="posix signals")
slow = pytest.mark.slow


def ports_of(arguments: list[object]) -> list[int]:
    return [int(match[1]) for word in arguments if (match := re.fullmatch(r"wire.*:(\d+)", str(word)))]


def run_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.h5"))


def written_in(folder: Path) -> int:
    """Return how many volumes the run of a folder has, 0 while there is no file."""
    files = run_files(folder)
    if not files:
        return 0
    with open_run(files[0]) as run:
        return int(np.count_nonzero(run.status == Status.WRITTEN))


def assert_closed_and_whole(run: Run, volumes: int) -> None:
    assert run.closed
    assert (run.status == Status.WRITTEN).tolist() == [True] * volumes
    ledger = run.ledger
    assert ledger.announced == ledger.received == frames_in(run)
    assert (ledger.missing, ledger.dropped_by_sender, ledger.refused, ledger.unplaced) == (0, 0, 0, 0)


def assert_closed(run: Run) -> None:
    """All that was acquired is there, and reconstructed except what a busy engine had no time for."""
    assert run.closed
    ledger = run.ledger
    assert ledger.announced == ledger.received == frames_in(run)
    assert Status.WRITTEN in run.status
    assert set(run.status) <= {Status.WRITTEN, Status.SKIPPED}


def frames_in(run: Run) -> int:
    return int(np.isfinite(run.values("frames/z_um")).sum())


@pytest.mark.acquisition
def test_the_demo_ends_well_and_says_where_in_three_lines(finished_demo: FinishedDemo) -> None:
    assert finished_demo.exit_code == 0, finished_demo.err
    assert "Traceback" not in finished_demo.err
    assert finished_demo.orphans == 0
    where, what, how = finished_demo.out.splitlines()
    assert where == str(finished_demo.run_file)
    told = re.fullmatch(r"3 volumes of 24 x 48 x 48 voxels; of the raw projections all (\d+) frames", what)
    assert told, what
    with open_run(finished_demo.run_file) as run:
        assert run.ledger.received == int(told[1])
    code = re.fullmatch(r'open: python -c "(.*)"', how)
    assert code
    said = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(DEMO)


@pytest.mark.acquisition
def test_the_demo_records_every_frame(finished_demo: FinishedDemo) -> None:
    with open_run(finished_demo.run_file) as run:
        assert_closed_and_whole(run, 3)
        assert run.header.shape == DEMO
        assert run.volume.shape == (3, *DEMO)
        # Two slabs, four of them overlapping; sweep 0 has one more that is held out.
        assert run.ledger.received == sum(run.values("frames_received"))
        assert set(np.array(SERVED)[run.values("served")]) <= {"mdd", "inr", "tikhonov", "blend"}
        assert np.isfinite(run.values("held_out_error")).tolist() == [True, False, False]
        assert run.provenance["weights"] == finished_demo.weights
        assert re.fullmatch(r"[0-9a-f]{64}", run.provenance["weights_sha256"])
        assert run.config["engine"]["threads"] == 1
        for t in range(3):
            volume = run.volume[t]
            # Something was seen, above the camera's offset and nowhere far below it.
            assert volume.min() >= 95
            assert volume.max() > 120
        latencies = run.values("latency_s")
        assert np.all((latencies > 0) & (latencies < 30))
        last = run.volume[2]
    # The plain way.
    with h5py.File(finished_demo.run_file) as file:
        np.testing.assert_array_equal(file["volume"][2], last)
        assert file["mdd/status"][:].tolist() == [1, 1, 1]


@pytest.mark.acquisition
def test_the_lines_of_the_readme_open_the_demo(finished_demo: FinishedDemo) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r'^python -c "(.*)"$', readme, flags=re.MULTILINE)
    assert lines
    for line in lines:
        subprocess.run(
            [sys.executable, "-c", line], cwd=finished_demo.folder, check=True, capture_output=True
        )


@pytest.mark.acquisition
def test_the_demo_ends_after_its_duration(weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    with Mdd(*demo(weights, output, "--duration", 2), folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = run_files(output)
    with open_run(path) as run:
        assert_closed(run)
        # Sweeps are half a second apart; the one that runs at the end, and the next, are still taken.
        assert 1.0 < run.times.max() < 8


@pytest.mark.acquisition
@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="loopback with keys", marks=slow),
        pytest.param("*", id="every interface"),
    ],
)
def test_a_daemon_that_asks_for_keys_lets_its_own_driver_in(weights: Path, tmp_path: Path, host: str) -> None:
    new_keys(tmp_path / "keys")
    secret = settings(f"wire.keys={tmp_path / 'keys'}", f"wire.data=tcp://{host}:*")
    secret += settings("wire.encrypt_loopback=true", "engine.method=linear")
    with Mdd(*demo(weights, tmp_path / "runs"), *secret, "--volumes", 1, folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = run_files(tmp_path / "runs")
    with open_run(path) as run:
        assert_closed_and_whole(run, 1)


@pytest.mark.acquisition
@posix_only
@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param("SIGINT", True, id="ctrl-c to all"),
        pytest.param("SIGTERM", False, id="sigterm to mdd", marks=slow),
    ],
)
def test_a_polite_stop_closes_in_order(weights: Path, tmp_path: Path, number: str, group: bool) -> None:
    output = tmp_path / "runs"
    arguments = demo(weights, output, interval_s=0.3)
    with Mdd(*arguments, folder=tmp_path) as mdd:
        mdd.wait_for(lambda: written_in(output) >= 1)
        mdd.send(getattr(signal, number), group=group)
        assert mdd.finish() == 0, mdd.err
        assert "Traceback" not in mdd.err
        assert len(mdd.out.splitlines()) == 3
        assert mdd.orphans() == []
    (path,) = run_files(output)
    with open_run(path) as run:
        assert_closed(run)
    assert all(map(port_is_free, ports_of(arguments)))


@posix_only
@pytest.mark.parametrize(
    "after_s", [0.0, pytest.param(0.8, marks=slow), pytest.param(1.6, marks=slow)], ids=str
)
def test_ctrl_c_while_the_engine_starts_is_quiet(weights: Path, tmp_path: Path, after_s: float) -> None:
    output = tmp_path / "runs"
    with Mdd(*demo(weights, output), folder=tmp_path) as mdd:
        mdd.wait_for(output.exists)
        time.sleep(after_s)
        mdd.send(signal.SIGINT, group=True)
        assert mdd.finish() == 0, mdd.err
        assert "Traceback" not in mdd.err
        assert mdd.orphans() == []


@pytest.mark.acquisition
@posix_only
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=slow), pytest.param(3, marks=slow)])
def test_a_kill_in_mid_run_loses_nothing_that_was_announced(weights: Path, tmp_path: Path, seed: int) -> None:
    output = tmp_path / "runs"
    arguments = demo(weights, output, interval_s=0.2)
    dice = random.Random(seed)  # noqa: S311
    seen: dict[int, np.ndarray] = {}
    announced = 0
    with Mdd(*arguments, folder=tmp_path) as mdd:
        mdd.wait_for(lambda: written_in(output) >= dice.randint(1, 3))
        kill_s = time.monotonic() + dice.uniform(0.0, 1.0)
        (path,) = run_files(output)
        status = next(word for word in map(str, arguments) if word.startswith("wire.status="))
        with open_run(path) as run:
            for snapshot in subscribe(status.partition("=")[2], timeout_s=30):
                announced = snapshot.volumes.written
                for t in np.flatnonzero(run.status == Status.WRITTEN):
                    seen.setdefault(int(t), run.volume[int(t)])
                mdd.look()
                if time.monotonic() > kill_s:
                    break
        mdd.send(signal.SIGKILL)
        assert mdd.finish() == -signal.SIGKILL
        assert len(mdd.family) >= 2, "engine and driver were processes of their own"
        assert mdd.orphans() == []
    assert announced >= 1
    with open_run(path) as run:
        assert not run.closed
        assert np.count_nonzero(run.status == Status.WRITTEN) >= max(announced, len(seen))
        for t, volume in seen.items():
            assert run.status[t] == Status.WRITTEN
            np.testing.assert_array_equal(run.volume[t], volume)
        for t in np.flatnonzero(run.status == Status.WRITTEN):
            assert run.volume[int(t)].max() > 120
    with h5py.File(path) as file:
        assert file["mdd/status"].shape == (120,)
    assert all(map(port_is_free, ports_of(arguments)))


DUPLICATES = ("--duplicate", 0.3, "--reorder", 0.3, "--seed", 1)
ALL = ("--duplicate", 0.2, "--reorder", 0.2, "--corrupt", 0.4, "--drop", 0.15, "--seed", 1)


@pytest.mark.parametrize(
    ("faults", "least_missing"),
    [
        pytest.param((), 0, id="a sound connection"),
        pytest.param(ALL, 1, id="everything at once"),
        pytest.param(DUPLICATES, 0, id="duplicates and reordering", marks=slow),
        pytest.param(("--corrupt", 0.4, "--seed", 2), 0, id="damaged frames", marks=slow),
        pytest.param(("--drop", 0.15, "--seed", 3), 1, id="lost frames", marks=slow),
    ],
)
def test_a_replay_puts_the_file_into_a_run(
    weights: Path, tmp_path: Path, faults: tuple[object, ...], least_missing: int
) -> None:
    source, output = write_sample(tmp_path / "projections.h5", sweeps=5), tmp_path / "runs"
    arguments = ["replay", source, "--serve", "--output", output, *engine(weights), *faults]
    with Mdd(*arguments, *settings("wire.sweep_timeout_s=1"), folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
        assert "Traceback" not in mdd.err
        assert len(mdd.out.splitlines()) == 3
        assert mdd.orphans() == []
    (path,) = run_files(output)
    with open_run(path) as run, open_projections(source) as projections:
        sweeps, count = projections.shape[:2]
        ledger, there = run.ledger, np.isfinite(run.values("frames/z_um"))
        assert ledger.announced == sweeps * count
        assert ledger.received == there.sum()
        assert ledger.missing == sweeps * count - there.sum() == sum(run.values("frames_missing"))
        assert ledger.missing >= least_missing
        assert (ledger.missing > 0) == bool(least_missing)
        assert (ledger.duplicates > 0) == ("--duplicate" in faults)
        assert (ledger.refused > 0) == ("--corrupt" in faults)
        assert run.volume.shape == (sweeps, *SHAPE)
        for t, index in np.argwhere(there):
            np.testing.assert_array_equal(run.projections[t, index], projections.frame(t, index))
            assert run.values("frames/z_um")[t, index] == projections.stage(t).z_um[index]
        if not least_missing:
            assert (run.status == Status.WRITTEN).all()
        # A sweep is given up only where too little of it came.
        assert set(run.status) <= {Status.WRITTEN, Status.LOST}
        for t in np.flatnonzero(run.status == Status.WRITTEN):
            assert run.volume[t].max() > 120


def test_a_file_waits_for_a_slow_engine_and_none_of_it_is_skipped_or_late(
    weights: Path, tmp_path: Path
) -> None:
    source, output = write_sample(tmp_path / "projections.h5", sweeps=7), tmp_path / "runs"
    slow = engine(weights, steps=8, guidance=1, **{"inr.rank": 256, "inr.warm_steps": 60})
    # Frames are held back for longer than they may be late.
    arguments = ["replay", source, "--serve", "--output", output, *slow]
    with Mdd(*arguments, *settings("wire.sweep_timeout_s=0.05"), folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = run_files(output)
    with open_run(path) as run:
        assert_closed_and_whole(run, 7)


def volumes_in(path: Path) -> int:
    with open_run(path) as run:
        return int((run.status == Status.WRITTEN).sum())


def test_a_daemon_serves_one_remote_sender_after_the_other(weights: Path, tmp_path: Path) -> None:
    source, output = write_sample(tmp_path / "projections.h5"), tmp_path / "runs"
    data = f"tcp://127.0.0.1:{free_port()}"
    others = (f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("status", "control"))
    ports = settings(f"wire.data={data}", *others)
    patient = engine(weights, backlog=20, device="cpu")
    serve = ["serve", "--config", "remote-engine", "--output", output, *patient, *ports]
    daemon_folder, sender_folder = tmp_path / "a", tmp_path / "b"
    daemon_folder.mkdir()
    sender_folder.mkdir()
    with Mdd(*serve, folder=daemon_folder) as daemon:
        for _ in range(3):  # right after each other: the file of the one before is still open
            with Mdd("replay", source, "--address", data, folder=sender_folder) as sender:
                assert sender.finish() == 0, sender.err
                assert sender.out == "20 frames, 20 acknowledged\n" or sender.out.startswith("12 frames, 12 ")
        # An engine that is slow to start would be stopped before it has begun with what is in the files.
        daemon.wait_for(lambda: all(volumes_in(path) == 4 for path in run_files(output)))
        daemon.send(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.err
        assert len(daemon.out.splitlines()) == 9
        assert "Traceback" not in daemon.err
    files = run_files(output)
    assert len(files) == 3
    with open_projections(source) as projections:
        frames = projections.shape[0] * projections.shape[1]
    for path in files:
        with open_run(path) as run:
            assert_closed_and_whole(run, 4)
            assert run.ledger.received == frames


def reconstruct(call: Callable[[list[str]], int], *arguments: object) -> int:
    return call(["reconstruct", *map(str, arguments)])


@pytest.mark.parametrize("method", ["mdd", "inr", "tikhonov", "linear"])
def test_reconstruct_makes_a_run_file(
    weights: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from microdiffusion.daemon.cli import dispatch as cli

    source, output = write_sample(tmp_path / "projections.h5", sweeps=3), tmp_path / "run.h5"
    more = engine(weights, fallback=False)
    assert reconstruct(cli.main, source, "--output", output, "--method", method, *more) == 0
    assert capsys.readouterr().out.endswith(f"wrote {output}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["projections.h5", "run.h5"]
    with open_run(output) as run:
        assert_closed_and_whole(run, 3)
        assert set(run.values("served")) == {SERVED.index(method)}
        assert run.config["engine"]["method"] == method
        assert run.volume.dtype == np.uint16
        residuals = run.values("residual")
        assert np.all(residuals < 30), residuals


def test_the_same_seed_gives_the_same_file(weights: Path, tmp_path: Path) -> None:
    from microdiffusion.daemon.cli import dispatch as cli

    source = write_sample(tmp_path / "projections.h5", sweeps=2)
    volumes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        more = engine(weights, fallback=False, interpolation=1.0)
        output = tmp_path / f"{name}.h5"
        assert reconstruct(cli.main, source, "--output", output, "--seed", seed, *more) == 0
        with open_run(output) as run:
            volumes.append(run.volume[:])
    np.testing.assert_array_equal(volumes[0], volumes[1])
    assert not np.array_equal(volumes[0], volumes[2])


@slow
@posix_only
def test_a_stop_while_a_large_run_is_made_ends_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    local = [f"wire.{name}=tcp://127.0.0.1:*" for name in ("status", "control")]
    many = ["wire.positions=9999", "recorder.time_points=1"]
    arguments = settings("acquisition.driver=none", *many, *local)
    address = f"tcp://127.0.0.1:{port}"
    with (
        Mdd("serve", *arguments, "--set", f"wire.data={address}", "--output", "out", folder=tmp_path) as mdd,
        Peer(address) as peer,
    ):
        peer.say(wire.RunStart(header=make_header(positions=tuple(f"p{n}" for n in range(7000)))))
        mdd.wait_for(lambda: any(tmp_path.glob("out/.*.h5.tmp")))
        mdd.send(signal.SIGINT)
        assert mdd.finish(60) in (0, 3)
        assert mdd.orphans() == []


@posix_only
def test_ctrl_c_leaves_no_half_reconstructed_file(weights: Path, tmp_path: Path) -> None:
    source, output = write_sample(tmp_path / "projections.h5", sweeps=200), tmp_path / "run.h5"
    with Mdd("reconstruct", source, "--output", output, *engine(weights), folder=tmp_path) as mdd:
        mdd.wait_for(lambda: "volume 2 of 200" in mdd.out)
        mdd.send(signal.SIGINT)
        assert mdd.finish() == 130, mdd.err
        assert mdd.err == "mdd: interrupted\n"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"projections.h5", "stdout.txt", "stderr.txt"}


@posix_only
def test_a_full_disk_is_one_sentence_and_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    source, output = write_sample(tmp_path / "projections.h5", sweeps=8), tmp_path / "out"
    output.mkdir()
    # A limit on the size of files fails writes as a full disk does.
    shell = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from microdiffusion.daemon.cli.dispatch import main; sys.exit(main())"
    )
    arguments = ["reconstruct", source, "--output", output / "run.h5", *engine(weights)]
    result = subprocess.run(
        [sys.executable, "-c", shell, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("mdd: ")
    assert list(output.iterdir()) == []


@pytest.mark.slow
def test_an_adaptive_demo_says_in_its_file_what_it_decided(weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    with Mdd(*demo(weights, output, "--adaptive", "--volumes", 4), folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = run_files(output)
    with open_run(path) as run:
        decisions = run.decisions()[: run.used]
        assert run.header.adaptive
        assert len(decisions) >= 4
        assert all(decisions)
        assert decisions[0] == "as planned: the engine has not spoken yet"
        assert run.ledger.missing == 0
