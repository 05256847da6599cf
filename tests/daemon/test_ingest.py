"""The daemon's end of the wire over a real socket: several runs, answers in time, peers of every kind."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
from support.ingest_support import Listener, Peer, RememberingSink, end, frame_parts, listening
from support.wire_support import FREE_PORT, RUN, make_frame, make_header, wait_until

from microdiffusion import __version__, wire
from microdiffusion.daemon.ingest import Ingest, NotYet, PlainSink
from microdiffusion.daemon.ingest import receiver as ingest_module
from microdiffusion.errors import AddressError, ConfigError, DiskError, GeometryError, RunError
from microdiffusion.header import RunHeader
from microdiffusion.wire import security as keys

OTHER = "f" * 32
FRAME_BYTES = 16 * 24 * 2


def plain(header: RunHeader) -> PlainSink:
    return PlainSink(header, print)


def test_a_frame_is_acknowledged_when_it_is_recorded_and_not_before() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        peer.start()
        for seq in range(3):
            peer.say(frame_parts(seq))
        wait_until(lambda: len(listener.sink.frames) == 3)
        assert peer.hears_nothing()
        assert listener.ingest.run_stats(RUN).pending_bytes == 3 * FRAME_BYTES
        threading.Thread(target=listener.sink.release).start()  # any thread may say so
        assert peer.confirmed(3) == [0, 1, 2]
        wait_until(lambda: listener.ingest.run_stats(RUN).pending_bytes == 0)
        listener.sink.assert_intact()


def test_what_is_recorded_wakes_the_thread_each_time() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        peer.start()
        for seq in range(5):
            peer.say(frame_parts(seq))
        wait_until(lambda: len(listener.sink.waiting) == 5)
        begin = time.monotonic()
        for seq in range(5):
            listener.sink.waiting.popleft().recorded()
            assert peer.confirmed(1) == [seq]
        assert time.monotonic() - begin < 2.5  # a thread that was not woken would take a second for each


def test_answers_come_in_the_order_of_the_frames_whatever_is_recorded_first() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        peer.start()
        for seq in (0, 2, 1):
            peer.say(frame_parts(seq))
        wait_until(lambda: len(listener.sink.waiting) == 3)
        listener.sink.waiting[2].recorded()
        listener.sink.waiting[1].recorded()
        assert peer.hears_nothing()
        listener.sink.waiting[0].recorded()
        assert peer.confirmed(3) == [0, 2, 1]


def test_many_frames_are_acknowledged_in_few_messages() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True, "window_bytes": 2000 * FRAME_BYTES}
        peer.start()
        for seq in range(1500):
            peer.say(frame_parts(seq))
        wait_until(lambda: len(listener.sink.frames) == 1500)
        # Held back by the first: the others are recorded already when it is.
        first, *others = listener.sink.waiting
        for receipt in others:
            receipt.recorded()
        time.sleep(0.05)
        first.recorded()
        assert [len(peer.hear().received), len(peer.hear().received)] == [1024, 476]


def test_the_answer_to_start_says_how_much_may_be_on_its_way_and_what_is_there_already() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        assert peer.start(attempt=7) == wire.Ack(
            run=RUN, attempt=7, window_bytes=1 << 20, held=(), server=__version__
        )
        for seq in range(3):
            peer.say(frame_parts(seq))
        wait_until(lambda: len(listener.sink.frames) == 3)
        assert peer.start(attempt=8).held == (0, 1, 2)
        listener.sink.release()
        assert peer.confirmed(3) == [0, 1, 2]
        assert peer.start(attempt=9).held == ()
        assert listener.sink.starts == [0, 0, 0]


def test_a_sender_beyond_its_window_is_refused_and_welcome_when_there_is_room() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True, "window_bytes": 2 * FRAME_BYTES}
        assert peer.start().window_bytes == 2 * FRAME_BYTES
        for seq in range(3):
            peer.say(frame_parts(seq))
        refusal = peer.hear()
        assert (refusal.seq, refusal.reason) == (2, "window")
        assert listener.refused == {"window": 1}
        listener.sink.release()
        assert peer.confirmed(2) == [0, 1]
        peer.say(frame_parts(2))
        assert peer.confirmed(1) == [2]


def test_one_frame_may_always_be_on_its_way() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"window_bytes": 0}
        assert peer.start().window_bytes == FRAME_BYTES
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]


def test_runs_do_not_wait_for_each_other() -> None:
    with listening() as listener, Peer(listener.address) as slow, Peer(listener.address) as quick:
        listener.sink_options = {"holds": True}
        slow.start()
        slow.say(frame_parts(0))
        wait_until(lambda: bool(listener.sink.frames))
        listener.sink_options = {}
        quick.start(header=make_header(run_id=OTHER))
        for seq in range(20):
            quick.say(frame_parts(seq, OTHER))
        assert quick.confirmed(20) == list(range(20))
        assert listener.ingest.run_stats(OTHER).frames == 20
        assert slow.hears_nothing(0.05)


def test_a_run_file_that_takes_long_to_make_holds_up_no_other_run() -> None:
    made = threading.Event()
    with listening() as listener, Peer(listener.address) as slow, Peer(listener.address) as quick:

        def on_start(header: RunHeader) -> RememberingSink:
            if header.run_id == OTHER:
                assert made.wait(10)
            return listener.new_sink(header)

        quick.start()
        listener.on_start = on_start
        for attempt in range(3):  # it asks again, and the last question is answered
            slow.say(wire.RunStart(header=make_header(run_id=OTHER), attempt=attempt))
        for seq in range(20):
            quick.say(frame_parts(seq))
        assert quick.confirmed(20) == list(range(20))
        made.set()
        assert slow.hear().attempt == 2
        assert slow.hears_nothing(0.05)
        assert len(listener.sinks[OTHER]) == 1


def test_a_daemon_that_cannot_say_yet_is_asked_again() -> None:
    with listening() as listener, Peer(listener.address) as peer:

        def not_yet(header: RunHeader) -> RememberingSink:
            listener.on_start = listener.new_sink
            raise NotYet

        listener.on_start = not_yet
        peer.say(wire.RunStart(header=make_header(), attempt=0))
        assert peer.hears_nothing()
        assert peer.start(attempt=1).attempt == 1


def test_more_runs_than_agreed_are_refused_until_one_is_over() -> None:
    with listening(runs=2) as listener, Peer(listener.address) as peer:
        peer.start()
        peer.start(header=make_header(run_id=OTHER, name="second"))
        third = make_header(run_id="e" * 32)
        refusal = peer.start(header=third)
        assert (refusal.reason, refusal.run) == ("busy", third.run_id)
        assert "2 runs are open here already ('run', 'second')" in refusal.text
        peer.say(end(0))
        assert peer.hear().ended
        assert peer.start(header=third).attempt == 0


def test_a_sender_that_says_nothing_is_given_up_and_may_come_back() -> None:
    with listening(silent_s=0.3) as listener, Peer(listener.address) as peer:
        peer.start()
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]
        wait_until(lambda: bool(listener.sink.silences))
        assert "said nothing for 0.3 s" in listener.sink.silences[0]
        assert (listener.sink.ends, listener.sink.state) == ([], "silent")
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]  # what is there is there
        peer.say(frame_parts(1))
        assert peer.hear().reason == "unknown-run"  # so it begins anew, and the run goes on
        peer.start(attempt=1)
        peer.say(frame_parts(1))
        assert peer.confirmed(1) == [1]
        assert [sink.seqs for sink in listener.sinks[RUN]] == [[0], [1]]


def test_a_sender_that_reports_is_not_silent() -> None:
    with listening(silent_s=0.6) as listener, Peer(listener.address) as peer:
        peer.start()
        begin = time.monotonic()
        while time.monotonic() - begin < 1.8:
            peer.say(wire.RunProgress(run=RUN, announced=5, dropped=1))
            time.sleep(0.1)
        assert listener.sink.silences == []
        report = listener.sink.reports[-1]
        assert (report.announced, report.dropped, listener.sink.state) == (5, 1, "open")


def test_a_driver_is_told_what_is_wanted_and_again_with_each_report() -> None:
    tell = wire.Tell(run=RUN, what="pause", text="the disk is full.")
    with listening() as listener, Peer(listener.address) as peer:
        peer.start()
        listener.ingest.tell(RUN, "pause", "the disk is full.")
        assert peer.hear() == tell
        peer.say(wire.RunProgress(run=RUN, announced=0, dropped=0))
        assert peer.hear() == tell
        with Peer(listener.address) as again:
            assert again.start(attempt=1).attempt == 1
            assert again.hear() == tell
            listener.ingest.tell(RUN, "go")
            assert again.hear() == wire.Tell(run=RUN, what="go")


def test_telling_or_closing_a_run_that_is_not_there_is_harmless() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.ingest.tell(OTHER, "stop")
        listener.ingest.close_run(OTHER, "why not.")
        assert peer.start().attempt == 0


def test_a_run_that_the_daemon_closes_tells_its_sender_why_and_confirms_what_is_recorded_later() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        peer.start()
        peer.say(frame_parts(0))
        wait_until(lambda: bool(listener.sink.waiting))
        listener.ingest.close_run(RUN, "the disk is full.")
        refusal = peer.hear()
        assert (refusal.run, refusal.seq, refusal.reason) == (RUN, None, "closed")
        assert "the disk is full" in refusal.text
        peer.say(frame_parts(1))
        assert peer.hear().reason == "closed"
        peer.say(frame_parts(0))  # not recorded, so the sender still has to keep it
        assert peer.hear().reason == "closed"
        listener.sink.release()
        assert peer.confirmed(1) == [0]
        assert (listener.sink.ends, listener.sink.silences) == ([], [])
        assert listener.sink.state == "closed"


def test_a_run_can_be_turned_away_by_its_header() -> None:
    def decline(header: RunHeader) -> RememberingSink:
        raise GeometryError("The slab is longer than the volume.")

    with listening() as listener, Peer(listener.address) as peer:
        listener.on_start = decline
        refusal = peer.start()
        assert (refusal.reason, refusal.text) == ("declined", "The slab is longer than the volume.")
        listener.ingest.raise_if_failed()


def test_a_full_disk_turns_a_run_away_and_harms_no_other() -> None:
    def full(header: RunHeader) -> RememberingSink:
        raise DiskError("no room for the run file.")

    with listening() as listener, Peer(listener.address) as peer:
        peer.start()
        listener.on_start = full
        assert peer.start(header=make_header(run_id=OTHER)).reason == "declined"
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]


def test_a_run_whose_sink_fails_is_closed_alone() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        peer.start()
        peer.start(header=make_header(run_id=OTHER))
        listener.sinks[RUN][0].fails_with = DiskError("the disk is gone.")
        peer.say(frame_parts(0))
        refusal = peer.hear()
        assert (refusal.run, refusal.reason, refusal.text) == (RUN, "closed", "the disk is gone.")
        peer.say(frame_parts(0, OTHER))
        assert peer.confirmed(1) == [0]


@pytest.mark.parametrize("where", ["on_start", "frame"])
def test_a_mistake_in_the_daemon_surfaces_at_the_owner(where: str) -> None:
    def mistaken(header: RunHeader) -> RememberingSink:
        raise KeyError("oops")

    listener = Listener()
    with Peer(listener.address) as peer:
        if where == "on_start":
            listener.on_start = mistaken
            assert peer.start().reason == "declined"
        else:
            peer.start()
            listener.sink.fails_with = KeyError("oops")
            peer.say(frame_parts(0))
        wait_until(lambda: not listener.ingest._thread.is_alive())
        with pytest.raises(RunError, match="oops"):
            listener.ingest.raise_if_failed()
    listener.ingest.stop()


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:notaport", "udp://x:1"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises((AddressError, ConfigError)):
        Ingest(address).start(plain)


def test_a_port_in_use_is_named_at_once() -> None:
    with listening() as listener:
        port = listener.address.rpartition(":")[2]
        with pytest.raises(AddressError, match=f"port {port} is in use"):
            Listener(listener.address)


def test_a_port_is_free_again_after_stop() -> None:
    with listening() as listener:
        address = listener.address
    with listening(address) as listener:
        assert listener.address == address


def test_stopping_before_starting_and_twice_is_harmless() -> None:
    ingest = Ingest(FREE_PORT)
    ingest.stop()
    ingest.stop()


def test_a_stop_is_not_delayed_by_silence_on_the_line() -> None:
    listener = Listener()
    begin = time.monotonic()
    listener.stop()
    assert time.monotonic() - begin < 0.8  # far below the tick of a second: it is woken


def test_without_keys_no_other_machine_is_listened_to() -> None:
    with pytest.raises(ConfigError, match="mdd keys new"):
        Ingest("tcp://*:*").start(plain)


def test_with_keys_only_who_is_trusted_gets_an_answer(tmp_path: Path) -> None:
    for name in ("daemon", "friend", "stranger"):
        keys.new_keys(tmp_path / name)
    keys.trust(tmp_path / "daemon", "friend", keys.public_key(tmp_path / "friend"))
    security = keys.server_keys(tmp_path / "daemon")
    with listening("tcp://*:*", security=security) as listener:
        address = listener.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        stranger = keys.client_keys(tmp_path / "stranger", security.public)
        friend = keys.client_keys(tmp_path / "friend", security.public)
        with (
            Peer(address) as bare,
            Peer(address, keys=stranger) as unknown,
            Peer(address, keys=friend) as known,
        ):
            for peer in (bare, unknown):
                peer.say(wire.RunStart(header=make_header()))
            assert known.start(header=make_header(run_id=OTHER)).attempt == 0
            assert bare.hears_nothing(0.3)
            assert unknown.hears_nothing(0.3)
            assert set(listener.sinks) == {OTHER}


def test_nonsense_is_counted_and_does_no_harm() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        for parts in (
            [b""],
            [b"{}"],
            [b"GET / HTTP/1.1"],
            [b"a", b"b", b"c"],
            [b"\x80\x04K\x01."],
            [b""] * 9,
        ):
            peer.say(parts)
        peer.say(wire.Ack(run=RUN))
        peer.say(wire.Tell(run=RUN, what="stop"))
        peer.say([*frame_parts(0), b"one part too many"])
        header, check = wire.encode(end(0))
        peer.say([header.replace(b"finished", b"fini5hed"), check])
        assert peer.start(attempt=3).attempt == 3
        assert listener.refused == {"parts": 7, "checksum": 1, "kind": 2}


def test_of_a_message_of_very_many_parts_only_the_first_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as listener, Peer(listener.address, SNDHWM=0) as peer:
        peer.start()
        protocol = listener.ingest._protocol
        received, kept = protocol.received, []

        def counting(name: bytes, parts: list[bytes], now_s: float) -> None:
            kept.append(len(parts))
            received(name, parts, now_s)

        monkeypatch.setattr(protocol, "received", counting)
        peer.say([b"x"] * 300_000)
        peer.say(frame_parts(0))
        assert peer.confirmed(1) == [0]
        assert kept == [4, 3]
        assert listener.refused == {"parts": 1}


MISFITS = [
    pytest.param(frame_parts(0, sweep=2), "sweep 2", id="sweep beyond the last"),
    pytest.param(frame_parts(0, channel=1), "channel 1", id="unknown channel"),
    pytest.param(frame_parts(0, position=1), "position 1", id="unknown position"),
    pytest.param(frame_parts(0, header=make_header(shape=(8, 8, 8))), "(8, 8)", id="another shape"),
    pytest.param(frame_parts(0, header=make_header(dtype="float32")), "float32", id="another type"),
]


@pytest.mark.parametrize(("parts", "text"), MISFITS)
def test_a_frame_that_does_not_fit_its_run_is_refused(parts: list[bytes], text: str) -> None:
    with listening() as listener, Peer(listener.address) as peer:
        peer.start(header=make_header(sweeps=2))
        peer.say(parts)
        answer = peer.hear()
        assert (answer.seq, answer.reason) == (0, "frame")
        assert text in answer.text
        assert listener.sink.frames == []
        assert dict(listener.ingest.run_stats(RUN).refused) == {"frame": 1}


def test_frames_larger_than_agreed_turn_their_run_away() -> None:
    with listening(max_frame_bytes=1000) as listener, Peer(listener.address) as peer:
        refusal = peer.start(header=make_header(shape=(8, 64, 64)))
        assert (refusal.reason, "raise wire.max_frame_mb" in refusal.text) == ("declined", True)
        assert peer.start().attempt == 0
        assert list(listener.sinks) == [RUN]


def test_what_is_larger_than_any_frame_costs_its_sender_the_connection_and_nobody_else() -> None:
    with listening(max_frame_bytes=1000) as listener, Peer(listener.address) as peer:
        peer.start()
        with Peer(listener.address) as bully:
            bully.say([b"x" * 10_000_000])
            peer.say(frame_parts(0))
            assert peer.confirmed(1) == [0]
        assert listener.refused == {}


def test_a_peer_that_reads_no_answers_holds_up_nobody() -> None:
    with (
        listening() as listener,
        Peer(listener.address) as peer,
        Peer(listener.address, RCVHWM=1, RCVBUF=4096, SNDHWM=0) as deaf,
    ):
        peer.start()
        deaf.start(header=make_header(run_id=OTHER))
        parts = frame_parts(0, OTHER)
        deaf.say(parts)
        questions = wire.encode(wire.RunStart(header=make_header(run_id=OTHER)))
        before = psutil.Process().memory_info().rss
        for _ in range(10_000):
            deaf.say(parts)
            deaf.say(questions)
        for seq in range(50):
            peer.say(frame_parts(seq))
        assert peer.confirmed(50) == list(range(50))
        wait_until(lambda: listener.ingest.run_stats(OTHER).duplicates == 10_000, timeout_s=30)
        assert psutil.Process().memory_info().rss - before < 60e6
        # What was dropped on the way to it, it learns when it asks.
        assert listener.ingest.run_stats(OTHER).pending_bytes == 0


def test_peers_that_come_and_go_leave_nothing_behind() -> None:
    with listening() as listener:
        for number in range(100):
            with Peer(listener.address) as peer:
                answer = peer.start(attempt=number)
                assert answer.attempt == number
                peer.say(frame_parts(number))
                assert peer.confirmed(1) == [number]
        (intake,) = listener.ingest._protocol.runs.values()
        (sender,) = intake.senders.values()
        assert len(sender._former) <= 16
        assert listener.ingest.run_stats(RUN).frames == 100


def test_a_sender_whose_connection_broke_hears_what_was_recorded_meanwhile() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        listener.sink_options = {"holds": True}
        peer.start()
        peer.say(frame_parts(0))
        wait_until(lambda: bool(listener.sink.frames))
        with Peer(listener.address) as back:  # the same sender: its socket has another name
            assert back.start(attempt=1).held == (0,)
            listener.sink.release()
            assert back.confirmed(1) == [0]


def test_a_thread_that_stood_still_takes_nobody_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(silent_s=60.0) as listener, Peer(listener.address) as peer:
        peer.start()
        clock = time.monotonic
        monkeypatch.setattr(ingest_module.time, "monotonic", lambda: clock() + 1000.0)
        for _ in range(2):  # it looks at the clock between the two
            went_round = threading.Event()
            listener.ingest._call(went_round.set)
            assert went_round.wait(5)
        assert listener.sink.state == "open"


def test_a_large_frame_is_not_copied_on_its_way() -> None:
    with listening() as listener, Peer(listener.address) as peer:
        header = make_header(shape=(8, 512, 512))
        peer.start(header=header)
        peer.say([bytes(part) for part in wire.encode_frame(RUN, make_frame(0, header))])
        assert peer.confirmed(1) == [0]
        pixels = listener.sink.frames[0].pixels
        assert isinstance(pixels.base, memoryview | type(pixels))
        assert not pixels.flags.owndata
        assert not pixels.flags.writeable
