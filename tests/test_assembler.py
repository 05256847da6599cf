"""Frames to sweeps: whatever order they come in, every sweep settles exactly once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from microdiffusion.daemon.assembler import GRACE_S, Assembler, LostSweep
from microdiffusion.sweep import Frame, FrameInfo, Sweep

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
    return Frame(FrameInfo(**(info | changes)), pixels, at_s)


def add_all(assembler: Assembler, frames: list[Frame]) -> list[Sweep | LostSweep]:
    return [item for each in frames for item in assembler.add(each)]


def assert_is(item: Sweep | LostSweep, number: int, indices: set[int]) -> None:
    """The sweep is made of these frames and no others, ascending in z, the held-out one apart."""
    assert isinstance(item, Sweep)
    assert item.sweep == number
    kept = sorted(indices - {COUNT - 1})
    assert item.z_um.tolist() == [10.0 * index for index in kept]
    assert item.projections[:, 0, 0].tolist() == [number * 100 + index for index in kept]
    assert item.projections.dtype == np.float32
    held = [number * 100 + COUNT - 1] if COUNT - 1 in indices else []
    assert item.held_out[:, 0, 0].tolist() == held
    assert item.held_out.shape == (len(held), 2, 3)
    assert item.held_out_z_um.tolist() == [15.0] * len(held)
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
