"""The recorder under a full, slow or failing disk: what it confirms, and what it does not."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    frame,
    put_sweep,
    put_volume,
    recorder,
    resumed,
    started,
    volume,
    wait,
    when_recorded,
)

from microdiffusion.daemon.recorder import segment
from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.errors import DiskError, NoRoomError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status, segment_path
from microdiffusion.runfile.verify import verify_run


class Disk:
    """A disk that can be full, slow or broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.full_inside = False
        self.bytes_s = float("inf")
        self._write_at, self._reserve = segment.write_at, segment.reserve_blocks
        monkeypatch.setattr(segment, "write_at", self.write_at)
        monkeypatch.setattr(segment, "reserve_blocks", self.reserve)
        monkeypatch.setattr("microdiffusion.daemon.recorder.recorder._RETRY_S", 0.01)

    def write_at(self, descriptor: int, data: memoryview, offset: int) -> int:
        if self.full_inside:
            raise OSError(errno.ENOSPC, "No space left on device")
        time.sleep(len(data) / self.bytes_s)
        return self._write_at(descriptor, data, offset)

    def reserve(self, descriptor: int, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._reserve(descriptor, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_receipt_is_complete_when_the_file_has_it_and_in_order(path: Path) -> None:
    taken: list[int] = []
    target = started(recorder(path))
    with open_run(path) as run:

        def check(seq: int) -> None:
            sweep, index = divmod(seq, FRAMES)
            assert run.values("frames/seq")[sweep, index] == seq
            np.testing.assert_array_equal(run.projections[sweep, index], frame(sweep, index).pixels)
            taken.append(seq)

        for seq in range(15):
            target.put_frame(frame(*divmod(seq, FRAMES)), when_recorded(partial(check, seq)))
        target.stop()
    assert taken == list(range(15))


def test_call_comes_between_what_was_handed_over_before_and_after(path: Path) -> None:
    order: list[str] = []
    target = started(recorder(path))
    target.put_frame(frame(0, 0), when_recorded(lambda: order.append("first")))
    target.call(lambda: order.append(threading.current_thread().name))
    target.put_frame(frame(0, 1), when_recorded(lambda: order.append("second")))
    target.stop()
    assert order == ["first", "recorder", "second"]


def test_full_disk_at_a_further_file_is_waited_out(path: Path, disk: Disk) -> None:
    target = started(recorder(path, time_points=2))
    put_sweep(target, 0)
    disk.full = True
    taken: list[int] = []
    for index in range(FRAMES):
        target.put_frame(frame(2, index), when_recorded(partial(taken.append, index)))
    wait(lambda: "needs" in target.waiting_for)
    time.sleep(0.05)
    assert taken == []
    target.raise_if_failed()
    loaded = target.load_sweep(2, 0, 0)  # what waits can be had all the same
    assert loaded is not None
    assert (loaded.projections.shape[0], loaded.missing) == (FRAMES - 1, 0)
    np.testing.assert_array_equal(loaded.projections[1], frame(2, 1).pixels)
    disk.full = False
    wait(lambda: taken == [0, 1, 2])
    assert target.waiting_for == ""
    put_volume(target, 2)
    target.stop()
    assert verify_run(path).faults == []
    with open_run(path) as run:
        assert run.status.tolist() == [1, 2, 1]
        assert [event.kind for event in run.events] == ["disk", "disk"]
        assert "waiting" in run.events[0].text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "Disable slist on flush dest failure failed (file write failed: time = now\n, errno = 28, x"
        ),
    ],
    ids=["as the system says it", "as HDF5 says it"],
)
def test_a_disk_that_fills_while_a_file_is_made_is_waited_out(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    create = segment.create_run_file

    def make(*arguments: Any) -> Any:
        if disk.full:
            raise error
        return create(*arguments)

    monkeypatch.setattr(segment, "create_run_file", make)
    target = started(recorder(path, time_points=2))
    put_sweep(target, 0)
    disk.full = True
    taken: list[int] = []
    target.put_frame(frame(2, 0), when_recorded(partial(taken.append, 0)))
    wait(lambda: target.waiting_for != "")
    disk.full = False
    wait(lambda: taken == [0])
    target.stop()
    assert target.paths == [path, segment_path(path, 1)]


def test_a_close_does_not_fail_for_want_of_room_for_a_shorter_copy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path, time_points=4))
    put_sweep(target, 0)

    def make(*arguments: Any) -> Any:
        raise RuntimeError("file write failed: errno = 28")

    monkeypatch.setattr(segment, "create_run_file", make)
    target.stop()
    with open_run(path) as run:
        assert run.closed
    assert [each.name for each in path.parent.iterdir() if each.suffix == ".tmp"] == []


def test_disk_that_is_full_inside_of_the_file_is_waited_out(path: Path, disk: Disk) -> None:
    """A file system that copies on write can be full although the file's room was reserved."""
    target = started(recorder(path))
    put_sweep(target, 0)
    wait(lambda: target.queue_bytes == 0)
    disk.full_inside = True
    taken: list[int] = []
    target.put_frame(frame(1, 0), when_recorded(partial(taken.append, 0)))
    wait(lambda: "No space left" in target.waiting_for)
    disk.full_inside = False
    wait(lambda: taken == [0])
    target.stop()
    assert verify_run(path).faults == []


def test_stop_while_the_disk_is_full_is_quick_and_closes_what_there_is(path: Path, disk: Disk) -> None:
    target = started(recorder(path, time_points=2))
    put_sweep(target, 0)
    disk.full = True
    taken: list[int] = []
    target.put_frame(frame(2, 0), when_recorded(partial(taken.append, 0)))
    wait(lambda: target.waiting_for != "")
    # It has room, and is not written before its turn.
    target.put_frame(frame(1, 0), when_recorded(partial(taken.append, 1)))
    target.mark(1, 0, 0, Status.SKIPPED, "the engine was busy")
    target.put_ledger(Ledger(announced=5, announced_known=1))
    start = time.monotonic()
    with pytest.raises(NoRoomError, match="2 frames were not recorded"):
        target.stop()
    assert time.monotonic() - start < 5
    assert taken == []
    report = verify_run(path)
    assert (report.faults, report.closed, report.volumes) == ([], True, 1)
    assert report.ledger == Ledger(5, 3, 2, on_the_line=2, announced_known=1)
    disk.full = False
    again = resumed(path)
    assert again.index.next_sweep == 1
    again.start()
    again.put_frame(frame(2, 0), when_recorded(partial(taken.append, 0)))
    again.stop()
    assert taken == [0]
    assert again.paths == [path, segment_path(path, 1)]
    assert verify_run(path).faults == []


def test_disk_that_fails_otherwise_ends_the_recorder_and_acknowledges_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    wait(lambda: target.queue_bytes == 0)

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    taken: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(segment, "write_at", fail)
        target.put_frame(frame(1, 0), when_recorded(partial(taken.append, 0)))
        with pytest.raises(DiskError, match="Input/output error"):
            wait(lambda: target.raise_if_failed() is not None)
    with pytest.raises(DiskError):
        target.stop()
    assert taken == []
    again = resumed(path)  # the lock is free, the file whole
    assert again.index.next_sweep == 1
    again.stop()


def test_slow_disk_bounds_the_queue_and_gives_no_wrong_status(path: Path, disk: Disk) -> None:
    disk.bytes_s = 5e5
    taken: list[int] = []
    target = started(recorder(path, queue_mb=0.005, time_points=20))
    most = 0
    for seq in range(60):
        wait(lambda: not target.is_full)
        target.put_frame(frame(*divmod(seq, FRAMES)), when_recorded(partial(taken.append, seq)))
        most = max(most, target.queue_bytes)
        assert verify_run(path).faults == [] if seq % 20 == 0 else True
    assert most <= 5000 + frame(0, 0).pixels.nbytes
    assert len(taken) < 60
    disk.bytes_s = float("inf")
    target.stop()
    assert taken == list(range(60))
    assert verify_run(path).faults == []


def fill(target: Recorder, sweep: int) -> None:
    for index in range(FRAMES):
        target.put_frame(frame(sweep, index))


@pytest.mark.parametrize(
    ("before", "later"),
    [
        pytest.param(lambda target: None, 0, id="nothing"),
        pytest.param(lambda target: target.mark(0, 0, 0, Status.SKIPPED, "busy"), 1, id="skipped"),
        pytest.param(lambda target: target.mark(0, 0, 0, Status.FAILED, "broken"), 1, id="failed"),
        pytest.param(lambda target: target.mark(0, 0, 0, Status.LOST, "late"), 1, id="lost"),
    ],
)
def test_what_was_given_up_may_be_written_later(
    path: Path, before: Callable[[Recorder], None], later: int
) -> None:
    told: list[bool] = []
    target = started(recorder(path, on_written=lambda written: told.append(written.later)))
    fill(target, 0)
    before(target)
    put_volume(target, 0, effort=2)
    target.mark(0, 0, 0, Status.SKIPPED, "too late")
    target.stop()
    with open_run(path) as run:
        assert run.status.tolist() == [1]
        assert run.values("later").tolist() == [later]
        assert run.values("effort").tolist() == [2]
        np.testing.assert_array_equal(run.volume[0], volume(0))
    assert told == [bool(later)]
    assert verify_run(path).faults == []


def test_sweep_is_loaded_as_it_was_recorded(path: Path) -> None:
    target = started(recorder(path))
    fill(target, 3)
    target.put_frame(frame(4, 1))
    wait(lambda: target.queue_bytes == 0)
    loaded = target.load_sweep(3, 0, 0)
    assert loaded is not None
    assert (loaded.sweep, loaded.channel, loaded.position, loaded.missing) == (3, 0, 0, 0)
    assert loaded.time_s == 3.2
    np.testing.assert_array_equal(loaded.stage.z_um, [0, 4])
    np.testing.assert_array_equal(loaded.held_out_stage.z_um, [8])
    np.testing.assert_array_equal(loaded.projections[1], frame(3, 1).pixels)
    np.testing.assert_array_equal(loaded.held_out[0], frame(3, 2).pixels)
    part = target.load_sweep(4, 0, 0)
    assert part is not None
    assert part.missing == 2
    frames = target.load_frames(3, 0, 0)
    assert [one.info for one in frames] == [frame(3, index).info for index in range(FRAMES)]
    np.testing.assert_array_equal(frames[2].pixels, frame(3, 2).pixels)
    assert target.load_sweep(5, 0, 0) is None
    assert target.load_sweep(10**9, 0, 0) is None
    assert target.load_sweep(0, 0, 7) is None
    target.stop()
    after = target.load_sweep(3, 0, 0)
    assert after is not None
    np.testing.assert_array_equal(after.projections, loaded.projections)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_lock_of_a_killed_daemon_is_no_obstacle(path: Path) -> None:
    target = started(recorder(path))
    target.stop()
    path.with_name(".run.h5.lock").write_text("")
    again = resumed(path)
    again.stop()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


def test_a_disk_too_small_for_the_next_file_is_told_in_the_middle_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    monkeypatch.setattr("microdiffusion.daemon.recorder.writer._LOOK_S", 0.0)
    target = started(recorder(path, time_points=6))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("microdiffusion.daemon.recorder.disk.shutil.disk_usage", lambda folder: usage)
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    assert target.short_of_room == ""
    for sweep in range(1, 5):
        put_sweep(target, sweep)
    wait(lambda: target.counts[Status.WRITTEN] == 5)
    wait(lambda: target.short_of_room.startswith("room for 1 more sweeps: then the run needs "))
    usage.free = 1 << 40
    put_sweep(target, 5)
    wait(lambda: target.counts[Status.WRITTEN] == 6 and target.short_of_room == "")
    target.stop()
    with open_run(path) as run:
        (event,) = [event for event in run.events if event.kind == "disk"]
        assert event.text.startswith("room for 3 more sweeps")
        assert run.written().tolist() == list(range(6))


def test_a_disk_that_fails_at_the_very_end_is_told_and_the_lock_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(files: RunFiles) -> None:
        raise DiskError("the disk failed")

    target = started(recorder(path))
    put_sweep(target, 0)
    monkeypatch.setattr(RunFiles, "close", fail)
    with pytest.raises(DiskError, match="the disk failed"):
        target.stop()
    monkeypatch.undo()
    again = started(resumed(path))
    again.stop()
    assert verify_run(path).sound
