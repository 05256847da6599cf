"""The send buffer: every frame that it took is somewhere, and its bytes are counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.wire_support import RUN, make_frame

from microdiffusion.errors import WireError
from microdiffusion.sender.buffer import SendBuffer
from microdiffusion.sender.buffered import BufferedFrame
from microdiffusion.sender.journal import Location
from microdiffusion.wire import decode, encode_frame

FRAME_BYTES = 16 * 24 * 2
CAPACITY = 6 * FRAME_BYTES
WINDOW = 3 * FRAME_BYTES


class BufferMachine(RuleBasedStateMachine):
    """A sender in miniature, its journal included, against a model: sets and lists of numbers."""

    @initialize(journal=st.booleans())
    def begin(self, journal: bool) -> None:
        self.journal = journal
        self.buffer = SendBuffer(CAPACITY, FRAME_BYTES, journal=journal)  # with one: 1 on the way
        self.next_seq = 0
        self.taken: set[int] = set()
        self.dropped = 0
        self.sent: list[int] = []  # in the order of sending
        self.held: set[int] = set()
        self.gone: set[int] = set()
        self.disk: dict[Location, int] = {}

    def _head(self) -> int | None:
        entry = self.buffer.next_to_send(WINDOW)
        if entry is None:
            return None
        assert decode(entry.encoded(RUN)).frame.info.seq == entry.seq
        return entry.seq

    @rule(skip=st.integers(0, 2))
    def put(self, skip: int) -> None:
        seq = self.next_seq + skip
        fits = self.buffer.stats().memory_bytes + FRAME_BYTES <= CAPACITY
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
            full = len(self.sent) >= (1 if self.journal else WINDOW // FRAME_BYTES)
            assert full or set(self.sent) == self.taken or self.buffer.next_to_read() is not None
            return
        assert seq not in self.sent
        self.buffer.mark_sent()
        self.sent.append(seq)

    @rule()
    def overtake(self) -> None:
        first = self._head()
        if first is not None and self.buffer.overtake():
            assert self._head() != first

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
        self.buffer.acknowledge([seq])
        if seq not in self.held:  # whatever was sent before it is to be sent again
            before = self.sent[: self.sent.index(seq)]
            self.sent = [other for other in self.sent if other in self.held or other not in before]
        self.sent.remove(seq)
        self.held.discard(seq)
        self._forget(seq)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), attempts=st.sampled_from([0, 1000, None]))
    def refuse(self, data: st.DataObject, attempts: int | None) -> None:
        seq = data.draw(st.sampled_from(self.sent))
        self.buffer.refuse(seq, attempts=attempts)
        self.sent.remove(seq)
        self.held.discard(seq)
        if attempts == 0:
            self._forget(seq)

    @rule(seq=st.integers(0, 100))
    def repeat_an_old_answer(self, seq: int) -> None:
        if seq not in self.sent:
            self.buffer.acknowledge([seq])

    @rule(data=st.data())
    def resend_all(self, data: st.DataObject) -> None:
        self.held = data.draw(st.sets(st.sampled_from(self.sent))) if self.sent else set()
        assert self.buffer.resend_all(self.held) == len(self.sent) - len(self.held)
        self.sent = [seq for seq in self.sent if seq in self.held]

    @precondition(lambda self: self.journal)
    @rule()
    def spill(self) -> None:
        entry = self.buffer.next_to_write()
        if entry is not None:
            self._record(entry)

    @precondition(lambda self: self.journal)
    @rule()
    def save_all(self) -> None:
        while (entry := self.buffer.next_to_write(everything=True)) is not None:
            self._record(entry)
        assert self.buffer.stats().journaled == len(self.taken)
        assert self.buffer.unsaved() == 0

    @rule()
    def fetch(self) -> None:
        entry = self.buffer.next_to_read()
        if entry is not None:
            self.buffer.read(entry, encode_frame(RUN, make_frame(self.disk[entry.location])))

    @rule()
    def fail_to_fetch(self) -> None:
        entry = self.buffer.next_to_read()
        if entry is not None:
            self.buffer.read(entry, None)
            self._forget(entry.seq)

    def _record(self, entry: BufferedFrame) -> None:
        location = Location(1, len(self.disk), 1, FRAME_BYTES)
        self.disk[location] = entry.seq
        self.buffer.written(entry, location)

    def _forget(self, seq: int) -> None:
        self.taken.remove(seq)
        self.gone.add(seq)

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        stats = self.buffer.stats()
        assert stats.buffered_bytes == len(self.taken) * FRAME_BYTES
        # One more may be read back where everything waits for it.
        assert stats.memory_bytes <= CAPACITY + (FRAME_BYTES if self.journal else 0)
        if not self.journal:
            assert stats.memory_bytes == stats.buffered_bytes
        assert stats.waiting + stats.on_the_way == len(self.taken)
        assert stats.on_the_way == len(self.sent)
        assert stats.acknowledged + stats.refused + stats.lost + stats.damaged == len(self.gone)
        assert stats.put == len(self.taken) + len(self.gone)
        assert stats.dropped == self.dropped
        assert self.buffer.is_empty() is (not self.taken)
        for location in self.buffer.take_released():
            assert self.disk[location] in self.gone


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=150, stateful_step_count=40)


def test_frames_go_out_in_order_and_repeats_come_first() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    for seq in range(4):
        buffer.put(make_frame(seq))
    order = []
    for _ in range(3):
        order.append(buffer.next_to_send(CAPACITY).seq)
        buffer.mark_sent()
    buffer.acknowledge([1])  # so 0 was lost, and 2 may still be on its way
    while (entry := buffer.next_to_send(CAPACITY)) is not None:
        order.append(entry.seq)
        buffer.mark_sent()
    assert order == [0, 1, 2, 0, 3]


def test_the_pixels_are_copied() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    frame = make_frame(0)
    before = frame.pixels.copy()
    buffer.put(frame)
    frame.pixels[:] = 0
    np.testing.assert_array_equal(buffer.next_to_send(WINDOW).frame.pixels, before)


@pytest.mark.parametrize("seq", [3, 2], ids=["the same number", "a lower number"])
def test_numbers_that_do_not_rise_are_an_error(seq: int) -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    buffer.put(make_frame(3))
    with pytest.raises(WireError, match="must rise"):
        buffer.put(make_frame(seq))


def test_a_frame_is_overtaken_by_one() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    for seq in range(3):
        buffer.put(make_frame(seq))
    assert buffer.overtake()
    order = []
    while (entry := buffer.next_to_send(CAPACITY)) is not None:
        order.append(entry.seq)
        buffer.mark_sent()
    assert order == [1, 0, 2]


def test_a_frame_larger_than_the_window_may_go_alone() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    buffer.put(make_frame(0))
    buffer.put(make_frame(1))
    assert buffer.next_to_send(1).seq == 0
    buffer.mark_sent()
    assert buffer.next_to_send(1) is None


def test_waiting_for_room_ends_when_a_frame_is_acknowledged() -> None:
    buffer = SendBuffer(FRAME_BYTES, FRAME_BYTES)
    buffer.put(make_frame(0))
    buffer.next_to_send(WINDOW)
    buffer.mark_sent()
    assert buffer.wait_for_room(0.0) is False
    thread = threading.Timer(0.05, buffer.acknowledge, [[0]])
    thread.start()
    assert buffer.wait_for_room(10.0) is True
    thread.join()


def test_closing_lets_those_go_who_wait_for_room() -> None:
    buffer = SendBuffer(FRAME_BYTES, FRAME_BYTES)
    buffer.put(make_frame(0))
    thread = threading.Timer(0.05, buffer.close)
    thread.start()
    begin = time.monotonic()
    assert buffer.wait_for_room(10.0) is False
    assert time.monotonic() - begin < 5.0
    assert buffer.put(make_frame(1)) is False
    thread.join()


def test_with_a_journal_the_camera_fills_the_memory_while_the_disk_keeps_up() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES, journal=True)
    assert all(buffer.put(make_frame(seq)) for seq in range(6))
    assert not buffer.put(make_frame(6))
    for number in range(4):  # until half of the memory is free; what goes out next stays there as well
        entry = buffer.next_to_write()
        assert entry.seq == number
        buffer.written(entry, Location(1, number, 1, FRAME_BYTES))
    assert buffer.next_to_write() is None
    assert all(buffer.put(make_frame(seq)) for seq in range(7, 10))
    assert (buffer.stats().journaled, buffer.stats().memory_bytes) == (4, CAPACITY)


def test_what_the_daemon_holds_is_not_taken_for_lost_when_a_later_frame_is_acknowledged() -> None:
    buffer = SendBuffer(CAPACITY, FRAME_BYTES)
    for seq in range(3):
        buffer.put(make_frame(seq))
        buffer.next_to_send(CAPACITY)
        buffer.mark_sent()
    buffer.resend_all({0, 1})
    assert buffer.next_to_send(CAPACITY).seq == 2
    buffer.mark_sent()
    buffer.acknowledge([2])
    assert buffer.next_to_send(CAPACITY) is None
    assert buffer.stats().on_the_way == 2
