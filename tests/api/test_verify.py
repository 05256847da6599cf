from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    frame,
    header,
    put_sweep,
    put_volume,
    reconstruction,
    recorder,
    started,
    wait,
)

from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.errors import MissingFileError
from microdiffusion.ledger import LEDGER_COLUMNS, Ledger
from microdiffusion.runfile.schema import Status, segment_path
from microdiffusion.runfile.verify import verify_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def write_run(path: Path, sweeps: int = 4, **arguments: object) -> None:
    target = started(recorder(path, **{"time_points": 2, **arguments}))
    for sweep in range(sweeps):
        put_sweep(target, sweep)
    target.put_ledger(Ledger(announced=3 * sweeps, announced_known=1))
    target.stop()


def change(name: str, index: object, value: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[name][index] = value

    damage.__name__ = name
    return damage


def change_ledger(name: str, value: int) -> Callable[[Path], None]:
    return change("mdd/ledger", LEDGER_COLUMNS.index(name), value)


def test_it_is_told_how_far_the_reading_is(path: Path) -> None:
    write_run(path, sweeps=4)  # in two files
    told: list[tuple[int, int]] = []
    report = verify_run(path, progress=lambda *numbers: told.append(numbers))
    assert report.sound
    assert report.files == 2
    depth = header().shape[0]
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (report.frames + depth * report.volumes,) * 2
    assert {total for _, total in told} == {told[-1][1]}


def test_sound_run_is_said_to_be_sound(path: Path) -> None:
    target = recorder(path, time_points=2, run=header(channels=("a", "b"), positions=("p", "q")))
    target.start()
    for sweep in range(3):
        for channel in range(2):
            for index in range(FRAMES):
                seq = (sweep * 2 + channel) * FRAMES + index
                target.put_frame(frame(sweep, index, channel, 1, seq=seq))
            put_volume(target, sweep, channel, 1)
    target.mark(1, 0, 0, Status.SKIPPED, "the engine was busy")
    astray = frame(7, 0, seq=99)
    target.put_frame(replace(astray, info=replace(astray.info, index=99)))
    target.stop()
    report = verify_run(path)
    assert report.faults == []
    assert report.ledger is not None
    assert (report.ledger.received, report.ledger.unplaced) == (19, 1)
    assert (report.files, report.frames, report.volumes, report.time_points) == (2, 18, 6, 8)
    assert report.closed


def test_run_that_goes_on_is_checked_as_far_as_it_goes(path: Path) -> None:
    target = started(recorder(path, time_points=2))
    put_sweep(target, 0)
    target.put_frame(frame(1, 0))
    wait(lambda: target.queue_bytes == 0)
    report = verify_run(path)
    assert (report.faults, report.closed, report.frames, report.volumes) == ([], False, 4, 1)
    target.stop()
    assert verify_run(path).closed


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(
            change("volume", (1, 3, 4, 5), 7), "the volume of sweep 1 has the wrong checksum", id="voxel"
        ),
        pytest.param(
            change("projections", (0, 2, 4, 5), 7), r"frame 2 \(seq 2\) of sweep 0 has the wrong", id="pixel"
        ),
        pytest.param(change("mdd/crc32", 0, 7), "volume of sweep 0 has the wrong", id="checksum"),
        pytest.param(change("mdd/frames/seq", (1, 1), 0), "seq 0 is in the file more than once", id="twice"),
        pytest.param(change("mdd/frames/seq", (1, 1), -1), "12 frames are in the file .* and 11", id="frame"),
        pytest.param(change("mdd/frames/seq", (1, 1), 400), r"\(seq 400\) of sweep 1 was changed", id="seq"),
        pytest.param(change("mdd/frames/z_um", (1, 1), 4.5), "of sweep 1 was changed", id="z"),
        pytest.param(change("mdd/frames/held_out", (1, 1), 1), "of sweep 1 was changed", id="held out"),
        pytest.param(change("mdd/frames/camera_time_s", (1, 1), 9.0), "of sweep 1 was changed", id="clock"),
        pytest.param(change("mdd/status", 1, 3), "no volume, and no reason", id="status without reason"),
        pytest.param(change_ledger("announced_known", 3), "instead of 0 or 1", id="announced known"),
        pytest.param(change("mdd/frames/z_um", (1, 1), np.nan), "has no z_um", id="place"),
        pytest.param(change("mdd/frames_received", 1, 9), "says that 9 frames are received", id="received"),
        pytest.param(change("mdd/frames_missing", 1, 9), "says that 9 frames are missing", id="missing"),
        pytest.param(change("mdd/status", 1, 0), "sweep 1 has no status", id="no status"),
        pytest.param(change("mdd/status", 1, 77), "unknown code 77 in /mdd/status", id="status"),
        pytest.param(change("mdd/effort", 1, 3), "unknown code 3 in /mdd/effort", id="effort"),
        pytest.param(change("mdd/served", 1, 0), "does not say which answer", id="served"),
        pytest.param(change("mdd/reason", 1, b"x"), "reason why it should not be", id="reason"),
        pytest.param(change("mdd/acquired_s", 1, np.nan), "has no time", id="time"),
        pytest.param(change("mdd/closed", (), 0), "run.h5 is not closed", id="closed"),
        pytest.param(change("mdd/engine", (), b"{"), "not JSON", id="engine"),
        pytest.param(change("mdd/engine", (), b"[]"), "not a JSON object", id="engine's list"),
        pytest.param(change("mdd/events/count", (), -1), "events is negative", id="events"),
        pytest.param(change_ledger("announced", 13), r"announced \(13\) is not received", id="announced"),
        pytest.param(change_ledger("missing", -1), "cannot be negative", id="negative"),
        pytest.param(lambda path: path.write_bytes(b""), "cannot be read as HDF5", id="empty"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-5000]), "cannot be read as HDF5", id="cut"
        ),
        pytest.param(
            lambda path: segment_path(path, 1).write_bytes(b""), "run_s001.h5 cannot be read", id="next file"
        ),
        pytest.param(
            lambda path: segment_path(path, 1).rename(segment_path(path, 2)),
            "run_s001.h5 is missing: copy all files",
            id="gap",
        ),
        pytest.param(
            lambda path: segment_path(path, 1).write_bytes(path.read_bytes()), "is not part 1", id="same file"
        ),
    ],
)
def test_what_is_wrong_is_said(
    path: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(path)
    assert main(["verify", str(path)]) == 0
    assert "run.h5: sound, closed" in capsys.readouterr().out
    damage(path)
    assert main(["verify", str(path)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "NOT sound" in lines[0]
    wrong = [line for line in lines if line.startswith("  fault ")]
    assert any(re.search(words, line) for line in wrong)


def test_report_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(path)
    assert main(["verify", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sound"], report["frames"], report["ledger"]["received"]) == (True, 12, 12)
    change("volume", (0, 0, 0, 0), 7)(path)
    assert main(["verify", str(path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["faults"] == ["the volume of sweep 0 has the wrong checksum"]


def test_very_many_faults_are_counted_and_the_first_shown(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = started(recorder(path, time_points=60))
    for sweep in range(60):
        put_sweep(target, sweep)
    target.stop()
    with h5py.File(path, "r+") as file:
        file["projections"][...] = 1
    assert main(["verify", str(path)]) == 3
    assert capsys.readouterr().out.splitlines()[-1].endswith("80 more")


def test_of_what_is_no_run_file_nobody_says_that_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "garbage.h5"
    path.write_bytes(b"garbage")
    assert main(["verify", str(path)]) == 3
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{path}: NOT sound"
    assert "cannot be read as HDF5" in second


def test_missing_file_is_the_user_s(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        verify_run(tmp_path / "none.h5")
    assert main(["verify", str(tmp_path / "none.h5")]) == 2


def test_random_damage_is_never_a_traceback(path: Path) -> None:
    target = started(recorder(path, time_points=2, live=True))
    put_sweep(target, 0)
    target.put_frame(frame(1, 0))
    put_volume(target, 1)
    target.stop()
    sound = path.read_bytes()
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(150):
        content = np.frombuffer(sound, np.uint8).copy()
        among = rng.choice((1 << 13, content.size))  # HDF5's own tables lie at the beginning
        content[rng.integers(0, among, rng.choice((1, 5, 50)))] = rng.integers(256)
        path.write_bytes(content[: rng.choice((content.size, rng.integers(content.size)))].tobytes())
        found += not verify_run(path).sound
    assert found > 100


def test_info_tells_the_ledger_events_and_what_came_later(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.put_frame(frame(1, 0))
    target.mark(1, 0, 0, Status.SKIPPED, "the engine was busy")
    put_volume(target, 1, effort=1)
    target.put_event("effort", "one evaluation from here on")
    target.put_ledger(Ledger(announced=6, dropped_by_sender=1, duplicates=2, announced_known=1))
    target.stop()
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "6 announced, 4 received, 2 missing" in said
    assert "1 dropped_by_sender, 1 on_the_line" in said
    assert "2 duplicates" in said
    assert "1, the last after" in said
    assert "effort, one evaluation from here on" in said
    assert "1 of them reconstructed later" in said
    assert "one evaluation 1" in said
    assert reconstruction(0).served in said
