"""Rolling volumes and events in the run file: never torn, the newest first."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import SHAPE, header, put_sweep, reconstruction, recorder, resumed, started, wait

from microdiffusion.errors import InputFileError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import EVENT_ROOM
from microdiffusion.runfile.verify import verify_run

NONE = StagePositions.along_z([])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def window(sweep: int, channel: int = 0, position: int = 0) -> Sweep:
    frames = np.zeros((0, *SHAPE[1:]), np.float32)
    return Sweep(sweep, channel, position, NONE, frames, NONE, frames, time_s=sweep / 4)


def constant(value: int) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def test_newest_rolling_volume_is_read_and_followed(path: Path) -> None:
    target = recorder(path, live=True, run=header(channels=("a", "b"), positions=("p", "q")))
    target.start()
    with open_run(path, position=1) as run, open_run(path) as other:
        assert run.live(channel=1) is None
        following = run.follow_live(channel=1, timeout_s=20, poll_s=0.001)
        for number in range(1, 5):
            result = reconstruction(0, volume=constant(number))
            assert target.put_live(window(number // 2, 1, 1), result, 100 + number)
            live = next(following)
            assert (live.number, live.sweep, live.newest_seq) == (number, number // 2, 100 + number)
            assert live.time_s == number // 2 / 4
            np.testing.assert_array_equal(live.volume, constant(number))
        assert other.live() is None
        assert run.live() is None
        target.stop()
        assert list(following) == []
    with h5py.File(path) as file:
        newest = file["position_001/live/counter"][1] % 2
        np.testing.assert_array_equal(file["position_001/live/volume"][newest, 1], constant(4))
    assert verify_run(path).faults == []


def test_run_without_rolling_volumes_has_no_room_for_them(path: Path) -> None:
    target = started(recorder(path))
    assert not target.put_live(window(0), reconstruction(0), 0)
    target.stop()
    with open_run(path) as run:
        assert run.live() is None
        assert list(run.follow_live()) == []
    with h5py.File(path) as file:
        assert "live" not in file


def test_rolling_volume_that_waits_gives_way_to_the_next(path: Path) -> None:
    gate = threading.Event()
    target = started(recorder(path, live=True, queue_mb=0.01))
    entered = threading.Event()

    def stand() -> None:
        entered.set()
        gate.wait(20)

    target.call(stand)
    assert entered.wait(20)
    for number in range(1, 50):
        result = reconstruction(0, volume=constant(number))
        assert target.put_live(window(number), result, number)
    assert target.queue_bytes <= 10_000
    gate.set()
    target.stop()
    with open_run(path) as run:
        live = run.live()
        assert live is not None
        assert (live.number, live.newest_seq) == (1, 49)


def test_no_reader_ever_gets_a_torn_rolling_volume(path: Path) -> None:
    target = started(recorder(path, live=True))
    problems: list[object] = []
    seen: set[int] = set()

    def look() -> None:
        with open_run(path) as run:
            for live in run.follow_live(timeout_s=5, poll_s=0):
                if np.any(live.volume != live.newest_seq):
                    problems.append(live)
                seen.add(live.number)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 2
    number = 0
    while time.monotonic() < end:
        number += 1
        result = reconstruction(0, volume=constant(number))
        wait(lambda number=number, result=result: target.put_live(window(0), result, number))
        wait(lambda: target.queue_bytes == 0)
    target.stop()
    for reader in readers:
        reader.join()
    assert problems == []
    assert len(seen) > 20


def test_damaged_rolling_volume_is_refused_and_found(path: Path) -> None:
    target = started(recorder(path, live=True))
    target.put_live(window(0), reconstruction(0, volume=constant(1)), 1)
    target.stop()
    with h5py.File(path, "r+") as file:
        file["live/volume"][1, 0, 0, 0] = 99
    with open_run(path) as run, pytest.raises(InputFileError, match="rolling volume"):
        run.live()
    assert verify_run(path).faults == ["the rolling volume has the wrong checksum"]


def test_rolling_volumes_are_counted_on_after_a_restart(path: Path) -> None:
    first = started(recorder(path, live=True))
    first.put_live(window(0), reconstruction(0, volume=constant(1)), 1)
    first.stop()
    second = started(resumed(path))
    second.put_live(window(1), reconstruction(0, volume=constant(2)), 2)
    second.stop()
    with open_run(path) as run:
        live = run.live()
        assert live is not None
        assert (live.number, live.sweep) == (2, 1)
        np.testing.assert_array_equal(live.volume, constant(2))


def test_events_are_kept_in_order_and_the_oldest_give_way(path: Path) -> None:
    target = started(recorder(path))
    target.put_event("engine", "µ" * 200)
    for number in range(EVENT_ROOM + 10):
        target.put_event("effort, long kind", f"step {number}")
    put_sweep(target, 0)
    target.stop()
    with open_run(path) as run:
        events = run.events
        assert len(events) == EVENT_ROOM
        assert [event.text for event in events] == [f"step {n}" for n in range(10, EVENT_ROOM + 10)]
        assert {event.kind for event in events} == {"effort, long kin"}
        assert all(a.time_s <= b.time_s for a, b in pairwise(events))
    again = started(resumed(path))
    again.put_event("test", "µ" * 200)
    again.stop()
    with open_run(path) as run:
        assert run.events[-1].text == "µ" * 80
        assert run.events[-1].time_s >= events[-1].time_s


def test_what_the_engine_said_is_part_of_the_provenance(path: Path) -> None:
    target = started(recorder(path))
    with open_run(path) as run:
        assert run.provenance == {"weights": "sha256:abc"}
        target.put_engine({"device": "cpu", "long": "x" * 10_000, **{f"k{n}": "y" * 400 for n in range(60)}})
        target.stop()
        assert run.provenance["device"] == "cpu"
        assert run.provenance["weights"] == "sha256:abc"
        assert len(run.provenance["long"]) == 500
    assert verify_run(path).faults == []
