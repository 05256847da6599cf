"""Frames to sweeps: whatever order they come in, every sweep settles exactly once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.wire_support import make_header

from microdiffusion.daemon.runs import assembler as assembler_module
from microdiffusion.daemon.runs.assembler import FRAME_COST, GRACE_S, Assembler, LostSweep, room_for
from microdiffusion.frames import Frame, Sweep, frame_info

COUNT = 5
TIMEOUT_S = 2.0


def frame(sweep: int, index: int, at_s: float = 0.0, value: int | None = None, **changes: Any) -> Frame:
    """Return a frame of a sweep of five slabs, the last of which is held out of even sweeps.

    Its pixels say which one it is.
    """
    info: dict[str, Any] = {
        "seq": sweep * COUNT + index,
        "sweep": sweep,
        "index": index,
        "count": COUNT,
        "z_um": 10.0 * index if index < COUNT - 1 else 15.0,
        "held_out": index == COUNT - 1,
        "camera_time_s": sweep + 0.1 * index,
    }
    pixels = np.full((2, 3), sweep * 100 + index if value is None else value, dtype=np.uint16)
    return Frame(frame_info(info | changes), pixels, at_s)


def add_all(assembler: Assembler, frames: list[Frame]) -> list[Sweep | LostSweep]:
    return [item for each in frames for item in assembler.add(each)]


def assert_is(item: Sweep | LostSweep, number: int, indices: set[int]) -> None:
    """The sweep is made of these frames and no others, ascending in z, the held-out one apart."""
    assert isinstance(item, Sweep)
    assert item.sweep == number
    kept = sorted(indices - {COUNT - 1})
    assert item.stage.z_um.tolist() == [10.0 * index for index in kept]
    assert item.projections[:, 0, 0].tolist() == [number * 100 + index for index in kept]
    assert item.projections.dtype == np.float32
    held = [number * 100 + COUNT - 1] if COUNT - 1 in indices else []
    assert item.held_out[:, 0, 0].tolist() == held
    assert item.held_out.shape == (len(held), 2, 3)
    assert item.held_out_stage.z_um.tolist() == [15.0] * len(held)
    assert item.missing == COUNT - len(indices)
    assert item.time_s == pytest.approx(number + 0.1 * max(indices))


@given(st.permutations(range(COUNT)))
def test_a_whole_sweep_is_the_same_in_any_order(order: list[int]) -> None:
    assembler = Assembler(TIMEOUT_S)
    frames = [frame(0, index, at_s=number) for number, index in enumerate(order)]
    assert add_all(assembler, frames[:-1]) == []
    assert assembler.progress(0, 0, 0) == (COUNT - 1, COUNT)
    assert assembler.waiting_bytes == 12 * (COUNT - 1)
    (item,) = assembler.add(frames[-1])
    assert_is(item, 0, set(range(COUNT)))
    assert isinstance(item, Sweep)
    assert item.received_s == COUNT - 1
    assert assembler.waiting_bytes == 0
    assert assembler.progress(0, 0, 0) == (0, 0)
    assert assembler.finish() == []


def test_a_second_frame_of_an_index_replaces_nothing() -> None:
    assembler = Assembler(TIMEOUT_S)
    frames = [frame(0, 0), frame(0, 0, value=9999), *(frame(0, index) for index in range(1, COUNT))]
    (item,) = add_all(assembler, frames)
    assert_is(item, 0, set(range(COUNT)))


def test_a_frame_of_a_sweep_that_is_over_is_late() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, index) for index in range(COUNT)])
    assert assembler.add(frame(0, 2)) == []
    assert assembler.late == 1
    assert assembler.finish() == []


def test_a_whole_sweep_closes_the_ones_before_it_after_a_moment_oldest_first() -> None:
    assembler = Assembler(TIMEOUT_S)
    begun = [frame(1, index) for index in (0, 1, 4)] + [frame(2, 0)]
    assert add_all(assembler, begun) == []
    assert add_all(assembler, [frame(3, index) for index in range(COUNT)]) == []
    assert assembler.tick(GRACE_S) == []
    nothing, incomplete, too_few, whole = assembler.tick(1.01 * GRACE_S)
    assert nothing == LostSweep(0, 0, 0, 0, "no frame of this sweep came")
    assert_is(incomplete, 1, {0, 1, 4})
    assert too_few == LostSweep(2, 0, 0, 4, "only 1 of 5 frames came, too few for a volume")
    assert_is(whole, 3, set(range(COUNT)))
    assert assembler.missing == 2 + 4


def test_a_damaged_frame_that_is_sent_again_is_put_right() -> None:
    assembler = Assembler(TIMEOUT_S)
    assert add_all(assembler, [frame(0, index) for index in (0, 1, 3, 4)]) == []
    assert add_all(assembler, [frame(number, i) for number in (1, 2) for i in range(COUNT)]) == []
    items = assembler.add(frame(0, 2, at_s=0.1))
    for number, item in enumerate(items):
        assert_is(item, number, set(range(COUNT)))
    assert len(items) == 3
    assert assembler.missing == 0


def test_the_next_frame_notices_as_well_as_the_clock_does() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, 0)] + [frame(1, index) for index in range(COUNT)])
    lost, whole = assembler.add(frame(2, 0, at_s=1.01 * GRACE_S))
    assert isinstance(lost, LostSweep)
    assert_is(whole, 1, set(range(COUNT)))


def test_sessions_do_not_wait_for_each_other() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, 0, channel=1), frame(0, 0, position=1)])
    (item,) = add_all(assembler, [frame(0, index) for index in range(COUNT)])
    assert (item.channel, item.position) == (0, 0)
    left = assembler.finish()
    assert {(item.channel, item.position, type(item)) for item in left} == {
        (1, 0, LostSweep),
        (0, 1, LostSweep),
    }


def test_a_slow_camera_loses_nothing() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, index, at_s=index) for index in range(2)])
    assert assembler.tick(1.0 + 10 * TIMEOUT_S) == []  # nothing later came, so nothing is missing yet


def test_a_sweep_waits_for_its_next_frame_until_the_timeout() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, index, at_s=at) for at, index in enumerate((0, 1, 3))])
    assert assembler.tick(2.0 + TIMEOUT_S) == []  # measured from the last frame, not the first
    (item,) = assembler.tick(2.1 + TIMEOUT_S)
    assert_is(item, 0, {0, 1, 3})
    assert assembler.tick(100.0) == []
    assert assembler.finish() == []


@pytest.mark.parametrize(
    ("indices", "is_used"),
    [
        ({0, 1, 2}, True),
        ({0, 1}, False),  # who knows whether the held-out one or slabs are missing
        ({0, 1, 4}, True),
        ({0, 4}, False),
        ({4}, False),
    ],
    ids=["more than half", "less than half", "half and the judge", "one and the judge", "the judge alone"],
)
def test_half_of_the_slabs_are_enough(indices: set[int], is_used: bool) -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(0, index) for index in indices])
    (item,) = assembler.finish()
    assert isinstance(item, Sweep if is_used else LostSweep)
    assert item.missing == COUNT - len(indices)


def test_a_run_that_is_gone_on_with_begins_at_its_open_sweep() -> None:
    assembler = Assembler(TIMEOUT_S)
    assembler.start_at(0, 0, 7)
    assert assembler.add(frame(6, 0)) == []
    assert assembler.late == 1
    (item,) = add_all(assembler, [frame(7, index) for index in range(COUNT)])  # from the file, then the line
    assert_is(item, 7, set(range(COUNT)))


def window_values(assembler: Assembler) -> list[float] | None:
    window = assembler.window(0, 0)
    return None if window is None else window.projections[:, 0, 0].tolist()


def rolling(frames: list[Frame]) -> list[list[float] | None]:
    """Return the windows after each frame that ends no sweep; frames come a second apart."""
    assembler = Assembler(100.0)
    windows = []
    for at_s, each in enumerate(frames):
        each.received_s = float(at_s)
        if not assembler.add(each):
            windows.append(window_values(assembler))
    return windows


def test_a_window_is_the_newest_frame_of_each_slab() -> None:
    windows = rolling([frame(number, index) for number in range(3) for index in range(COUNT)])
    assert windows == [
        *[None] * 4,  # not a sweep's worth yet
        [100.0, 1.0, 2.0, 3.0],
        [100.0, 101.0, 2.0, 3.0],
        [100.0, 101.0, 102.0, 3.0],
        [100.0, 101.0, 102.0, 103.0],
        [200.0, 101.0, 102.0, 103.0],
        [200.0, 201.0, 102.0, 103.0],
        [200.0, 201.0, 202.0, 103.0],
        [200.0, 201.0, 202.0, 203.0],
    ]


def test_a_window_goes_in_time_whatever_order_frames_come_in() -> None:
    first = [frame(0, index) for index in range(COUNT)]
    second = [frame(1, index) for index in (3, 0)]
    assert rolling(first + second)[-1] == [100.0, 1.0, 2.0, 103.0]


def test_a_window_reaches_back_one_sweep_at_most() -> None:
    first = [frame(0, index) for index in range(COUNT)]
    assert rolling([*first, frame(2, 0), frame(2, 1)])[-2:] == [None, None]


def test_a_window_of_a_sweep_whose_predecessor_still_waits_for_a_frame_says_what_is_missing() -> None:
    assembler = Assembler(100.0)
    for at_s, each in enumerate([frame(0, index) for index in (0, 1, 3, 4)] + [frame(1, 0)]):
        each.received_s = float(at_s)
        assembler.add(each)
    window = assembler.window(0, 0)
    assert window is not None
    assert (window.projections[:, 0, 0].tolist(), window.missing) == ([100.0, 1.0, 3.0], 1)
    assert window.held_out[:, 0, 0].tolist() == [4.0]  # of the sweep before: apart, as always
    assert (window.sweep, window.received_s) == (1, 4.0)


def test_windows_become_fewer_before_they_hold_up_the_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(assembler_module.time, "perf_counter", lambda: float(next(clock)))
    windows = rolling([frame(number, index) for number in range(4) for index in range(COUNT)])
    # Each takes a second, a fifth of the time: so one in five seconds, at most.
    assert sum(window is not None for window in windows) == 3


def test_sessions_that_nobody_wants_windows_of_keep_nothing() -> None:
    assembler = Assembler(TIMEOUT_S)
    add_all(assembler, [frame(number, index) for number in range(3) for index in range(COUNT)])
    assert assembler.waiting_bytes == 0
    assert assembler.window(0, 0) is None
    add_all(assembler, [frame(3, index) for index in range(COUNT)])
    assert assembler.waiting_bytes == 12 * COUNT  # one sweep, from then on


def test_what_is_kept_for_windows_is_bounded_over_all_sessions() -> None:
    assembler = Assembler(TIMEOUT_S, limit_bytes=20 * (12 + FRAME_COST))
    for position in range(500):
        for number in range(2):
            for index in range(COUNT):
                assembler.add(frame(number, index, position=position))
                assembler.window(0, position)
        assert assembler.waiting_bytes <= 10 * (12 + FRAME_COST) + 12 * COUNT


def test_frames_of_ever_more_sweeps_are_given_up_with_a_reason() -> None:
    room = 30 * (12 + FRAME_COST)
    assembler = Assembler(TIMEOUT_S, limit_bytes=room)
    over = add_all(assembler, [frame(number, 1, value=0) for number in range(100_000)])
    assert assembler.waiting_bytes <= 12 * 30
    assert len(over) == 100_000 - 30
    assert all(isinstance(item, LostSweep) and "raise wire.receive_buffer_mb" in item.reason for item in over)
    assert [item.sweep for item in over] == list(range(100_000 - 30))


def test_the_session_that_was_silent_longest_is_given_up_first() -> None:
    assembler = Assembler(TIMEOUT_S, limit_bytes=3 * (12 + FRAME_COST))
    busy = [frame(0, index, channel=1) for index in range(COUNT - 1)]
    assert add_all(assembler, [frame(0, 0), busy[0], busy[1]]) == []
    (item,) = assembler.add(busy[2])
    assert (item.channel, item.sweep, item.missing) == (0, 0, COUNT - 1)
    assert item.reason.startswith("only 1 of 5 frames came, and more than")
    # A single sweep may always be put together, however large it is.
    assert assembler.add(busy[3]) == []
    assert assembler.progress(1, 0, 0) == (COUNT - 1, COUNT)


def test_a_sweep_without_end_is_given_up_as_well() -> None:
    """A sender may number a million frames of one sweep; the run's header says how many there should be."""
    limit = 20 * (12 + FRAME_COST)
    assembler = Assembler(TIMEOUT_S, limit_bytes=limit, most_frames=10)
    over = []
    for index in range(1000):
        over += assembler.add(frame(0, index, value=0, count=1 << 20, seq=index))
        assert assembler.waiting_bytes <= 12 * 20
    (item,) = over
    assert isinstance(item, LostSweep)
    assert "raise wire.receive_buffer_mb" in item.reason
    assert assembler.late == 1000 - 21


def test_there_is_always_room_for_two_sweeps_of_each_channel() -> None:
    header = make_header(channels=("a", "b", "c"), frames_per_sweep=10)
    assert room_for(header, 1) == 2 * 3 * 10 * (16 * 24 * 2 + FRAME_COST)
    assert room_for(header, 1 << 40) == 1 << 40


def test_sweeps_that_wait_for_a_missing_one_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembler_module, "MAX_OPEN", 3)
    assembler = Assembler(TIMEOUT_S)
    assert add_all(assembler, [frame(number, 1) for number in range(3)]) == []
    (item,) = assembler.add(frame(3, 1))
    assert isinstance(item, LostSweep)
    assert (item.sweep, "at the same time" in item.reason) == (0, True)


def test_a_leap_of_the_sweep_number_is_not_counted_out() -> None:
    assembler = Assembler(TIMEOUT_S)
    far = 1 << 30
    over = add_all(assembler, [frame(far, index, value=0) for index in range(COUNT)])
    over += assembler.tick(1.0)
    assert [item.sweep for item in over] == [*range(assembler_module.MAX_GAP), far]


def test_frames_that_disagree_on_their_number_are_put_together_by_the_larger() -> None:
    assembler = Assembler(TIMEOUT_S)
    assert add_all(assembler, [frame(0, 0, count=2), frame(0, 1, count=2)][:1]) == []
    assert assembler.add(frame(0, 2)) == []
    assert assembler.progress(0, 0, 0) == (2, COUNT)


class Assembly(RuleBasedStateMachine):
    """Two sessions whose frames come in any order, with repetitions and pauses."""

    sessions = ((0, 0), (1, 0))
    sweeps = 6

    @initialize()
    def begin(self) -> None:
        self.assembler = Assembler(TIMEOUT_S)
        self.now_s = 0.0
        self.given: dict[tuple[int, int, int], set[int]] = {}
        self.settled: dict[tuple[int, int, int], Sweep | LostSweep] = {}
        self.late = 0

    @rule(
        session=st.sampled_from(sessions),
        sweep=st.integers(0, sweeps - 1),
        index=st.integers(0, COUNT - 1),
        pause_s=st.sampled_from([0.0, 0.5]),
    )
    def frame_comes(self, session: tuple[int, int], sweep: int, index: int, pause_s: float) -> None:
        self.now_s += pause_s
        key = (*session, sweep)
        if key in self.settled:
            self.late += 1
        else:
            self.given.setdefault(key, set()).add(index)
        shot = frame(sweep, index, self.now_s, channel=session[0], position=session[1])
        self.settle(self.assembler.add(shot))

    @rule(session=st.sampled_from(sessions), sweep=st.integers(0, sweeps - 1), leave_out=st.integers(0, 8))
    def sweep_comes(self, session: tuple[int, int], sweep: int, leave_out: int) -> None:
        for index in range(COUNT):
            if index != leave_out:
                self.frame_comes(session, sweep, index, 0.0)

    @rule(pause_s=st.floats(0.0, 3.0))
    def time_passes(self, pause_s: float) -> None:
        self.now_s += pause_s
        self.settle(self.assembler.tick(self.now_s))

    def teardown(self) -> None:
        if hasattr(self, "assembler"):
            self.settle(self.assembler.finish())
            assert set(self.given) <= set(self.settled), "after the end nothing is open"
            self.the_counters_are_right()
            assert self.assembler.finish() == []

    def settle(self, items: list[Sweep | LostSweep]) -> None:
        for item in items:
            key = (item.channel, item.position, item.sweep)
            assert key not in self.settled, "a sweep settles once"
            earlier = [number for *session, number in self.settled if tuple(session) == key[:2]]
            assert earlier == list(range(item.sweep)), "in order and without a gap, within its session"
            self.settled[key] = item
            indices = self.given.get(key, set())
            if isinstance(item, Sweep):
                assert_is(item, item.sweep, indices)
            else:
                assert item.missing == (COUNT - len(indices) if indices else 0)
                assert len(indices - {COUNT - 1}) <= 2

    @invariant()
    def what_is_whole_and_next_does_not_wait(self) -> None:
        for session in self.sessions:
            first = sum(key[:2] == session for key in self.settled)
            assert len(self.given.get((*session, first), ())) < COUNT

    @invariant()
    def the_counters_are_right(self) -> None:
        assert self.assembler.late == self.late
        gone = [COUNT - len(self.given[key]) for key in self.settled if key in self.given]
        assert self.assembler.missing == sum(gone)
        waiting = [len(indices) for key, indices in self.given.items() if key not in self.settled]
        assert self.assembler.waiting_bytes == 12 * sum(waiting)


TestAssembly = Assembly.TestCase


def test_a_window_over_uneven_sweeps_takes_what_the_current_one_has_not_reached() -> None:
    assembler = Assembler(TIMEOUT_S)
    depths = {0: [0.0, 20.0, 40.0, 60.0, 80.0], 1: [50.0, 55.0, 60.0, 65.0, 70.0]}
    window = None
    for sweep, index in (*((0, index) for index in range(COUNT)), (1, 0), (1, 1)):
        z_um = depths[sweep][index]
        assembler.add(frame(sweep, index, float(index), z_um=z_um, held_out=False, decision="denser"))
        window = assembler.window(0, 0)
    assert window is not None
    assert window.stage.z_um.tolist() == [50.0, 55.0, 60.0, 80.0]
