"""The sender against a real daemon's end: what the line does to frames, and what becomes of them."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.wire_support import (
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
from microdiffusion.errors import (
    AcquisitionError,
    AddressError,
    ConfigError,
    GeometryError,
    RunError,
    WireError,
)
from microdiffusion.frames import FrameInfo, StagePosition
from microdiffusion.sender import protocol as protocol_module
from microdiffusion.sender.faults import Faults
from microdiffusion.sender.sender import Sender

FRAME_BYTES = 16 * 24 * 2


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
        ingested = receiver.ingest.run_stats(RUN)
        assert (ingested.frames, ingested.duplicates) == (50, 0)
        assert receiver.ingest.refused == {}
        sender.raise_if_failed()


def test_the_example_of_the_docs_sends_a_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    with receiving() as receiver:
        exec(code.replace("tcp://127.0.0.1:5750", receiver.address), {})  # noqa: S102
        assert receiver.seqs == list(range(8))
        assert [end.reason for end in receiver.ends] == ["finished"]


def test_fifteen_lines_without_our_package_send_a_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text("utf-8")
    code = re.search(r"## From any other program.*?```python\n(.*?)```", page, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line and not line.startswith("import ")]
    assert len(lines) <= 15
    assert "microdiffusion" not in code
    with receiving() as receiver:
        code = code.replace("tcp://127.0.0.1:5750", receiver.address)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert receiver.seqs == list(range(8))
        assert [frame.info.stage.z_um for frame in receiver.frames] == [6.0 + 12.0 * seq for seq in range(8)]
        assert all((frame.pixels == 100).all() for frame in receiver.frames)
        assert [(end.announced, end.reason) for end in receiver.ends] == [(8, "finished")]


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
    pytest.param(Faults(cut_s=0.3, cut_after=30), {}, id="cut off"),
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
        ingested = receiver.ingest.run_stats(RUN)
        assert (stats.acknowledged, stats.lost, stats.ended) == (60, 0, True)
        assert {name: getattr(ingested, name) for name in expected} == expected
        assert bool(receiver.ingest.refused) is (faults.corrupt > 0)
        assert (receiver.seqs != list(range(60))) is (faults.reorder + faults.corrupt > 0)
        assert receiver.ends[-1].announced == 60


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


def test_a_source_that_can_wait_waits_for_the_daemon_and_for_its_answers() -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address) as sender:
        put_all(sender, range(20))
        with pytest.raises(AddressError, match=r"there first, or later\."):
            sender.meet(lambda: False, 0.0, ", or later")
        sender.meet(lambda: True, 0.0)
        assert not sender.drain(lambda: True)
        assert not sender.drain(lambda: False, standstill_s=0.0)
        with receiving(address) as receiver:
            sender.meet(lambda: False, 10.0)
            assert sender.drain(lambda: False)
            assert receiver.seqs == list(range(20))


def test_a_daemon_that_restarts_gets_what_was_not_acknowledged() -> None:
    with sending_to_restarting_daemon() as (sender, first):
        put_all(sender, range(20))
        wait_until(lambda: sender.stats.acknowledged == 20)
        first.hold()
        put_all(sender, range(20, 60))
        wait_until(lambda: len(first.frames) > 40)
        first.stop()
        put_all(sender, range(60, 80))
        with receiving(first.address) as second:
            stats = sender.finish()
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


def test_a_daemon_that_confirms_nothing_makes_the_sender_drop_and_count() -> None:
    with receiving() as receiver, sending(receiver.address, buffer_bytes=8 * FRAME_BYTES) as sender:
        receiver.hold()
        taken = put_all(sender, range(30))
        assert sum(taken) == 8
        stats = sender.stats
        assert (stats.put, stats.dropped, stats.buffered_bytes) == (8, 22, 8 * FRAME_BYTES)
        receiver.release()
        assert sender.finish().acknowledged == 8
        assert receiver.seqs == [seq for seq, kept in zip(range(30), taken, strict=True) if kept]
        assert (receiver.ends[0].announced, receiver.ends[0].dropped) == (30, 22)


def test_frames_that_the_daemon_holds_are_not_sent_again_while_they_wait() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        receiver.hold()
        put_all(sender, range(5))
        wait_until(lambda: len(receiver.frames) == 5)
        wait_until(lambda: sender._protocol._attempt > 1)  # the sender has asked what became of them
        receiver.release()
        stats = sender.finish()
        assert (stats.ended, stats.resent, receiver.repeats) == (True, 0, 0)
        assert receiver.seqs == list(range(5))


def test_no_more_is_on_its_way_than_the_daemon_said() -> None:
    with receiving() as receiver:
        receiver.window_bytes = 4 * FRAME_BYTES
        receiver.hold()
        with sending(receiver.address) as sender:
            put_all(sender, range(12))
            wait_until(lambda: len(receiver.frames) == 4)
            assert sender.stats.on_the_way == 4
            receiver.release()
            assert sender.finish().ended
            assert receiver.seqs == list(range(12))
            assert receiver.ingest.refused == {}


def test_a_frame_without_room_at_the_daemon_is_sent_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        receiver.window_bytes = 2 * FRAME_BYTES
        receiver.hold()
        with sending(receiver.address) as sender:
            wait_until(lambda: sender.stats.connected)
            sender._protocol._window_bytes = 100 * FRAME_BYTES  # a sender that does not keep to it
            put_all(sender, range(10))
            wait_until(lambda: receiver.ingest.refused.get("window", 0) > 3)
            receiver.release()
            stats = sender.finish()
            assert (stats.acknowledged, stats.refused, stats.ended) == (10, 0, True)
            assert sorted(receiver.seqs) == list(range(10))


def test_progress_is_said_even_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "PROGRESS_S", 0.05)
    with receiving() as receiver, sending(receiver.address, first_seq=1000) as sender:
        put_all(sender, range(1000, 1003))
        wait_until(lambda: len(receiver.reports) > 5)
        assert receiver.reports[-1] == wire.RunProgress(run=RUN, first_seq=1000, announced=3, dropped=0)


def test_a_driver_hears_what_is_wanted_of_it() -> None:
    with receiving() as receiver, sending(receiver.address) as sender:
        wait_until(lambda: sender.stats.connected)
        assert sender.wanted == "go"
        receiver.ingest.tell(RUN, "pause", "the stage is being cleaned.")
        wait_until(lambda: sender.wanted == "pause")
        assert sender.wanted_text == "the stage is being cleaned."
        assert sender.server


def test_a_daemon_that_stands_still_is_tried_with_a_fresh_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "RENEW_S", (0.2, 0.4))
    context = zmq.Context()
    deaf = context.socket(zmq.ROUTER)
    port = deaf.bind_to_random_port("tcp://127.0.0.1")
    with sending(f"tcp://127.0.0.1:{port}") as sender:
        put_all(sender, range(3))
        peers = set()
        for _ in range(3):
            assert deaf.poll(5000)
            peers.add(deaf.recv_multipart()[0])
        assert len(peers) > 1
        context.destroy(linger=0)
        with receiving(f"tcp://127.0.0.1:{port}") as receiver:
            assert sender.finish().ended
            assert receiver.seqs == [0, 1, 2]


def test_a_line_that_breaks_is_noticed_while_nothing_is_sent() -> None:
    with sending_to_restarting_daemon() as (sender, first):
        wait_until(lambda: sender.stats.connected)
        first.stop()
        wait_until(lambda: not sender.stats.connected)
        with receiving(first.address) as second:
            wait_until(lambda: second.headers == [make_header()])


def test_a_run_that_the_daemon_declines_ends_with_its_sentence() -> None:
    with receiving() as receiver:
        receiver.declines = GeometryError("The slab is longer than the volume.")
        with sending(receiver.address) as sender:
            wait_until(lambda: sender._failure is not None)
            with pytest.raises(AcquisitionError, match="slab is longer"):
                sender.raise_if_failed()


def test_putting_never_waits_for_anyone() -> None:
    with receiving() as receiver, sending(receiver.address, buffer_bytes=50 * FRAME_BYTES) as sender:
        receiver.hold()
        frame = make_frame(0)
        slowest = 0.0
        for seq in range(500):
            begin = time.monotonic()
            sender.put(FrameInfo(seq, 0, 0, 1, StagePosition(0.0)), frame.pixels)
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
        sender.put(
            FrameInfo(seq=3, sweep=0, index=5, count=5, stage=StagePosition(0.0)), make_frame(3).pixels
        )
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
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(AddressError, match=r"tcp://127\.0\.0\.1:5750"):
        Sender(address, make_header(), buffer_bytes=1 << 20).start()


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
                [bytes(part) for part in wire.encode_frame(RUN, make_frame(0))],
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


def test_a_driver_hears_what_the_engine_says_of_each_session() -> None:
    words = [wire.SweepFeedback(sweep=sweep, position=sweep % 2, innovation=(0.0, 2.5)) for sweep in range(3)]
    with receiving() as receiver, sending(receiver.address) as sender:
        wait_until(lambda: sender.stats.connected)
        assert not sender.feedback
        for word in words:
            receiver.ingest.feedback(RUN, word)
        wait_until(lambda: sender.feedback == {(0, 0): words[2], (0, 1): words[1]})
        assert sender.wanted == "go"
