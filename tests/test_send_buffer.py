"""The send buffer: every frame that it took is somewhere, and its bytes are counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from wire_support import make_frame

from microdiffusion.errors import WireError
from microdiffusion.send_buffer import SendBuffer

FRAME_BYTES = 16 * 24 * 2
CAPACITY = 6 * FRAME_BYTES
WINDOW = 3 * FRAME_BYTES


class BufferMachine(RuleBasedStateMachine):
    """A sender in miniature against a model: lists of numbers."""

    @initialize()
    def begin(self) -> None:
        self.buffer = SendBuffer(CAPACITY)
        self.next_seq = 0
        self.taken: set[int] = set()
        self.dropped = 0
        self.sent: list[int] = []  # in the order of sending
        self.gone: set[int] = set()

    def _head(self) -> int | None:
        entry = self.buffer.next_to_send(WINDOW, last=True)
        return None if entry is None else entry.seq

    @rule(skip=st.integers(0, 2))
    def put(self, skip: int) -> None:
        seq = self.next_seq + skip
        fits = len(self.taken) < CAPACITY // FRAME_BYTES
        assert self.buffer.put(make_frame(seq)) is fits
        self.next_seq = seq + 1
        if fits:
            self.taken.add(seq)
        else:
            self.dropped += 1

    @rule()
    def send(self) -> None:
        seq = self._head()
        if seq is None:
            assert len(self.sent) == WINDOW // FRAME_BYTES or set(self.sent) == self.taken
            return
        assert seq not in self.sent
        self.buffer.mark_sent()
        self.sent.append(seq)

    @rule()
    def set_aside(self) -> None:
        if self._head() is not None:
            self.buffer.set_aside()

    @rule()
    def lose(self) -> None:
        seq = self._head()
        if seq is not None:
            self.buffer.lose()
            self._forget(seq)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.sent))
        self.buffer.acknowledge(seq)
        self._answered(seq)
        self._forget(seq)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), attempts=st.sampled_from([0, 1000]))
    def refuse(self, data: st.DataObject, attempts: int) -> None:
        seq = data.draw(st.sampled_from(self.sent))
        self.buffer.refuse(seq, attempts=attempts)
        self._answered(seq)
        if not attempts:
            self._forget(seq)

    @rule(seq=st.integers(0, 100))
    def repeat_an_old_answer(self, seq: int) -> None:
        if seq not in self.sent:
            self.buffer.acknowledge(seq)

    @rule()
    def resend_all(self) -> None:
        assert self.buffer.resend_all() == len(self.sent)
        self.sent.clear()

    def _answered(self, seq: int) -> None:
        """Whatever was sent before what has been answered is to be sent again."""
        del self.sent[: self.sent.index(seq) + 1]

    def _forget(self, seq: int) -> None:
        self.taken.remove(seq)
        self.gone.add(seq)

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        stats = self.buffer.stats()
        assert stats.buffered_bytes == len(self.taken) * FRAME_BYTES <= CAPACITY
        assert stats.waiting + stats.on_the_way == len(self.taken)
        assert stats.on_the_way == len(self.sent)
        assert stats.acknowledged + stats.refused + stats.lost == len(self.gone)
        assert stats.put == len(self.taken) + len(self.gone)
        assert stats.dropped == self.dropped
        assert self.buffer.is_empty() is (not self.taken)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_frames_go_out_in_order_and_repeats_come_first() -> None:
    buffer = SendBuffer(CAPACITY)
    for seq in range(4):
        buffer.put(make_frame(seq))
    order = []
    for _ in range(3):
        order.append(buffer.next_to_send(CAPACITY).seq)
        buffer.mark_sent()
    buffer.acknowledge(1)  # so 0 was lost, and 2 may still be on its way
    while (entry := buffer.next_to_send(CAPACITY)) is not None:
        order.append(entry.seq)
        buffer.mark_sent()
    assert order == [0, 1, 2, 0, 3]


def test_the_pixels_are_copied() -> None:
    buffer = SendBuffer(CAPACITY)
    frame = make_frame(0)
    before = frame.pixels.copy()
    buffer.put(frame)
    frame.pixels[:] = 0
    np.testing.assert_array_equal(buffer.next_to_send(WINDOW).frame.pixels, before)


@pytest.mark.parametrize("seq", [3, 2], ids=["the same number", "a lower number"])
def test_numbers_that_do_not_rise_are_an_error(seq: int) -> None:
    buffer = SendBuffer(CAPACITY)
    buffer.put(make_frame(3))
    with pytest.raises(WireError, match="must rise"):
        buffer.put(make_frame(seq))


def test_a_frame_that_was_set_aside_is_overtaken_by_one() -> None:
    buffer = SendBuffer(CAPACITY)
    for seq in range(3):
        buffer.put(make_frame(seq))
    buffer.set_aside()
    order = []
    while (entry := buffer.next_to_send(CAPACITY)) is not None:
        order.append(entry.seq)
        buffer.mark_sent()
    assert order == [1, 0, 2]


def test_a_frame_larger_than_the_window_may_go_alone() -> None:
    buffer = SendBuffer(CAPACITY)
    buffer.put(make_frame(0))
    buffer.put(make_frame(1))
    assert buffer.next_to_send(1).seq == 0
    buffer.mark_sent()
    assert buffer.next_to_send(1) is None


def test_waiting_for_room_ends_when_a_frame_is_acknowledged() -> None:
    buffer = SendBuffer(FRAME_BYTES)
    buffer.put(make_frame(0))
    buffer.next_to_send(WINDOW)
    buffer.mark_sent()
    assert buffer.wait_for_room(FRAME_BYTES, 0.0) is False
    thread = threading.Timer(0.05, buffer.acknowledge, [0])
    thread.start()
    assert buffer.wait_for_room(FRAME_BYTES, 10.0) is True
    thread.join()


def test_closing_lets_those_go_who_wait_for_room() -> None:
    buffer = SendBuffer(FRAME_BYTES)
    buffer.put(make_frame(0))
    thread = threading.Timer(0.05, buffer.close)
    thread.start()
    begin = time.monotonic()
    assert buffer.wait_for_room(FRAME_BYTES, 10.0) is False
    assert time.monotonic() - begin < 5.0
    assert buffer.put(make_frame(1)) is False
    thread.join()
