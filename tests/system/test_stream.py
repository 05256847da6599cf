"""Several runs at once, runs that are gone on with, commands, rolling volumes: through the real command."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mdd_process import Mdd, command, free_port
from support.sample_data import SHAPE, header, look, positions, specimen, write_sample

from microdiffusion import open_run
from microdiffusion.errors import UserError
from microdiffusion.files.projections import open_projections
from microdiffusion.frames import FrameInfo, StagePosition
from microdiffusion.runfile.reader import Run
from microdiffusion.runfile.schema import Status
from microdiffusion.sender import left_over
from microdiffusion.sender.sender import Sender
from microdiffusion.wire import ask

pytestmark = pytest.mark.timeout(300)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="posix signals")

SWEEPS = 6


def settings(*pairs: object) -> list[str]:
    return [word for pair in pairs for word in ("--set", str(pair))]


class Ports:
    """Addresses of a daemon of its own."""

    def __init__(self) -> None:
        self.data, self.status, self.control = (f"tcp://127.0.0.1:{free_port()}" for _ in range(3))

    @property
    def words(self) -> list[str]:
        return settings(*(f"wire.{name}={address}" for name, address in vars(self).items()))


def serve(weights: Path, output: Path, ports: Ports, *more: object) -> list[object]:
    engine = (f"engine.weights={weights}", "engine.threads=1", "engine.device=cpu", "engine.steps=1")
    return [
        *("serve", "--config", "remote-engine", "--headless", "--output", output),
        *ports.words,
        *settings(*engine, *more),
    ]


class Scope:
    """A sender in this process: the sweeps of a specimen, one after the other."""

    def __init__(
        self, ports: Ports, *, run_id: str = "0123456789abcdef" * 2, first_seq: int = 0, **more: Any
    ) -> None:
        self._z_um = positions(SWEEPS)
        self.header = header(run_id=run_id, sweeps=SWEEPS, frames_per_sweep=self._z_um.shape[1])
        self.pixels = [look(specimen(drift=0.3 * t), self._z_um[t], seed=t) for t in range(SWEEPS)]
        self._seq = first_seq
        self.sender = Sender(
            ports.data, self.header, buffer_bytes=8_000_000, first_seq=first_seq, secret=run_id, **more
        )
        self.sender.start()

    @property
    def frames(self) -> int:
        return self._z_um.shape[1]

    def send(self, sweep: int, *, frames: int | None = None, skip: int = 0) -> None:
        for index in range(skip, self.frames if frames is None else frames):
            info = FrameInfo(
                seq=self._seq,
                sweep=sweep,
                index=index,
                count=self.frames,
                stage=StagePosition(float(self._z_um[sweep][index])),
                held_out=index == self.frames - 1,
                camera_time_s=sweep + index / 100,
            )
            assert self.sender.put(info, self.pixels[sweep][index])
            self._seq += 1

    def finish(self) -> None:
        assert self.sender.finish().ended


def send_and_linger(ports: Ports, sweeps: int) -> None:
    """Be a driver that waits to be killed."""
    scope = Scope(ports)
    for sweep in range(sweeps):
        scope.send(sweep)
    time.sleep(600)


def written_in(folder: Path) -> int:
    """Return how many volumes the runs of a folder have."""
    total = 0
    for path in folder.glob("*.h5"):
        with open_run(path) as run:
            total += int(np.count_nonzero(run.status == Status.WRITTEN))
    return total


def assert_sound(run: Run) -> None:
    ledger = run.ledger
    assert ledger.complaint() == ""
    assert ledger.announced == ledger.received
    assert ledger.announced_known


def test_two_runs_at_the_same_time_each_get_their_own_file_and_volumes(weights: Path, tmp_path: Path) -> None:
    ports, output = Ports(), tmp_path / "runs"
    with Mdd(*serve(weights, output, ports), folder=tmp_path) as mdd:
        scopes = [Scope(ports, run_id=digit * 32) for digit in "ab"]
        for sweep in range(SWEEPS):
            for scope in scopes:
                scope.send(sweep)
        mdd.wait_for(lambda: written_in(output) == 2 * SWEEPS)
        state = ask(ports.control, "status").values
        assert {"run_0_file", "run_1_file"} <= set(state)
        for scope in scopes:
            scope.finish()
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err
    files = sorted(output.glob("*.h5"))
    assert len(files) == 2
    found = set()
    for path in files:
        with open_run(path) as run:
            found.add(run.header.run_id)
            assert run.closed
            assert (run.status == Status.WRITTEN).all()
            assert_sound(run)
            for t in range(SWEEPS):
                np.testing.assert_array_equal(run.projections[t], scopes[0].pixels[t])
    assert found == {"a" * 32, "b" * 32}


@posix_only
def test_a_daemon_that_was_killed_is_followed_by_one_that_goes_on_in_the_same_file(
    weights: Path, tmp_path: Path
) -> None:
    ports, output = Ports(), tmp_path / "runs"
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with Mdd(*serve(weights, output, ports), folder=first) as mdd:
        scope = Scope(ports)
        scope.send(0)
        scope.send(1)
        mdd.wait_for(lambda: written_in(output) >= 1)
        scope.send(2, frames=2)
        mdd.send(signal.SIGKILL)
        mdd.finish()
        (path,) = output.glob("*.h5")
        with open_run(path) as run:
            before = {t: run.volume[t] for t in np.flatnonzero(run.status == Status.WRITTEN)}
        assert before
    scope.send(2, skip=2)  # the camera goes on while nobody listens
    scope.send(3)
    with Mdd(*serve(weights, output, ports), folder=second) as mdd:
        for sweep in range(4, SWEEPS):
            scope.send(sweep)
        mdd.wait_for(lambda: written_in(output) == SWEEPS)
        scope.finish()
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err
    assert list(output.glob("*.h5")) == [path]
    with open_run(path) as run:
        assert run.closed
        assert_sound(run)
        assert run.ledger.received == SWEEPS * scope.frames
        for t, volume in before.items():
            np.testing.assert_array_equal(run.volume[t], volume)
        for t in range(SWEEPS):
            np.testing.assert_array_equal(run.projections[t], scope.pixels[t])
        assert "resumed" in {event.kind for event in run.events}


def test_a_driver_that_died_is_followed_by_another_in_the_same_run(weights: Path, tmp_path: Path) -> None:
    ports, output = Ports(), tmp_path / "runs"
    with Mdd(*serve(weights, output, ports, "wire.silent_s=1"), folder=tmp_path) as mdd:
        driver = multiprocessing.get_context("spawn").Process(target=send_and_linger, args=(ports, 3))
        driver.start()
        mdd.wait_for(lambda: written_in(output) == 3)
        driver.kill()
        driver.join()
        (path,) = output.glob("*.h5")

        def is_closed() -> bool:
            with open_run(path) as run:
                return run.closed

        mdd.wait_for(is_closed)
        another = Scope(ports, first_seq=1 << 32)
        for sweep in range(3, SWEEPS):
            another.send(sweep)
        mdd.wait_for(lambda: written_in(output) == SWEEPS)
        another.finish()
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err
    assert list(output.glob("*.h5")) == [path]
    with open_run(path) as run:
        assert run.closed
        ledger = run.ledger
        assert ledger.complaint() == ""
        assert ledger.announced == ledger.received == SWEEPS * another.frames
        assert (run.status == Status.WRITTEN).all()


def test_commands_reach_the_sender_and_the_engine_and_are_in_the_file(weights: Path, tmp_path: Path) -> None:
    ports, output = Ports(), tmp_path / "runs"
    with Mdd(*serve(weights, output, ports), folder=tmp_path) as mdd:
        mdd.wait_for(lambda: "listening" in mdd.err or output.exists())
        with pytest.raises(UserError, match="No run is open"):
            ask(ports.control, "pause", timeout_s=30)
        scope = Scope(ports)
        scope.send(0)
        mdd.wait_for(lambda: written_in(output) == 1)
        ask(ports.control, "pause")
        mdd.wait_for(lambda: scope.sender.wanted == "pause")
        with pytest.raises(UserError, match="cannot be changed"):
            ask(ports.control, "set", key="recorder.output", value="/")
        ask(ports.control, "set", key="engine.steps", value="2")
        ask(ports.control, "go")
        mdd.wait_for(lambda: scope.sender.wanted == "go")
        scope.send(1)
        mdd.wait_for(lambda: written_in(output) == 2)
        scope.finish()
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err
    (path,) = output.glob("*.h5")
    with open_run(path) as run:
        said = [event.text for event in run.events if event.kind in ("control", "engine")]
    assert [text.partition(" ")[0].rstrip(":") for text in said] == ["pause", "engine.steps", "go"]


def test_a_volume_after_every_projection(weights: Path, tmp_path: Path) -> None:
    ports, output = Ports(), tmp_path / "runs"
    with Mdd(*serve(weights, output, ports, "engine.update=projection"), folder=tmp_path) as mdd:
        scope = Scope(ports)
        scope.send(0)
        mdd.wait_for(lambda: written_in(output) == 1)
        (path,) = output.glob("*.h5")
        with open_run(path) as run:
            seen = []
            for index in range(scope.frames - 1):
                scope.send(1, frames=index + 1, skip=index)

                def newest(index: int = index) -> bool:
                    live = run.live()
                    return live is not None and live.newest_seq == scope.frames + index

                if index < scope.frames - 2:  # the last one before the held-out one may be overtaken
                    mdd.wait_for(newest)
                    live = run.live()
                    assert live is not None
                    assert live.volume.shape == SHAPE
                    seen.append(live.volume)
            assert run.status[1] == Status.EMPTY  # what is recorded are sweeps
            assert all(not np.array_equal(a, b) for a, b in pairwise(seen))
        scope.send(1, skip=scope.frames - 1)
        mdd.wait_for(lambda: written_in(output) == 2)
        scope.finish()
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err


@posix_only
def test_a_run_that_waits_for_its_engine_does_not_hold_up_another(weights: Path, tmp_path: Path) -> None:
    source = write_sample(tmp_path / "projections.h5", sweeps=4)
    ports, output = Ports(), tmp_path / "runs"
    with Mdd(*serve(weights, output, ports, "engine.policy=wait", "engine.steps=8"), folder=tmp_path) as mdd:
        folders = [tmp_path / name for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        senders = [Mdd("replay", source, "--address", ports.data, folder=folder) for folder in folders]
        for sender in senders:
            with sender:
                assert sender.finish() == 0, sender.err
        mdd.wait_for(lambda: written_in(output) == 8)
        mdd.send(signal.SIGTERM)
        assert mdd.finish() == 0, mdd.err
    with open_projections(source) as projections:
        frames = projections.shape[0] * projections.shape[1]
    for path in output.glob("*.h5"):
        with open_run(path) as run:
            assert run.ledger.received == frames
            assert_sound(run)


@posix_only
def test_a_stop_ends_the_wait_for_a_run_that_was_over_and_still_reconstructed(
    weights: Path, tmp_path: Path
) -> None:
    ports, output = Ports(), tmp_path / "runs"
    endless = ("engine.inr.cold_steps=2000", "engine.inr.warm_steps=2000", "engine.steps=8")
    with Mdd(*serve(weights, output, ports, *endless), folder=tmp_path) as mdd:
        scope = Scope(ports)
        for sweep in range(SWEEPS):
            scope.send(sweep)
        scope.finish()
        mdd.wait_for(lambda: "closing" in str(ask(ports.control, "status").values.get("run_0")))
        # The engine stands still, however fast this machine is; on a slow one it comes after the run's end.
        mdd.engine().suspend()
        mdd.send(signal.SIGTERM)
        assert mdd.finish(timeout_s=20) == 0, mdd.err
    (path,) = output.glob("*.h5")
    with open_run(path) as run:
        assert run.closed
        assert Status.SKIPPED in run.status
        assert_sound(run)


@posix_only  # Windows lets nobody remove an open file
@pytest.mark.parametrize("removes", [False, True], ids=["file", "folder"])
@pytest.mark.slow
def test_what_a_removed_run_file_leaves_with_its_sender_is_delivered_into_a_new_one(
    weights: Path, tmp_path: Path, removes: bool
) -> None:
    ports, output, journals = Ports(), tmp_path / "first", tmp_path / "journals"
    with Mdd(*serve(weights, output, ports), folder=tmp_path) as daemon:
        scope = Scope(ports, journal=journals, journal_bytes=1 << 30)
        for sweep in range(2):
            scope.send(sweep)
        daemon.wait_for(lambda: scope.sender.stats.acknowledged == 2 * scope.frames)
        (run,) = output.glob("*.h5")
        if removes:
            shutil.rmtree(output)
        else:
            run.unlink()
        for sweep in range(2, SWEEPS):
            scope.send(sweep)
        daemon.wait_for(lambda: "while it was written" in daemon.err)
        stats = scope.sender.finish(timeout_s=1.0)
        daemon.send(signal.SIGTERM)
        assert daemon.finish() == 3
        assert "_rescued.h5" in daemon.err
    acknowledged = stats.acknowledged
    assert 2 * scope.frames <= acknowledged < SWEEPS * scope.frames
    second = Ports()
    into = tmp_path / "second"
    (tmp_path / "b").mkdir()
    with Mdd(*serve(weights, into, second), folder=tmp_path / "b") as daemon:
        daemon.wait_for(lambda: "state=waiting" in daemon.err)
        done = subprocess.run(
            [command(), "deliver", journals, "--address", second.data], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        daemon.send(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.err
    seen: set[int] = set()
    for path in [*output.glob("*.h5"), *into.glob("*.h5")]:
        with open_run(path) as opened:
            seqs = opened.values("frames/seq")
            for t, slot in np.argwhere(seqs >= 0).tolist():
                sweep, index = divmod(int(seqs[t, slot]), scope.frames)
                np.testing.assert_array_equal(opened.projections[t, slot], scope.pixels[sweep][index])
                seen.add(int(seqs[t, slot]))
    assert seen == set(range(SWEEPS * scope.frames))
    assert left_over(journals) == []
