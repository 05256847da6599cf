from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    SHAPE,
    frame,
    header,
    put_sweep,
    put_volume,
    reconstruction,
    recorder,
    resumed,
    started,
    volume,
    wait,
    when_recorded,
)

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.recorder import segment
from microdiffusion.daemon.recorder.opening import resume_recorder
from microdiffusion.daemon.recorder.writer import Written
from microdiffusion.errors import DiskError, InputFileError, RunError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status, segment_path
from microdiffusion.runfile.verify import verify_run


def test_volume_is_readable_when_it_is_announced(path: Path) -> None:
    announced: list[Written] = []

    def check(written: Written) -> None:
        with open_run(path) as run:
            assert run.status[written.sweep] == 1
            np.testing.assert_array_equal(run.volume[written.sweep], volume(written.sweep))
        announced.append(written)

    target = started(recorder(path, on_written=check))
    for sweep in range(3):
        put_sweep(target, sweep)
    target.stop()
    assert [(w.sweep, w.channel, w.position) for w in announced] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert all(0 < w.latency_s < 20 for w in announced)
    with open_run(path) as run:
        assert run.values("latency_s").tolist() == [w.latency_s for w in announced]


@pytest.mark.parametrize("durable", [False, True])
def test_all_figures_of_a_volume_are_there_before_its_status(
    path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    write = segment.Segment.write

    def watched(target: segment.Segment, name: str, index: tuple[int, ...], value: object) -> None:
        write(target, name, index, value)
        if name == "mdd/status":
            with open_run(path) as run:
                seen.extend(bool(np.isfinite(run.values(one)[index])) for one in ("latency_s", "acquired_s"))

    monkeypatch.setattr(segment.Segment, "write", watched)
    target = started(recorder(path, durable=durable))
    put_sweep(target, 0)
    target.stop()
    assert seen == [True, True]


def test_every_time_point_ends_with_a_status_and_a_reason(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.mark(1, 0, 0, Status.SKIPPED, "the engine was busy: ä" + "ä" * 100)
    target.put_frame(frame(2, 0))
    target.put_frame(frame(4, 0))
    target.put_frame(frame(4, 1))
    target.mark(4, 0, 0, Status.FAILED, "the engine failed")
    target.stop()
    assert target.counts == {
        Status.EMPTY: 0,
        Status.WRITTEN: 1,
        Status.LOST: 2,
        Status.SKIPPED: 1,
        Status.FAILED: 1,
    }
    with open_run(path) as run:
        assert run.status.tolist() == [1, 3, 2, 2, 4]
        reasons = [reason.decode() for reason in run.values("reason")]
        assert reasons[0] == ""
        assert reasons[1].startswith("the engine was busy: ä")
        assert "run ended" in reasons[2]
        assert "no frame" in reasons[3]
        assert reasons[4] == "the engine failed"
        assert run.values("frames_received").tolist() == [3, 0, 1, 0, 2]
        assert run.values("frames_missing").tolist() == [0, 0, 2, 0, 1]
        assert np.isfinite(run.values("frames/z_um")[4]).tolist() == [True, True, False]
        assert run.sweep(4).missing == 1


def test_frame_that_comes_after_its_sweep_was_settled_is_kept_and_counted(path: Path) -> None:
    target = started(recorder(path))
    target.put_frame(frame(0, 0))
    target.mark(0, 0, 0, Status.LOST, "two frames are missing")
    target.put_frame(frame(0, 2))
    target.put_frame(frame(0, 2))
    target.stop()
    with open_run(path) as run:
        assert run.values("frames_received").tolist() == [2]
        assert run.values("frames_missing").tolist() == [1]
        np.testing.assert_array_equal(run.projections[0, 2], frame(0, 2).pixels)


def test_written_volume_stays_written(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    put_sweep(target, 0, volume=np.zeros(SHAPE, np.float32))
    target.mark(0, 0, 0, Status.LOST, "too late")
    target.stop()
    assert target.counts[Status.WRITTEN] == 1
    with open_run(path) as run:
        assert run.status.tolist() == [1]
        np.testing.assert_array_equal(run.volume[0], volume(0))


def test_volume_after_a_mark_replaces_it(path: Path) -> None:
    target = started(recorder(path))
    target.mark(0, 0, 0, Status.SKIPPED, "the engine was busy")
    put_sweep(target, 0)
    target.stop()
    assert (target.counts[Status.WRITTEN], target.counts[Status.SKIPPED]) == (1, 0)
    with open_run(path) as run:
        assert run.status.tolist() == [1]
        assert run.values("reason").tolist() == [b""]


def test_voxels_are_rounded_and_clipped(path: Path) -> None:
    content = np.zeros(SHAPE, np.float32)
    content[0, 0, :5] = [-3.0, 0.4, 0.6, 65534.6, 1e9]
    target = started(recorder(path))
    put_sweep(target, 0, volume=content)
    target.stop()
    with open_run(path) as run:
        assert run.volume[0, 0, 0, :5].tolist() == [0, 0, 1, 65535, 65535]


def test_float_run_keeps_its_voxels(path: Path) -> None:
    content = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    target = started(recorder(path, run=header(dtype="float32")))
    put_sweep(target, 0, volume=content)
    target.stop()
    with open_run(path) as run:
        assert run.volume.dtype == run.projections.dtype == np.float32
        np.testing.assert_array_equal(run.volume[0], content)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_volume_that_is_not_finite_counts_as_failed(path: Path, value: float) -> None:
    content = np.ones(SHAPE, np.float32)
    content[3, 4, 5] = value
    announced: list[Written] = []
    target = started(recorder(path, on_written=announced.append))
    put_sweep(target, 0, volume=content)
    target.stop()
    assert announced == []
    with open_run(path) as run:
        assert run.status.tolist() == [Status.FAILED]
        assert b"not finite" in run.values("reason")[0]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"index": FRAMES}, id="more frames than planned"),
        pytest.param({"sweep": 2}, id="beyond the planned sweeps"),
        pytest.param({"sweep": -1}, id="negative sweep"),
        pytest.param({"channel": 1}, id="unknown channel"),
        pytest.param({"position": 1}, id="unknown position"),
    ],
)
def test_frame_without_a_place_is_counted(path: Path, changes: dict) -> None:
    target = started(recorder(path, run=header(sweeps=2)))
    put_sweep(target, 0)
    astray = frame(0, 0)
    target.put_frame(replace(astray, info=replace(astray.info, **changes)))
    target.put_ledger(Ledger(announced=4, received=4))
    target.stop()
    with open_run(path) as run:
        assert run.ledger == Ledger(announced=4, received=4, unplaced=1)
        assert run.status.tolist() == [1]


def test_mistaken_sweep_number_does_not_fill_the_disk_with_files(path: Path) -> None:
    target = started(recorder(path))
    target.put_frame(frame(10**9, 0))
    put_sweep(target, 0)
    target.stop()
    assert target.data.ledger.unplaced == 1
    assert target.paths == [path]


def test_long_run_goes_on_in_further_files_even_after_an_outage(path: Path) -> None:
    target = started(recorder(path, time_points=2))
    put_sweep(target, 0)
    put_sweep(target, 6)
    target.stop()
    assert target.paths == [segment_path(path, number) for number in range(4)]
    with open_run(path) as run:
        assert run.status.tolist() == [1, 2, 2, 2, 2, 2, 1]
        np.testing.assert_array_equal(run.volume[6], volume(6))


def test_a_run_of_no_given_length_goes_on_before_a_file_is_too_large(path: Path) -> None:
    shape, most_bytes = (16, 64, 64), 4_000_000
    run = header(shape=shape)
    assert run.sweeps is None
    target = started(recorder(path, run=run, time_points=1000, file_gb=most_bytes / 1e9))
    for sweep in range(60):
        put_volume(target, sweep, volume=volume(sweep, shape=shape))
    wait(lambda: target.counts[Status.WRITTEN] == 60)
    with open_run(path) as opened:  # while the run goes on
        assert opened.status[:60].tolist() == [1] * 60
    target.stop()
    assert len(target.paths) > 1
    assert all(part.stat().st_size <= most_bytes for part in target.paths)
    with open_run(path) as opened:
        np.testing.assert_array_equal(opened.volume[59], volume(59, shape=shape))
    assert verify_run(path).faults == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's open files")
def test_run_of_many_files_keeps_few_of_them_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microdiffusion.daemon.recorder.files.open_files", lambda: 4)

    def open_files() -> int:
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        return sum(str(link.readlink()).startswith(str(path.parent)) for link in links if link.is_symlink())

    target = started(recorder(path, time_points=1))
    for sweep in range(12):
        put_sweep(target, sweep)
    wait(lambda: target.counts[Status.WRITTEN] == 12)
    assert 1 < open_files() <= 7  # the lock's among them
    target.put_frame(frame(0, 0, seq=77))  # late, for a file that was put aside: its slot is taken
    target.mark(3, 0, 0, Status.LOST, "late")
    target.stop()
    assert open_files() == 0
    again = resume_recorder(path, RecorderConfig(), on_written=lambda written: None)
    again.start()
    assert 1 < open_files() <= 7
    put_sweep(again, 12)
    again.stop()
    assert verify_run(path).faults == []
    assert verify_run(path).volumes == 13


def test_planned_run_takes_exactly_its_room(path: Path) -> None:
    target = started(recorder(path, run=header(sweeps=3), time_points=100))
    with open_run(path) as run:
        assert len(run) == 3
    target.stop()


def test_full_queue_refuses_volumes_instead_of_waiting(path: Path) -> None:
    gate = threading.Event()
    target = started(recorder(path, queue_mb=0.01, on_written=lambda written: gate.wait(20)))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)  # now the thread stands at the gate
    for seq in range(20):  # frames are always taken: their sender's window bounds them
        target.put_frame(frame(1, seq % FRAMES))
    assert target.is_full
    late = reconstruction(1)
    assert not target.put_volume(1, 0, 0, late, acquired_s=0.0, received_s=0.0)
    target.mark(2, 0, 0, Status.LOST, "notes are always taken")
    gate.set()
    wait(lambda: target.queue_bytes == 0)
    target.stop()
    with open_run(path) as run:
        assert run.status[2] == Status.LOST


def test_array_larger_than_the_queue_is_taken_when_the_queue_is_empty(path: Path) -> None:
    target = started(recorder(path, queue_mb=1e-6))
    put_sweep(target, 0)
    target.stop()
    assert target.counts[Status.WRITTEN] == 1


def test_existing_file_is_not_overwritten(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(InputFileError, match="exists and is not overwritten"):
        recorder(path).start()
    assert path.read_text() == "precious"


def test_remains_of_a_killed_creation_are_no_obstacle(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / ".run.h5.tmp").write_text("half")
    target = started(recorder(path))
    target.stop()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


def no_free_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment, "reserve_blocks", fail)


@pytest.mark.parametrize("disk", [no_free_space, full_disk])
def test_disk_without_room_fails_before_the_run(path: Path, monkeypatch: pytest.MonkeyPatch, disk) -> None:
    disk(monkeypatch)
    with pytest.raises(DiskError, match=r"needs .* MB .* recorder.time_points"):
        recorder(path).start()
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_limit_on_the_size_of_files_fails_before_the_run(path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "from support.run_file_writer import recorder; from microdiffusion.errors import DiskError\n"
        "try: recorder(Path(sys.argv[2]), time_points=1000).start()\n"
        "except DiskError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(path)],
        timeout=60, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(path.parent) in done.stdout
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no rights of this kind")
def test_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be created"):
        recorder(tmp_path / "file" / "run.h5").start()


def test_disk_that_fails_during_the_run_is_raised_to_the_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1 and target.queue_bytes == 0)

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(segment, "write_at", fail)
        target.put_frame(frame(1, 0))
        with pytest.raises(DiskError, match="Input/output error"):
            wait(lambda: target.raise_if_failed() is not None)
    never: list[int] = []
    target.put_frame(frame(1, 1), when_recorded(lambda: never.append(1)))
    with pytest.raises(DiskError):
        target.stop()
    assert never == []
    with open_run(path) as run:
        assert not run.closed
        np.testing.assert_array_equal(run.volume[0], volume(0))


def test_failure_of_the_owner_s_callback_is_not_silent(path: Path) -> None:
    def fail(written: Written) -> None:
        raise KeyError("preview")

    target = started(recorder(path, on_written=fail))
    put_sweep(target, 0)
    with pytest.raises(RunError, match="KeyError"):
        target.stop()


def test_stop_says_so_when_the_disk_hangs(path: Path) -> None:
    gate = threading.Event()
    target = started(recorder(path, on_written=lambda written: gate.wait(20)))
    put_sweep(target, 0)
    with pytest.raises(DiskError, match="too slow or hangs"):
        target.stop(timeout_s=0.1)
    gate.set()
    target.stop()


def test_nothing_is_taken_after_the_stop(path: Path) -> None:
    target = started(recorder(path))
    target.stop()
    never: list[int] = []
    target.put_frame(frame(0, 0), when_recorded(lambda: never.append(1)))
    target.mark(0, 0, 0, Status.LOST, "late")
    target.stop()
    assert never == []


def test_stop_without_start_is_harmless(path: Path) -> None:
    recorder(path).stop()
    resumed(path).stop()
    assert verify_run(path).faults == []


def test_file_is_left_untrimmed_where_the_copy_cannot_be_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path, time_points=50))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    full_disk(monkeypatch)
    target.stop()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]
    with open_run(path) as run:
        assert (len(run), run.closed) == (50, True)
        np.testing.assert_array_equal(run.volume[0], volume(0))


def test_recorder_keeps_up_with_many_small_frames(path: Path) -> None:
    target = started(recorder(path, time_points=400))
    start = time.monotonic()
    for sweep in range(400):
        for index in range(FRAMES):
            target.put_frame(frame(sweep, index))
    target.stop()
    assert time.monotonic() - start < 20
    with open_run(path) as run:
        assert run.values("frames_received").tolist() == [FRAMES] * 400
