"""Both ends of the wire over a real socket: what the line does to frames, and what becomes of them."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from wire_support import (
    FREE_PORT,
    RUN,
    Receiver,
    make_frame,
    make_header,
    put_all,
    receiving,
    sending,
    wait_until,
)

from microdiffusion import wire
from microdiffusion.daemon import ingest as ingest_module
from microdiffusion.daemon.ingest import Ingest
from microdiffusion.daemon.seq_set import SeqSet
from microdiffusion.errors import (
    AcquisitionError,
    AddressError,
    ConfigError,
    DiskError,
    GeometryError,
    RunError,
    WireError,
)
from microdiffusion.faults import Faults
from microdiffusion.run_header import RunHeader
from microdiffusion.sender import Sender
from microdiffusion.sweep import FrameInfo


@given(st.lists(st.integers(0, 60)))
def test_a_seq_set_is_a_set(numbers: list[int]) -> None:
    seqs, model = SeqSet(), set()
    for number in numbers:
        assert (number in seqs) is (number in model)
        assert seqs.add(number) is (number not in model)
        model.add(number)
        assert (len(seqs), seqs.highest) == (len(model), max(model))
    assert all((number in seqs) is (number in model) for number in range(62))


def test_a_seq_set_stays_small_while_frames_come_in_order() -> None:
    seqs = SeqSet()
    for number in [*range(0, 1000, 2), *range(1, 1000, 2)]:
        seqs.add(number)
    assert len(seqs._starts) == len(seqs._stops) == 1


def test_every_frame_arrives_in_order_and_intact() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        assert all(put_all(sender, range(50)))
        stats = sender.finish()
        assert receiver.headers == [make_header()]
        assert receiver.seqs == list(range(50))
        receiver.assert_intact()
        assert (stats.put, stats.sent, stats.acknowledged, stats.dropped) == (50, 50, 50, 0)
        assert (stats.resent, stats.buffered_bytes, stats.ended) == (0, 0, True)
        assert receiver.ends == [wire.RunEnd(run=RUN, announced=50, dropped=0, reason="finished")]
        ingested = receiver.ingest.stats
        assert (ingested.frames, ingested.bytes) == (50, 50 * 16 * 24 * 2)
        assert (ingested.duplicates, ingested.out_of_order, dict(ingested.refused)) == (0, 0, {})
        sender.raise_if_failed()


def test_a_daemon_that_listens_everywhere_is_reached_by_the_address_that_it_gives() -> None:
    with receiving("tcp://*:*") as receiver, sending(receiver.address) as sender:
        put_all(sender, range(3))
        assert sender.finish().ended


def test_float_frames_arrive_intact() -> None:
    header = make_header(dtype="float32")
    with receiving() as receiver, sending(receiver.address, header=header) as sender:
        frame = make_frame(0, header)
        assert sender.put(frame.info, frame.pixels)
        assert sender.finish().ended
        receiver.assert_intact()


def test_gaps_in_the_numbers_are_no_loss() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        put_all(sender, range(0, 30, 3))
        assert sender.finish().acknowledged == 10
        assert receiver.seqs == list(range(0, 30, 3))


FAULTS = [
    pytest.param(Faults(duplicate=1.0), {"duplicates": 60}, id="all duplicated"),
    pytest.param(Faults(reorder=0.5, seed=3), {"refused": {}}, id="reordered"),
    pytest.param(Faults(corrupt=0.4, seed=4), {}, id="corrupted"),
    pytest.param(Faults(stall_s=0.2, stall_after=30), {"duplicates": 0, "refused": {}}, id="stalled"),
    pytest.param(Faults(duplicate=0.2, reorder=0.3, corrupt=0.3, seed=5), {}, id="all at once"),
]


@pytest.mark.parametrize(("faults", "expected"), FAULTS)
def test_faults_of_the_line_are_put_right(faults: Faults, expected: dict[str, object]) -> None:
    with receiving() as receiver, sending(receiver.address, faults=faults) as sender:
        put_all(sender, range(60))
        stats = sender.finish()
        assert sorted(receiver.seqs) == list(range(60))
        receiver.assert_intact()
        ingested = receiver.ingest.stats
        assert (stats.acknowledged, stats.lost, stats.ended) == (60, 0, True)
        assert {name: getattr(ingested, name) for name in expected} == expected
        assert bool(ingested.refused) is (faults.corrupt > 0)
        assert bool(ingested.out_of_order) is (faults.reorder + faults.corrupt > 0)


def test_a_stall_delays_the_frames_behind_it() -> None:
    faults = Faults(stall_s=0.5, stall_after=5)
    with receiving() as receiver, sending(receiver.address, faults=faults) as sender:
        put_all(sender, range(10))
        sender.finish()
        times = [frame.received_s for frame in receiver.frames]
        assert [late - early > 0.4 for early, late in itertools.pairwise(times)] == [
            seq == 5 for seq in range(1, 10)
        ]


def test_frames_that_the_line_swallows_are_missing_at_the_receiver() -> None:
    with receiving() as receiver, sending(receiver.address, faults=Faults(drop=0.3, seed=1)) as sender:
        put_all(sender, range(60))
        stats = sender.finish()
        assert 5 < stats.lost < 40
        assert len(receiver.frames) == stats.acknowledged == 60 - stats.lost
        assert (receiver.ends[0].announced, receiver.ends[0].dropped) == (60, 0)


def test_the_same_seed_gives_the_same_faults() -> None:
    def survivors() -> list[int]:
        with receiving() as receiver, sending(receiver.address, faults=Faults(drop=0.5, seed=8)) as sender:
            put_all(sender, range(40))
            sender.finish()
            return receiver.seqs

    assert survivors() == survivors()


def test_a_daemon_that_comes_late_gets_everything() -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address) as sender:
        put_all(sender, range(20))
        time.sleep(0.3)
        assert not sender.stats.connected
        with receiving(address) as receiver:
            assert sender.finish().ended
            assert receiver.seqs == list(range(20))


def test_a_daemon_that_restarts_gets_what_was_not_acknowledged() -> None:
    with sending_to_restarting_daemon() as (sender, first):
        put_all(sender, range(20))
        wait_until(lambda: sender.stats.acknowledged == 20)
        first.has_room = False
        put_all(sender, range(20, 60))
        wait_until(lambda: first.offers > 20)
        first.stop()
        put_all(sender, range(60, 80))
        with receiving(first.address) as second:
            stats = sender.finish()
            assert first.seqs == list(range(20))
            assert second.headers == [make_header()]
            assert second.seqs == list(range(20, 80))
            second.assert_intact()
            assert (stats.acknowledged, stats.dropped, stats.ended) == (80, 0, True)


def test_a_daemon_that_restarts_between_two_frames_is_told_of_the_run() -> None:
    with sending_to_restarting_daemon() as (sender, first):
        put_all(sender, range(5))
        wait_until(lambda: sender.stats.acknowledged == 5)
        first.stop()
        with receiving(first.address) as second:
            put_all(sender, range(5, 10))
            assert sender.finish().ended
            assert second.seqs == list(range(5, 10))


def test_nothing_is_lost_over_many_restarts() -> None:
    with sending_to_restarting_daemon() as (sender, receiver):
        seqs: list[int] = []
        for turn in range(5):
            put_all(sender, range(turn * 20, turn * 20 + 20))
            time.sleep(0.01 * turn)
            receiver.stop()
            seqs += receiver.seqs
            receiver = Receiver(receiver.address)
        try:
            assert sender.finish().ended
            seqs += receiver.seqs
        finally:
            receiver.stop()
        # An acknowledgement that a restart swallows brings its frame to both daemons: never to neither.
        assert sorted(set(seqs)) == list(range(100))


class sending_to_restarting_daemon:
    """A sender and the daemon that it starts with; the daemon is the test's to stop."""

    def __enter__(self) -> tuple[Sender, Receiver]:
        self._receiver = Receiver()
        self._sending = sending(self._receiver.address)
        return self._sending.__enter__(), self._receiver

    def __exit__(self, *error: object) -> None:
        self._sending.__exit__(None, None, None)
        self._receiver.stop()


def test_a_daemon_without_room_makes_the_sender_drop_and_count() -> None:
    frame_bytes = 16 * 24 * 2
    with receiving() as receiver, sending(receiver.address, buffer_bytes=8 * frame_bytes) as sender:
        receiver.has_room = False
        taken = put_all(sender, range(30))
        assert sum(taken) == 8
        stats = sender.stats
        assert (stats.put, stats.dropped, stats.buffered_bytes) == (8, 22, 8 * frame_bytes)
        receiver.has_room = True
        assert sender.finish().acknowledged == 8
        assert receiver.seqs == [seq for seq, kept in zip(range(30), taken, strict=True) if kept]
        assert (receiver.ends[0].announced, receiver.ends[0].dropped) == (30, 22)


def test_a_frame_that_is_held_is_offered_again_until_there_is_room() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        receiver.has_room = False
        put_all(sender, range(5))
        wait_until(lambda: receiver.offers > 3)
        time.sleep(1.3)  # long enough for the sender to ask again
        receiver.has_room = True
        assert sender.finish().ended
        assert receiver.seqs == list(range(5))


def test_putting_never_waits_for_anyone() -> None:
    frame_bytes = 16 * 24 * 2
    with receiving() as receiver, sending(receiver.address, buffer_bytes=50 * frame_bytes) as sender:
        receiver.has_room = False
        frame = make_frame(0)
        slowest = 0.0
        for seq in range(500):
            begin = time.monotonic()
            sender.put(FrameInfo(seq, 0, 0, 1, 0.0), frame.pixels)
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 0.25


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((16, 23), np.uint16), id="another shape"),
        pytest.param(np.zeros((16, 24), np.float32), id="another type"),
        pytest.param("no array", id="no array"),
    ],
)
def test_a_frame_that_does_not_fit_the_run_fails_the_sender_without_raising(pixels: object) -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        assert sender.put(make_frame(0).info, pixels) is False
        assert sender.stats.dropped == 1
        with pytest.raises((WireError, RunError)):
            sender.raise_if_failed()


def test_an_info_that_cannot_be_sent_ends_the_run_with_a_reason() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        put_all(sender, range(3))
        wait_until(lambda: sender.stats.acknowledged == 3)
        sender.put(FrameInfo(seq=3, sweep=0, index=5, count=5, z_um=0.0), make_frame(3).pixels)
        wait_until(lambda: bool(receiver.ends))
        assert "index must be below the count" in receiver.ends[0].reason
        with pytest.raises(WireError, match="index must be below the count"):
            sender.raise_if_failed()
        assert put_all(sender, range(4, 6)) == [False, False]


def test_finishing_without_a_daemon_takes_no_longer_than_agreed() -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address) as sender:
        put_all(sender, range(3))
        begin = time.monotonic()
        stats = sender.finish(timeout_s=0.3)
        assert time.monotonic() - begin < 2.0
        assert (stats.ended, stats.waiting, stats.acknowledged) == (False, 3, 0)
        assert sender.finish() == stats
        assert put_all(sender, range(3, 4)) == [False]


def test_finishing_a_sender_that_never_started_is_harmless() -> None:
    sender = Sender(FREE_PORT, make_header(), buffer_bytes=1 << 20)
    assert sender.finish().put == 0


def test_a_buffer_that_cannot_hold_a_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not hold one frame of 768"):
        Sender(FREE_PORT, make_header(), buffer_bytes=767)


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:notaport", "udp://x:1"])
def test_a_malformed_address_is_refused_on_both_sides(address: str) -> None:
    with pytest.raises(AddressError, match=r"tcp://127\.0\.0\.1:5750"):
        Sender(address, make_header(), buffer_bytes=1 << 20).start()
    with pytest.raises(AddressError):
        Ingest(address, on_start=print, on_frame=bool, on_end=print).start()


def test_a_port_in_use_is_named_at_once() -> None:
    with receiving() as receiver:
        port = receiver.address.rpartition(":")[2]
        with pytest.raises(AddressError, match=f"port {port} is in use"):
            Receiver(receiver.address)


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(AddressError, match="no network interface"):
        Receiver("tcp://192.0.2.1:*")


def test_a_port_is_free_again_after_stop() -> None:
    with receiving() as receiver:
        address = receiver.address
    with receiving(address) as receiver:
        assert receiver.address == address


def test_a_run_whose_sender_is_gone_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "SILENT_S", 0.2)
    other = make_header(run_id="f" * 32, name="other")
    with receiving() as receiver, sending(receiver.address) as sender:
        put_all(sender, range(3))
        wait_until(lambda: receiver.ingest.stats.frames == 3)
        time.sleep(0.3)
        with sending(receiver.address, header=other) as second:
            put_all(second, range(2))
            assert second.finish().ended
        assert [(end.run, end.announced) for end in receiver.ends] == [(RUN, 3), ("f" * 32, 2)]


def test_a_second_run_is_refused_while_one_is_open_and_welcome_afterwards() -> None:
    other = make_header(run_id="f" * 32, name="other")
    with receiving() as receiver, sending(receiver.address) as sender:
        put_all(sender, range(3))
        wait_until(lambda: sender.stats.connected)
        with sending(receiver.address, header=other) as second:
            wait_until(lambda: second.stats.connected is False and second._failure is not None)
            with pytest.raises(AcquisitionError, match="run 'run' is still open"):
                second.raise_if_failed()
        assert sender.finish().ended
        with sending(receiver.address, header=other) as second:
            put_all(second, range(2))
            assert second.finish().ended
        assert [header.name for header in receiver.headers] == ["run", "other"]
        assert [end.run for end in receiver.ends] == [RUN, "f" * 32]
        assert receiver.ingest.stats.refused == {"busy": 1}


def test_a_run_that_the_daemon_closes_makes_way_and_its_sender_is_told_why() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        put_all(sender, range(3))
        wait_until(lambda: sender.stats.acknowledged == 3)
        receiver.ingest.close_run("the disk is full.")
        time.sleep(0.2)
        with sending(receiver.address, header=make_header(run_id="f" * 32)) as second:
            put_all(second, range(3, 5))
            assert second.finish().ended
        put_all(sender, range(5, 6))
        wait_until(lambda: sender._failure is not None)
        with pytest.raises(AcquisitionError, match="the disk is full"):
            sender.raise_if_failed()
        assert receiver.seqs == [0, 1, 2, 3, 4]
        assert [end.run for end in receiver.ends] == ["f" * 32]
        assert len(receiver.headers) == 2


def test_a_run_can_be_closed_while_its_frame_is_held() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        receiver.has_room = False
        put_all(sender, range(3))
        wait_until(lambda: receiver.offers > 1)
        receiver.ingest.close_run("the disk is full.")
        wait_until(lambda: sender._failure is not None)
        assert receiver.frames == []


def test_a_run_can_be_turned_away_by_its_header() -> None:
    def decline(header: RunHeader) -> None:
        raise GeometryError("The slab is longer than the volume.")

    ingest = Ingest(FREE_PORT, on_start=decline, on_frame=bool, on_end=print)
    ingest.start()
    try:
        with sending(ingest.address) as sender:
            wait_until(lambda: sender._failure is not None)
            with pytest.raises(AcquisitionError, match="slab is longer"):
                sender.raise_if_failed()
        ingest.raise_if_failed()
    finally:
        ingest.stop()


@pytest.mark.parametrize("callback", ["on_start", "on_frame", "on_end"])
@pytest.mark.parametrize(
    ("error", "expected"), [(DiskError("no space left"), DiskError), (KeyError("oops"), RunError)]
)
def test_a_callback_that_raises_surfaces_at_the_owner(
    callback: str, error: Exception, expected: type[Exception]
) -> None:
    def fail(_: object) -> bool:
        raise error

    callbacks = {"on_start": lambda _: None, "on_frame": lambda _: True, "on_end": lambda _: None}
    ingest = Ingest(FREE_PORT, **{**callbacks, callback: fail})
    ingest.start()
    with sending(ingest.address) as sender:
        put_all(sender, range(1))
        sender.finish(timeout_s=0.5)
        wait_until(lambda: not ingest._thread.is_alive())
        with pytest.raises(expected):
            ingest.raise_if_failed()
    ingest.stop()


class Peer:
    """A bare DEALER: a sender that says what it likes."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.destroy(linger=0)

    def say(self, parts: list[bytes]) -> None:
        self._socket.send_multipart(parts)

    def hear(self) -> wire.Message:
        assert self._socket.poll(5000), "no answer"
        return wire.decode(self._socket.recv_multipart())


def frame_parts(seq: int, **changes: object) -> list[bytes]:
    frame = make_frame(seq)
    values = {name: getattr(frame.info, name) for name in FrameInfo.__slots__}
    frame = type(frame)(FrameInfo(**{**values, **changes}), frame.pixels)
    return [bytes(part) for part in wire.encode_frame(RUN, frame)]


def test_nonsense_is_counted_and_does_no_harm() -> None:
    with receiving() as receiver, Peer(receiver.address) as peer:
        for parts in ([b""], [b"{}"], [b"GET / HTTP/1.1"], [b"a", b"b", b"c"], [b"\x80\x04K\x01."]):
            peer.say(parts)
        peer.say(wire.encode(wire.Ack(run=RUN)))
        peer.say(wire.encode(wire.RunStart(header=make_header(), attempt=3)))
        answers = [peer.hear(), peer.hear()]
        assert answers[0].reason == "version"  # to {}, which might be a newer sender's
        assert answers[1] == wire.Ack(run=RUN, attempt=3)
        assert receiver.ingest.stats.refused == {"header": 3, "version": 1, "parts": 1, "kind": 1}


MISFITS = [
    pytest.param(frame_parts(0, sweep=2), "sweep 2", id="sweep beyond the last"),
    pytest.param(frame_parts(0, channel=1), "channel 1", id="unknown channel"),
    pytest.param(frame_parts(0, position=1), "position 1", id="unknown position"),
    pytest.param(
        [
            bytes(part)
            for part in wire.encode_frame(RUN, make_frame(0, make_header(shape=(8, 8, 8), dtype="float32")))
        ],
        "float32",
        id="another image",
    ),
]


@pytest.mark.parametrize(("parts", "text"), MISFITS)
def test_a_frame_that_does_not_fit_its_run_is_refused(parts: list[bytes], text: str) -> None:
    with receiving() as receiver, Peer(receiver.address) as peer:
        peer.say(wire.encode(wire.RunStart(header=make_header(sweeps=2))))
        peer.hear()
        peer.say(parts)
        answer = peer.hear()
        assert (answer.seq, answer.reason) == (0, "frame")
        assert text in answer.text
        assert receiver.frames == []


def test_frames_and_end_of_an_unknown_run_are_refused() -> None:
    with receiving() as receiver, Peer(receiver.address) as peer:
        peer.say(frame_parts(0))
        peer.say(wire.encode(wire.RunEnd(run=RUN, announced=1, dropped=0)))
        assert [peer.hear().reason, peer.hear().reason] == ["unknown-run"] * 2
        assert receiver.frames == receiver.ends == []


def test_repeated_messages_are_answered_again_but_handed_on_once() -> None:
    messages = [
        wire.encode(wire.RunStart(header=make_header(), attempt=1)),
        frame_parts(0),
        wire.encode(wire.RunEnd(run=RUN, announced=1, dropped=0)),
    ]
    answers = [
        wire.Ack(run=RUN, attempt=1),
        wire.Ack(run=RUN, received=(0,)),
        wire.Ack(run=RUN, ended=True),
    ]
    with receiving() as receiver, Peer(receiver.address) as peer:
        for parts in [*messages, *messages]:
            peer.say(parts)
        assert [peer.hear() for _ in range(6)] == [*answers, *answers]
        assert (len(receiver.headers), receiver.seqs, len(receiver.ends)) == (1, [0], 1)
        assert receiver.ingest.stats.duplicates == 1


def test_a_new_frame_after_the_end_is_refused() -> None:
    with receiving() as receiver, Peer(receiver.address) as peer:
        peer.say(wire.encode(wire.RunStart(header=make_header())))
        peer.say(wire.encode(wire.RunEnd(run=RUN, announced=0, dropped=0)))
        peer.say(frame_parts(0))
        assert [peer.hear(), peer.hear()][1] == wire.Ack(run=RUN, ended=True)
        assert peer.hear().reason == "closed"
        assert receiver.frames == []


def test_a_sender_survives_a_daemon_that_talks_nonsense() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    try:
        with sending(f"tcp://127.0.0.1:{port}") as sender:
            assert router.poll(5000)
            peer = router.recv_multipart()[0]
            for parts in (
                [b"\xff"],
                [b"{}"],
                wire.encode(wire.Ack(run="e" * 32, attempt=0)),
                *[frame_parts(0)],
            ):
                router.send_multipart([peer, *parts])
            time.sleep(0.2)
            assert not sender.stats.connected
            router.send_multipart([peer, *wire.encode(wire.Ack(run=RUN, attempt=0))])
            wait_until(lambda: sender.stats.connected)
            sender.raise_if_failed()
    finally:
        router.close()
        context.term()


def test_faults_that_add_up_to_more_than_all_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to at most 1"):
        Faults(drop=0.6, corrupt=0.6)
