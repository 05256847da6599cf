"""Going on with a run file: after a kill, after a close in order, and not while another daemon writes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.run_file_writer import (
    FRAMES,
    SHAPE,
    frame,
    header,
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
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.errors import DiskError, InputFileError, MissingFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status, segment_path
from microdiffusion.runfile.verify import verify_run


def abandon(target: Recorder) -> None:
    """Leave the files as a killed daemon does, once what was handed over is written."""
    gate = threading.Event()
    target.call(gate.set)
    assert gate.wait(20)
    target._files.close()
    target._lock.release()


def test_killed_run_goes_on_where_it_stopped(path: Path) -> None:
    first = started(recorder(path, time_points=3))
    for sweep in range(4):
        put_sweep(first, sweep)
    first.put_frame(frame(4, 0))
    first.mark(5, 0, 0, Status.SKIPPED, "the engine was busy")
    first.put_ledger(Ledger(announced=14, dropped_by_sender=1, duplicates=3))
    first.put_event("test", "before")
    abandon(first)
    assert not verify_run(path).closed
    assert verify_run(path).sound

    second = resumed(path)
    assert second.header == header()
    assert (len(second.received), second.received.highest) == (13, 12)
    assert second.index.next_sweep == 5
    assert second.last_time_s == 4.0
    assert second.index.unfinished([Status.EMPTY]) == [(4, 0, 0)]
    assert second.counts[Status.WRITTEN] == 4
    assert second.data.ledger == Ledger(
        announced=14, received=13, missing=1, dropped_by_sender=1, duplicates=3
    )
    second.start()
    with open_run(path) as run:
        assert not run.closed
    put_sweep(second, 0, volume=np.zeros(SHAPE, np.float32))  # written stays written
    second.put_frame(frame(4, 1))
    second.put_frame(frame(4, 2))
    put_volume(second, 4)
    put_sweep(second, 5)
    second.stop()
    report = verify_run(path)
    assert (report.faults, report.closed, report.frames, report.volumes) == ([], True, 18, 6)
    with open_run(path) as run:
        assert run.status.tolist() == [1] * 6
        assert run.values("later").tolist() == [0, 0, 0, 0, 0, 1]
        assert run.values("reason").tolist() == [b""] * 6
        np.testing.assert_array_equal(run.volume[:], [volume(sweep) for sweep in range(6)])
        assert [event.text for event in run.events] == ["before", "the run was resumed"]
        assert run.events[0].time_s <= run.events[1].time_s


def test_frame_that_was_half_written_is_not_there(path: Path) -> None:
    first = started(recorder(path))
    put_sweep(first, 0)
    abandon(first)
    with h5py.File(path, "r+") as file:  # as if the kill had come before the last of a frame's writes
        file["mdd/frames/seq"][0, 2] = -1
    second = resumed(path)
    assert (len(second.received), second.received.highest) == (2, 1)
    second.start()
    taken: list[int] = []
    second.put_frame(frame(0, 2), when_recorded(partial(taken.append, 2)))
    second.stop()
    assert taken == [2]
    assert verify_run(path).faults == []


def test_counts_that_a_kill_left_behind_are_mended(path: Path) -> None:
    first = started(recorder(path))
    put_sweep(first, 0)
    abandon(first)
    with h5py.File(path, "r+") as file:
        file["mdd/frames_received"][0] = 2
    second = started(resumed(path))
    second.stop()
    assert verify_run(path).faults == []


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_run_that_was_closed_and_cut_gets_its_room_back(path: Path, end: str) -> None:
    first = started(recorder(path, time_points=6))
    put_sweep(first, 0)
    put_sweep(first, 1)
    first.stop()
    assert len(open_run(path)) == 2
    second = started(resumed(path))
    with open_run(path) as run, open_run(path) as other:
        follower = run.follow(timeout_s=20, poll_s=0.005)
        assert [next(follower)[0], next(follower)[0]] == [0, 1]
        for sweep in range(2, 8):
            put_sweep(second, sweep)
        seen = [next(follower)[0] for _ in range(6)]
        assert seen == [2, 3, 4, 5, 6, 7]  # in a longer file of that name, then in a further one
        second.put_ledger(Ledger(announced=30, dropped_by_sender=6))
        wait(lambda: other.ledger.announced == 30)
        assert other.ledger == Ledger(30, 24, 6, dropped_by_sender=6)
        assert len(other) == 12
    if end == "closed":
        second.stop()
    else:
        abandon(second)
    assert second.paths == [path, segment_path(path, 1)]
    report = verify_run(path)
    assert (report.faults, report.volumes, report.closed) == ([], 8, end == "closed")
    with open_run(path) as run:
        assert len(run) == (8 if end == "closed" else 12)
        np.testing.assert_array_equal(run.volume[:8], [volume(sweep) for sweep in range(8)])
        assert run.sweep(7).projections.shape == (2, *SHAPE[1:])


def test_run_goes_on_in_a_further_file_where_the_first_cannot_be_made_longer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = started(recorder(path, time_points=6))
    put_sweep(first, 0)
    first.stop()
    monkeypatch.setattr(segment.Segment, "lengthen", lambda self, time_points, most_bytes: False)
    for sweeps in ([1, 2], [3]):
        again = started(resumed(path))
        for sweep in sweeps:
            put_sweep(again, sweep)
        again.stop()
    report = verify_run(path)
    assert (report.faults, report.files, report.volumes) == ([], 3, 4)
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[:], [volume(sweep) for sweep in range(4)])


def test_planned_run_that_is_gone_on_with_keeps_to_its_plan(path: Path) -> None:
    first = started(recorder(path, run=header(sweeps=3), time_points=100))
    put_sweep(first, 0)
    first.stop()
    second = started(resumed(path))
    for sweep in range(1, 4):
        for index in range(FRAMES):
            second.put_frame(frame(sweep, index))
    put_volume(second, 2)
    second.stop()
    assert second.data.ledger.unplaced == 3
    with open_run(path) as run:
        assert run.status.tolist() == [1, 2, 1]
        assert run.ledger.received == 12
    assert verify_run(path).faults == []


def test_late_frames_of_a_closed_run_find_their_places(path: Path) -> None:
    first = started(recorder(path))
    put_sweep(first, 0)
    first.put_frame(frame(1, 0))
    first.put_ledger(Ledger(announced=6, unsent=2, announced_known=1))
    first.stop()
    with open_run(path) as run:
        assert run.ledger == Ledger(announced=6, received=4, missing=2, unsent=2, announced_known=1)
        assert run.status.tolist() == [1, 2]
    second = started(resumed(path))
    second.put_frame(frame(1, 1))
    second.put_frame(frame(1, 2))
    put_volume(second, 1)
    second.stop()
    with open_run(path) as run:
        assert run.ledger == Ledger(announced=6, received=6, announced_known=1)
        assert run.values("later").tolist() == [0, 1]
        assert run.values("frames_missing").tolist() == [0, 0]
    assert verify_run(path).faults == []
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


def test_frame_without_a_place_is_known_again_after_a_kill(path: Path) -> None:
    first = started(recorder(path, run=header(sweeps=1)))
    put_sweep(first, 0)
    taken: list[int] = []
    first.put_frame(frame(5, 0), when_recorded(partial(taken.append, 15)))
    other = frame(0, 1)
    first.put_frame(
        replace(other, info=replace(other.info, seq=40)), when_recorded(partial(taken.append, 40))
    )
    abandon(first)
    assert taken == [15, 40]
    second = resumed(path)
    assert 15 in second.received
    assert 40 in second.received
    assert len(second.received) == 5
    second.start()
    second.stop()
    with open_run(path) as run:
        assert (run.ledger.received, run.ledger.unplaced) == (5, 2)
        np.testing.assert_array_equal(run.projections[0, 1], frame(0, 1).pixels)
    assert verify_run(path).faults == []


def test_a_kill_while_a_closed_run_is_opened_again_leaves_it_sound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = started(recorder(path, time_points=2))
    for sweep in range(5):
        put_sweep(first, sweep)
    first.put_ledger(Ledger(announced=15, announced_known=1))
    first.stop()
    write = segment.Segment.write

    def write_once(self: segment.Segment, name: str, index: tuple[int, ...], value: object) -> None:
        write(self, name, index, value)
        if name == "mdd/closed":
            raise DiskError("killed")

    monkeypatch.setattr(segment.Segment, "write", write_once)
    with pytest.raises(DiskError, match="killed"):
        resumed(path).start()
    report = verify_run(path)
    assert (report.faults, report.closed, report.files) == ([], False, 3)


def test_second_daemon_is_kept_off_the_file(path: Path) -> None:
    first = started(recorder(path))
    with pytest.raises(InputFileError, match="being written by another mdd"):
        resumed(path)
    first.stop()
    second = resumed(path)
    with pytest.raises(InputFileError, match="being written by another mdd"):
        resumed(path)
    second.stop()  # never started
    third = started(resumed(path))
    third.stop()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


def test_a_folder_without_locks_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: FileLock, *_: object) -> None:
        raise NotImplementedError("the file system has no flock")  # as filelock has it

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(DiskError, match="the file system has no flock"):
        recorder(path)


def test_absent_foreign_and_damaged_files_are_refused(path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file at"):
        resumed(path)
    target = started(recorder(path, time_points=2))
    for sweep in range(4):
        put_sweep(target, sweep)
    target.stop()
    with pytest.raises(InputFileError, match="not part 0"):
        resumed(segment_path(path, 1))
    segment_path(path, 1).write_bytes(path.read_bytes())
    with pytest.raises(MissingFileError, match=r"is missing \(another file has the name"):
        resumed(path)
    segment_path(path, 1).write_bytes(b"nothing")
    with pytest.raises(InputFileError, match="cannot be read as HDF5"):
        resumed(path)
    segment_path(path, 1).unlink()
    with pytest.raises(MissingFileError, match="is missing"):
        resumed(path)


@pytest.mark.skipif(sys.platform == "win32", reason="rights of files are POSIX")
def test_file_that_may_not_be_written_is_a_disk_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = started(recorder(path))
    target.stop()

    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(segment, "open_for_writing", refuse)
    with pytest.raises(DiskError, match="Permission denied"):
        resumed(path)


def test_run_that_is_killed_again_and_again_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """SIGKILL at random moments of one run, gone on with each time; segments of 5 time points."""
    rng = np.random.default_rng(8)
    path = tmp_path / "run.h5"
    script = Path(__file__).parents[1] / "support" / "run_file_writer.py"
    frames: set[int] = set()
    volumes: set[int] = set()
    for attempt in range(8):
        with subprocess.Popen(
            [sys.executable, str(script), str(path), "5", "resumed"], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            told = []
            while attempt > 2 and not any(not line.startswith("frame") for line in told):
                told.append(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.15))
            writer.kill()
            told += [line for line in writer.stdout if line.endswith("\n")]
        frames |= {int(line.split()[1]) for line in told if line.startswith("frame")}
        volumes |= {int(line) for line in told if not line.startswith("frame")}
        if path.exists():
            assert verify_run(path).faults == []
    last = resumed(path)
    assert all(seq in last.received for seq in frames)
    last.start()
    last.stop()
    report = verify_run(path)
    assert (report.faults, report.closed) == ([], True)
    assert len(volumes) >= 5
    with open_run(path) as run:
        for sweep in volumes:
            assert run.status[sweep] == Status.WRITTEN
            np.testing.assert_array_equal(run.volume[sweep], volume(sweep))
        for seq in sorted(frames):
            sweep, index = divmod(seq, FRAMES)
            np.testing.assert_array_equal(run.projections[sweep, index], frame(sweep, index).pixels)


Act = tuple[str, int, int]
_acts = st.lists(
    st.tuples(
        st.sampled_from(["frame", "frame", "frame", "volume", "mark", "kill", "close"]),
        st.integers(0, 6),
        st.integers(0, FRAMES),
    ),
    max_size=25,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=_acts)
def test_any_order_of_frames_volumes_kills_and_closes_leaves_a_sound_file(
    tmp_path: Path, acts: list[Act]
) -> None:
    folder = tmp_path / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / "run.h5"
    target = started(recorder(path, time_points=2))
    placed: set[int] = set()
    unplaced: set[int] = set()
    status: dict[int, Status] = {}
    taken: list[int] = []
    for what, sweep, index in [*acts, ("close", 0, 0)]:
        if what == "frame":
            seq = sweep * 10 + index
            one = frame(sweep, index, seq=seq)
            if seq not in placed | unplaced:  # ingest lets no number through twice
                target.put_frame(one, when_recorded(partial(taken.append, seq)))
                (placed if index < FRAMES else unplaced).add(seq)
        elif what == "volume":
            put_volume(target, sweep)
            status[sweep] = Status.WRITTEN
        elif what == "mark":
            target.mark(sweep, 0, 0, Status.SKIPPED, "the engine was busy")
            if status.get(sweep) is not Status.WRITTEN:
                status[sweep] = Status.SKIPPED
        else:
            if what == "kill":
                abandon(target)
            else:
                target.stop()
                last = max([*status, *(seq // 10 for seq in placed)], default=-1)
                for gap in range(last + 1):
                    status.setdefault(gap, Status.LOST)
            assert verify_run(path).faults == []
            target = resumed(path)
            assert set(taken) == placed | unplaced
            assert len(target.received) == len(placed) + len(unplaced)
            assert all(seq in target.received for seq in placed | unplaced)
            assert target.index.next_sweep == max((seq // 10 for seq in placed), default=-1) + 1
            counts = {code: list(status.values()).count(code) for code in Status}
            assert target.counts == counts
            target.start()
    abandon(target)
    with open_run(path) as run:
        for sweep, code in status.items():
            assert run.status[sweep] == code
            if code is Status.WRITTEN:
                np.testing.assert_array_equal(run.volume[sweep], volume(sweep))
        for seq in placed:
            np.testing.assert_array_equal(
                run.projections[seq // 10, seq % 10], frame(seq // 10, seq % 10).pixels
            )
