"""`mdd reconstruct` of run files: what is missing is added in place, or all of it made anew elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sample_data import header, positions, specimen, sweep_of, write_sample

from microdiffusion import open_run
from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import Config, EngineConfig, RecorderConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.offline.reconstruct import catch_up, reconstruct_file
from microdiffusion.daemon.recorder.opening import create_recorder, resume_recorder
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.errors import InputFileError
from microdiffusion.frames import Frame, FrameInfo, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.schema import Status

ENGINE = EngineConfig(method="inr", device="cpu", threads=1, inr=InrConfig(cold_steps=3, warm_steps=1))
CONFIG = Config(engine=ENGINE)
CHANNELS, POSITIONS, SWEEPS = ("a", "b"), ("here", "there"), 4


def a_sweep(number: int, channel: int, position: int) -> Sweep:
    sweep = sweep_of(specimen(seed=2 * channel + position, drift=0.1 * number), number)
    sweep.channel, sweep.position = channel, position
    return sweep


def frames_of(sweep: Sweep, seq: int) -> list[Frame]:
    places = list(sweep.stage + sweep.held_out_stage)
    pixels = np.concatenate([sweep.projections, sweep.held_out]).astype(np.uint16)
    return [
        Frame(
            FrameInfo(
                seq + index,
                sweep.sweep,
                index,
                len(places),
                places[index],
                sweep.channel,
                sweep.position,
                index >= len(sweep.stage),
                camera_time_s=float(seq + index),
            ),
            pixels[index],
        )
        for index in range(len(places))
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of two channels and positions that wrote sweep 1 of one session, and skipped the rest."""
    path = tmp_path / "run.h5"
    about = header(channels=CHANNELS, positions=POSITIONS, sweeps=SWEEPS, frames_per_sweep=8)
    recorder = create_recorder(
        path,
        about,
        RecorderConfig(time_points=SWEEPS),
        frames_per_sweep=8,
        configuration=CONFIG.model_dump_json(),
        provenance={},
        on_written=lambda written: None,
    )
    recorder.start()
    seq = 0
    reconstructor = Reconstructor(about, ENGINE)
    for number in range(SWEEPS):
        for channel in range(2):
            for position in range(2):
                sweep = a_sweep(number, channel, position)
                frames = frames_of(sweep, seq)
                seq += len(frames)
                kept = frames[:1] if (number, channel, position) == (3, 1, 1) else frames
                for frame in kept:
                    recorder.put_frame(frame)
                key = (number, channel, position)
                if key == (1, 0, 0):
                    result = reconstructor.reconstruct(sweep)
                    assert recorder.put_volume(*key, result, acquired_s=0.0, received_s=0.0)
                else:
                    outcome = (Status.SKIPPED, Status.FAILED, Status.LOST)[number % 3]
                    recorder.mark(*key, outcome, "the engine was busy")
    missing = len(frames) - 1
    recorder.put_ledger(Ledger(announced=seq, received=seq - missing, announced_known=1))
    recorder.stop()
    return path


def statuses(path: Path) -> np.ndarray[Any, Any]:
    found = []
    for position in range(2):
        with open_run(path, position=position) as opened:
            found.append(opened.status)
    return np.stack(found, axis=2)


def test_what_a_run_lacks_is_added_in_place(run: Path) -> None:
    with open_run(run) as opened:
        before = opened.volume[1, 0]
    done: list[tuple[int, int]] = []
    added = catch_up(run, config=CONFIG, progress=lambda n, of, _: done.append((n, of)))
    assert added == (14, 1)
    assert done[-1] == (14, 15)
    status = statuses(run)
    # The sweep of which one frame came cannot be done.
    assert status[3, 1, 1] == Status.SKIPPED
    status[3, 1, 1] = Status.WRITTEN
    assert (status == Status.WRITTEN).all()
    with open_run(run) as opened:
        assert np.array_equal(opened.volume[1, 0], before)
        later = opened.values("later")
        assert (later[1, 0], later[0, 0], later[2, 1]) == (0, 1, 1)
        assert opened.closed
        assert opened.events[-1].text.startswith("mdd reconstruct added 14 volumes: torch cpu")
        expected = Reconstructor(opened.header, ENGINE).reconstruct(a_sweep(0, 1, 0)).volume
        assert np.abs(opened.volume[0, 1] - expected).max() <= 0.5
    assert catch_up(run, config=CONFIG) == (0, 1)


def test_a_run_is_reconstructed_anew_into_another_file(run: Path, tmp_path: Path) -> None:
    before = run.read_bytes()
    output = tmp_path / "anew.h5"
    reconstruct_file(run, output, config=CONFIG, causal=True)
    assert run.read_bytes() == before
    for position in range(2):
        with open_run(run, position=position) as old, open_run(output, position=position) as new:
            assert new.header == old.header
            assert new.ledger == old.ledger
            for name in ("frames/seq", "frames/z_um", "frames/held_out", "frames_received"):
                assert np.array_equal(new.values(name), old.values(name), equal_nan=True)
            assert np.array_equal(new.projections.filled(0)[:], old.projections.filled(0)[:])
            status = new.status
            assert status[3, 1] == (Status.LOST if position else Status.WRITTEN)
            status[3, 1] = Status.WRITTEN
            assert (status == Status.WRITTEN).all()
            reconstructor = Reconstructor(new.header, ENGINE)
            for number in range(SWEEPS):
                expected = reconstructor.reconstruct(a_sweep(number, 0, position)).volume
                assert np.abs(new.volume[number, 0] - expected).max() <= 0.5
    assert sorted(each.name for each in tmp_path.iterdir() if "lock" not in each.name) == [
        "anew.h5",
        "run.h5",
    ]


def test_each_volume_knows_the_sweeps_after_it_unless_causal(run: Path, tmp_path: Path) -> None:
    before = run.read_bytes()
    output = tmp_path / "both.h5"
    stages: list[str] = []
    reconstruct_file(run, output, config=CONFIG, report=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"looking ahead"}
    assert run.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir() if "lock" not in each.name} == {"run.h5", "both.h5"}
    with open_run(output, position=1) as opened:
        assert [int(each) for each in opened.status[:, 0]] == [Status.WRITTEN] * SWEEPS
        assert opened.events[-1].text == "each volume is made of the sweeps before and after it"
        still = opened.values("still")[:, 0]
        assert still.min() > 0.5
        age = opened.values("age")[:, 0] / 16
        assert (age.shape[0], age.min() >= 1, age.mean() > 2) == (SWEEPS, True, True)
        causal = Reconstructor(opened.header, ENGINE)
        live = [causal.reconstruct(a_sweep(number, 0, 1)).volume for number in range(SWEEPS)]
        assert np.abs(opened.volume[0, 0] - live[0]).max() > 5
        assert np.abs(opened.volume[SWEEPS - 1, 0] - live[-1]).max() < 5


def test_a_run_that_a_daemon_writes_is_left_alone(run: Path) -> None:
    writer = resume_recorder(run, CONFIG.recorder, on_written=lambda written: None)
    writer.start()
    try:
        with pytest.raises(InputFileError, match=run.name):
            catch_up(run, config=CONFIG)
    finally:
        writer.stop()


def test_a_run_that_was_cut_off_is_caught_up_and_closed(run: Path) -> None:
    content = run.read_bytes()
    writer = resume_recorder(run, CONFIG.recorder, on_written=lambda written: None)
    writer.start()
    torn = run.read_bytes()
    writer.stop()
    run.write_bytes(torn)
    with open_run(run) as opened:
        assert not opened.closed
    assert len(torn) >= len(content)
    assert catch_up(run, config=CONFIG) == (14, 1)
    with open_run(run) as opened:
        assert opened.closed


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "linear", "--device", "cpu", "--set", "engine.threads=1"]
    assert cli.main(["reconstruct", str(run), *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("volume 1 of 15: linear, ")
    assert said[-1] == f"14 volumes added to {run}; 1 sweep could not be reconstructed (see mdd info)"
    output = tmp_path / "anew.h5"
    assert cli.main(["reconstruct", str(run), "--output", str(output), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {output}"


@pytest.mark.parametrize("suffix", ["run", "projections"])
def test_a_projection_file_and_the_run_made_of_it_give_the_same(suffix: str, tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample.h5", sweeps=3)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    reconstruct_file(sample, first, config=CONFIG)
    reconstruct_file(first if suffix == "run" else sample, second, config=CONFIG)
    with open_run(first) as one, open_run(second) as other:
        assert np.array_equal(one.volume[:], other.volume[:])
        assert one.ledger == other.ledger
        assert one.ledger.received == positions(3).size
