"""The set of frame numbers: a set, whatever order they come in, and a small one."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from microdiffusion.daemon.frame_ranges import FrameRanges


@given(st.lists(st.integers(0, 60)), st.integers(0, 70), st.integers(0, 70))
def test_a_seq_set_is_a_set(numbers: list[int], start: int, stop: int) -> None:
    seqs, model = FrameRanges(), set()
    for number in numbers:
        assert (number in seqs) is (number in model)
        assert seqs.add(number) is (number not in model)
        model.add(number)
        assert (len(seqs), seqs.highest) == (len(model), max(model))
    assert all((number in seqs) is (number in model) for number in range(62))
    assert seqs.count(start, stop) == len(model & set(range(start, stop)))
    assert seqs.ranges == sum(number - 1 not in model for number in model)


def test_an_empty_one_holds_nothing() -> None:
    seqs = FrameRanges()
    assert (len(seqs), seqs.highest, seqs.count(0, 1 << 53), 0 in seqs) == (0, -1, 0, False)


def test_it_begins_with_what_it_is_given() -> None:
    seqs = FrameRanges([5, 3, 4, 9])
    assert (len(seqs), seqs.ranges, seqs.highest) == (4, 2, 9)


def test_it_stays_small_while_frames_come_in_order() -> None:
    seqs = FrameRanges()
    for number in [*range(0, 1000, 2), *range(1, 1000, 2)]:
        seqs.add(number)
    assert seqs.ranges == 1


def test_it_can_be_counted_while_it_changes() -> None:
    seqs = FrameRanges()
    done = threading.Event()

    def change() -> None:
        for number in [*range(0, 40_000, 2), *range(1, 40_000, 2)]:
            seqs.add(number)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    counts = [0]
    while not done.is_set():
        counts.append(seqs.count(0, 1 << 53))
    thread.join()
    assert counts == sorted(counts)
    assert seqs.count(0, 1 << 53) == 40_000
