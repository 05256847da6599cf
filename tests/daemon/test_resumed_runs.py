"""Runs that are gone on with, in their real files, with an engine that does nothing."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.run_file_writer import FRAMES, frame, header, recorder, resumed, wait

from microdiffusion.config.models import Config
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.sinks import SweepJob
from microdiffusion.daemon.ingest import Ingest, NotYet
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.runs import live_run
from microdiffusion.daemon.runs.live_run import LiveRun
from microdiffusion.daemon.runs.registry import OpenRuns
from microdiffusion.daemon.status.board import StatusBoard
from microdiffusion.errors import ConfigError, InputFileError, RunError, UserError
from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status
from microdiffusion.wire.messages import RunEnd

TWO = header(channels=("a", "b"), positions=("p", "q"))


class Place:
    """A daemon without sockets and processes: `runs` in a folder, and an engine that was not started."""

    def __init__(self, folder: Path, **settings: object) -> None:
        config = Config.model_validate({"recorder": {"output": folder, "time_points": 8}, **settings})
        self.board = StatusBoard()
        self.engine = EngineProcess(config.engine, waiting_bytes=1 << 30)
        self.ingest = Ingest("tcp://127.0.0.1:*")
        self.runs = OpenRuns(config, self.engine, self.board, self.ingest)

    def close(self) -> None:
        self.ingest.stop()
        self.runs.close_all(drain_s=0.0, hurry=lambda: True, show=lambda: None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def abandon(target: Recorder) -> None:
    """Leave the files as a killed daemon does, once what was handed over is written."""
    target._queue.stop()
    target._writer.finish = lambda: None  # type: ignore[method-assign]
    target.stop()


def killed(path: Path, *frames: Frame, run: object = None) -> None:
    """Leave a run file with these frames, as a daemon that was killed."""
    first = recorder(path, run=run)  # type: ignore[arg-type]
    first.start()
    for each in frames:
        first.put_frame(each)
    abandon(first)


def give(run: LiveRun, each: Frame) -> None:
    run.frame(each, Receipt(each.info.seq, each.pixels.nbytes, lambda: None))


def statuses(path: Path) -> list[int]:
    with open_run(path) as run:
        return run.status.tolist()


def sweep(number: int, channel: int = 0, position: int = 0, *, frames: int = FRAMES) -> list[Frame]:
    start = FRAMES * (4 * number + 2 * channel + position)
    return [frame(number, index, channel, position, seq=start + index) for index in range(frames)]


def test_a_session_that_had_not_come_to_the_newest_sweep_is_gone_on_with_where_it_stood(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    killed(path, *sweep(0, 0), *sweep(0, 1), *sweep(1, 0), run=TWO)
    run = place.runs.resume(path)
    for each in sweep(1, 1):
        give(run, each)
    # Three that were whole in the file, and the one that was not begun when the daemon died.
    assert place.engine.queue.pending(run.header.run_id) == 4


def test_sweeps_that_wait_for_the_engine_are_not_lost_while_an_older_one_waits_for_frames(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    killed(path, *sweep(0), *sweep(1, frames=2), *sweep(2), *sweep(3, frames=2))
    run = place.runs.resume(path)
    assert place.engine.queue._scheduler.put_off_of(run.header.run_id) == 2
    give(run, sweep(3)[2])
    run.end(RunEnd(run=run.header.run_id, announced=11, dropped=0))
    assert place.engine.queue.pending(run.header.run_id) == 4
    place.close()
    assert place.board.snapshot().volumes.lost == 0
    assert statuses(path)[:4] == [Status.SKIPPED] * 4


def test_what_a_long_run_lacks_is_not_all_read_into_memory(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    killed(path, *(each for number in range(8) for each in sweep(number, frames=2)))
    read: list[int] = []
    load = Recorder.load_frames
    monkeypatch.setattr(
        Recorder, "load_frames", lambda self, *key: [read.append(key[0]), load(self, *key)][1]
    )
    monkeypatch.setattr(
        "microdiffusion.daemon.runs.sweeps.room_for", lambda header, least: 5 * 2 * (640 + 1024)
    )
    run = place.runs.resume(path)
    assert read == [7, 6, 5]  # two fit, and the third shows that there is no more room
    assert place.engine.queue._scheduler.put_off_of(run.header.run_id) == 6
    assert place.engine.queue.pending(run.header.run_id) == 6


def test_too_few_frames_of_a_sweep_that_was_put_off_are_no_volume(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    killed(path, *sweep(0, frames=1), *sweep(1))
    run = place.runs.resume(path)
    with pytest.raises(RunError, match="too few"):
        run.load(SweepJob(run.header.run_id, 0, 0, 0, "later"))
    assert run.load(SweepJob(run.header.run_id, 1, 0, 0, "later")) is not None


def test_a_run_is_not_resumed_in_a_copy_where_its_own_file_is_beside_it(place: Place, tmp_path: Path) -> None:
    target = recorder(tmp_path / "run.h5")
    target.start()
    target.put_frame(frame(0, 0))
    target.stop()
    copy = tmp_path / "copy.h5"
    copy.write_bytes((tmp_path / "run.h5").read_bytes())
    target = resumed(tmp_path / "run.h5")
    target.start()
    target.put_frame(frame(0, 1))
    target.stop()
    before = copy.read_bytes()
    with pytest.raises(InputFileError, match=r"copy\.h5 is a copy of .*run\.h5"):
        place.runs.resume(copy)
    assert copy.read_bytes() == before
    (tmp_path / "run.h5").unlink()
    assert place.runs.resume(copy).recorder.paths == [copy]


def test_another_name_of_a_run_s_own_file_is_no_copy_of_it(place: Place, tmp_path: Path) -> None:
    """As a link is one, or other letters where capitals do not count."""
    path = tmp_path / "run.h5"
    killed(path, *sweep(0))
    path.with_name("run_again.h5").hardlink_to(path)
    assert place.runs.resume(path.with_name("run_again.h5")).recorder.paths == [path]


def test_a_sender_of_another_geometry_leaves_the_file_as_it_was(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    killed(path, *sweep(0), *sweep(1))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another geometry"):
        place.runs.on_start(header(voxel_size_um=(2.0, 0.5, 0.5)))
    assert path.read_bytes() == before
    assert place.engine.queue.idle
    assert len(place.runs) == 0
    run = place.runs.on_start(header())  # and its own sender goes on with it
    assert place.engine.queue.pending(run.header.run_id) == 2


def test_a_run_that_is_gone_on_with_is_counted_once(place: Place, tmp_path: Path) -> None:
    killed(tmp_path / "run.h5", *sweep(0))
    for _ in range(3):
        run = place.runs.on_start(header())
        run.end(RunEnd(run=run.header.run_id, announced=3, dropped=0))
        wait(lambda: (place.runs.tick(0.0, drain_s=0.0, hurry=lambda: True), not len(place.runs))[1])
    assert len(place.runs.closed) == 1


def test_a_run_that_is_opened_while_the_others_close_is_closed_too(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = place.runs._make

    def slow(wanted: RunHeader, owner: str) -> LiveRun:
        run = make(wanted, owner)
        place.close()
        return run

    monkeypatch.setattr(place.runs, "_make", slow)
    with pytest.raises(UserError, match="closing"):
        place.runs.on_start(header())
    (path,) = tmp_path.glob("*.h5")
    with open_run(path) as run:
        assert run.closed


def test_a_sender_that_comes_back_does_not_wait_until_its_run_is_caught_up(
    place: Place, tmp_path: Path
) -> None:
    killed(tmp_path / "run.h5", *sweep(0), *sweep(1))
    run = place.runs.on_start(header())
    run.end(RunEnd(run=run.header.run_id, announced=6, dropped=0))
    place.runs.tick(0.0, drain_s=float("inf"), hurry=lambda: False)
    assert [each.state for each in place.runs.summaries()] == ["closing"]
    with pytest.raises(NotYet):
        place.runs.on_start(header())
    wait(lambda: (place.runs.tick(0.0, drain_s=0.0, hurry=lambda: False), not len(place.runs))[1])
    again = place.runs.on_start(header())
    assert place.engine.queue.pending(again.header.run_id) == 2


def test_a_sweep_whose_frames_come_after_it_was_given_up_is_reconstructed_at_the_end(
    place: Place, tmp_path: Path
) -> None:
    run = place.runs.on_start(header())
    for each in sweep(1):
        give(run, each)
    run.tick(time.monotonic() + 60, shown=False)  # nobody waits for sweep 0 any longer
    assert place.board.snapshot().volumes.lost == 1
    for each in sweep(0):
        give(run, each)
    run.end(RunEnd(run=run.header.run_id, announced=6, dropped=0))
    place.close()
    (path,) = tmp_path.glob("*.h5")
    assert statuses(path) == [Status.SKIPPED] * 2  # both waited for the engine when it was closed


def test_a_run_that_is_over_keeps_its_figures_and_no_frame(tmp_path: Path) -> None:
    place = Place(tmp_path, engine={"update": "projection"})
    run = place.runs.on_start(header())
    frames = [each for number in range(3) for each in sweep(number)]
    pixels = [weakref.ref(each.pixels) for each in frames]
    for each in frames:
        give(run, each)
    del frames, each
    place.close()
    gc.collect()
    assert [ref() for ref in pixels] == [None] * 9
    assert [each.counts[Status.SKIPPED] for each in place.runs.closed] == [3]
    assert run.recorder.counts[Status.SKIPPED] == 3
    assert run.recorder.index.next_sweep == 3
    assert sum(len(part.positions) for part in run.recorder.index._parts) == 0


def test_a_run_that_is_closed_with_very_much_left_says_so_in_one_line(place: Place, tmp_path: Path) -> None:
    told: list[str] = []
    place.board.on_note(lambda note: told.append(note.text))
    run = place.runs.on_start(header(sweeps=None))
    for number in range(5_000):
        place.engine.queue.put_off(run.header.run_id, number % 8, 0, 0)
    told.clear()
    run.close(drain_s=1e9, hurry=lambda: True)
    assert len(told) == 1
    assert "5000 sweeps skipped, from sweep 0 on: the run was closed before its turn came: mdd" in told[0]
    (path,) = tmp_path.glob("*.h5")
    assert statuses(path) == [Status.SKIPPED] * 8


def test_sweeps_that_are_skipped_one_by_one_are_told_of_twice(place: Place, tmp_path: Path) -> None:
    told: list[str] = []
    place.board.on_note(lambda note: told.append(note.text))
    run = place.runs.on_start(header(sweeps=None))
    told.clear()
    for number in range(8):
        run.lost(SweepJob(run.header.run_id, number, 0, 0, "sweep"), "skipped", "a newer one came")
    assert told == ["sweep 0 skipped: a newer one came; further ones are counted"]
    run.close(drain_s=1.0, hurry=lambda: True)
    assert told[1:] == ["8 sweeps skipped: the engine was too slow"]
    (path,) = tmp_path.glob("*.h5")
    assert statuses(path) == [Status.SKIPPED] * 8


def test_a_run_that_is_over_is_caught_up_for_a_bounded_time(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "CATCH_UP_S", 0.1)
    run = place.runs.on_start(header())
    for each in sweep(0):
        give(run, each)
    place.engine.queue.put_off(run.header.run_id, 1, 0, 0)
    left = place.engine.queue.pending
    hurried = threading.Event()
    close = partial(run.close, drain_s=float("inf"), hurry=hurried.is_set)
    closing = threading.Thread(target=close)
    closing.start()
    wait(lambda: left(run.header.run_id) == 1)
    assert closing.is_alive(), "the sweep that was not put off is waited for"
    hurried.set()
    closing.join(10)
    assert statuses(next(tmp_path.glob("*.h5")))[:2] == [Status.SKIPPED, Status.SKIPPED]
