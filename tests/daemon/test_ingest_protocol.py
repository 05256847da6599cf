"""The ingest protocol, without a socket: whatever comes, in any order, is answered rightly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.ingest_support import RememberingSink, end, frame_parts
from support.wire_support import RUN, make_frame, make_header

from microdiffusion import wire
from microdiffusion.daemon.ingest import intake as intake_module
from microdiffusion.daemon.ingest.intake import MAX_SENDERS, Origin
from microdiffusion.daemon.ingest.protocol import REMEMBERED_RUNS, Answer, IngestProtocol
from microdiffusion.daemon.ingest.sink import RunState
from microdiffusion.errors import GeometryError
from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader

FRAME_BYTES = 16 * 24 * 2
A, B = b"peer a", b"peer b"


class Talk:
    """An `IngestProtocol` whose answers and questions are kept; time stands still unless moved."""

    def __init__(self, **options: Any) -> None:
        self.answers: list[tuple[bytes, Answer]] = []
        self.asked: list[RunHeader] = []
        self.now_s = 0.0
        self.protocol = IngestProtocol(
            answer=lambda origin, answer: self.answers.append((origin.peer, answer)),
            ask=lambda header, owner: self.asked.append(header),
            wake=lambda: None,
            **{"runs": 8, "silent_s": 60.0, "max_frame_bytes": 1 << 20, **options},
        )

    def say(self, message: wire.Control | list[bytes], peer: bytes = A) -> list[Answer]:
        """Say something and return what is answered to this peer, acknowledgements included."""
        before = len(self.answers)
        parts = message if isinstance(message, list) else wire.encode(message)
        self.protocol.received(Origin(peer), parts, self.now_s)
        self.protocol.acknowledge()
        return [answer for to, answer in self.answers[before:] if to == peer]

    def start(self, peer: bytes = A, first_seq: int = 0, **changes: Any) -> list[Answer]:
        header = make_header(**changes)
        return self.say(wire.RunStart(header=header, attempt=len(self.answers), first_seq=first_seq), peer)

    def open(self, peer: bytes = A, first_seq: int = 0, **changes: Any) -> RememberingSink:
        """Start a run and have it accepted."""
        sink = RememberingSink(make_header(**changes))
        self.start(peer, first_seq, **changes)
        self.protocol.begin(changes.get("run_id", RUN), sink, self.now_s)
        return sink

    def state(self) -> RunState:
        return self.protocol.runs[RUN].run.state


def test_a_sender_that_missed_the_answer_to_its_end_is_answered_and_opens_nothing() -> None:
    talk = Talk()
    talk.open()
    talk.say(frame_parts(0))
    for _ in range(3):
        assert talk.say(end(1)) == [wire.Ack(run=RUN, ended=True)]
        (answer,) = talk.start()
        assert isinstance(answer, wire.Ack)
    assert talk.say(frame_parts(0)) == [wire.Ack(run=RUN, received=(0,))]
    assert (len(talk.asked), talk.state()) == (1, "ended")


@pytest.mark.parametrize(
    "more", [pytest.param(frame_parts(7), id="a frame"), pytest.param(end(9), id="another last word")]
)
def test_a_run_that_ended_goes_on_where_its_sender_has_more(more: wire.Control | list[bytes]) -> None:
    talk = Talk()
    talk.open()
    talk.say(frame_parts(0))
    talk.say(end(1))
    talk.start()
    (answer,) = talk.say(more)
    assert answer.reason == "unknown-run"
    assert talk.start() == []
    assert len(talk.asked) == 2
    sink = RememberingSink()
    sink.received.add(0)  # as the run file says
    talk.protocol.begin(RUN, sink, 0.0)
    talk.say(frame_parts(0))
    talk.say(more)
    assert (sink.seqs, len(sink.ends)) in (([7], 0), ([], 1))


def test_a_new_sender_of_a_run_that_ended_makes_it_go_on_at_once() -> None:
    talk = Talk()
    talk.open()
    talk.say(end(0))
    assert talk.start(B, first_seq=100) == []
    assert len(talk.asked) == 2


def test_a_run_goes_on_where_its_sink_says_so() -> None:
    talk = Talk()
    sink = talk.open()
    talk.start(B, first_seq=100)
    close = sink.end
    sink.end = lambda message: message.first_seq >= 100 and close(message)
    assert talk.say(end(3)) == [wire.Ack(run=RUN, ended=True)]
    assert talk.state() == "open"
    assert talk.say(end(3, first_seq=100), B) == [wire.Ack(run=RUN, ended=True)]
    assert talk.state() == "ended"


def test_senders_of_one_run_are_answered_each_for_its_own_frames() -> None:
    talk = Talk()
    sink = talk.open(A)
    sink.holds = True
    talk.start(B, first_seq=100)
    assert sink.starts == [0, 100]
    for seq, peer in ((0, A), (100, B), (1, A), (101, B)):
        assert talk.say(frame_parts(seq), peer) == []
    (answer,) = talk.start(B, first_seq=100)
    assert answer.held == (100, 101)
    sink.waiting[0].recorded()
    sink.waiting[3].recorded()  # 101 waits for 100
    talk.protocol.acknowledge()
    sink.release()
    talk.protocol.acknowledge()
    confirmed = {
        peer: [seq for to, answer in talk.answers if to == peer for seq in getattr(answer, "received", ())]
        for peer in (A, B)
    }
    assert confirmed == {A: [0, 1], B: [100, 101]}


def test_who_said_start_last_is_the_sender() -> None:
    talk = Talk()
    sink = talk.open(A)
    sink.holds = True
    talk.say(frame_parts(0), A)
    talk.start(B)
    assert talk.say(frame_parts(1), A) == []  # still on its way from the old line, and taken
    assert talk.say(end(2), A) == []
    sink.release()
    before = len(talk.answers)
    talk.protocol.acknowledge()
    assert talk.answers[before:] == [(B, wire.Ack(run=RUN, received=(0, 1)))]


def test_a_line_that_comes_back_under_another_name_is_asked_to_start() -> None:
    talk = Talk()
    talk.open(A)
    for message in (frame_parts(0), wire.RunProgress(run=RUN, announced=1, dropped=0), end(1)):
        (answer,) = talk.say(message, B)
        assert answer.reason == "unknown-run"
    talk.start(B)
    assert talk.say(frame_parts(0), B) == [wire.Ack(run=RUN, received=(0,))]
    assert talk.say(end(1), B) == [wire.Ack(run=RUN, ended=True)]


def test_who_opens_runs_says_whether_another_header_is_of_the_same_run() -> None:
    talk = Talk()
    sink = talk.open()
    talk.say(frame_parts(0))
    assert talk.start(B, name="another") == []
    assert [header.name for header in talk.asked] == ["run", "another"]
    talk.protocol.begin(RUN, sink, 0.0)
    assert talk.say(frame_parts(0), B) == [wire.Ack(run=RUN, received=(0,))]
    talk.start(B, name="a third")
    talk.protocol.turn_away(RUN, GeometryError("no."), 0.0)
    assert talk.answers[-1][1].reason == "declined"


def test_a_run_that_is_resumed_in_the_same_daemon_does_not_acknowledge_what_is_not_recorded() -> None:
    talk = Talk()
    sink = talk.open()
    sink.holds = True
    talk.say(frame_parts(0))
    talk.protocol.close_run(RUN, "for a test.")
    talk.start()
    sink.state = RunState.OPEN
    talk.protocol.begin(RUN, sink, 0.0)
    assert talk.say(frame_parts(0)) == []
    sink.release()
    before = len(talk.answers)
    talk.protocol.acknowledge()
    assert talk.answers[before:] == [(A, wire.Ack(run=RUN, received=(0,)))]


def test_messages_of_runs_that_nobody_started_are_refused() -> None:
    talk = Talk()
    for message in (frame_parts(0), end(1), wire.RunProgress(run=RUN, announced=1, dropped=0)):
        (answer,) = talk.say(message)
        assert answer.reason == "unknown-run"
    assert talk.protocol.refused == {"unknown-run": 3}


def test_silence_is_counted_from_the_last_word_and_not_while_nobody_listened() -> None:
    talk = Talk(silent_s=60.0)
    sink = talk.open()
    talk.now_s = 50.0
    talk.say(wire.RunProgress(run=RUN, announced=0, dropped=0))
    talk.protocol.look_for_silence(110.0)
    assert sink.silences == []
    talk.protocol.look_for_silence(1110.0, stood_still_s=1000.0)
    assert sink.silences == []
    talk.protocol.look_for_silence(1111.0)
    assert len(sink.silences) == 1
    (answer,) = talk.say(wire.RunProgress(run=RUN, announced=0, dropped=0))
    assert answer.reason == "unknown-run"  # its sender comes back, and hears that it should begin anew
    assert talk.start() == []


def test_what_is_remembered_of_runs_and_senders_is_bounded() -> None:
    talk = Talk()
    for number in range(200):
        talk.open(run_id=f"{number:032x}")
        talk.protocol.close_run(f"{number:032x}", "for a test.")
    assert len(talk.protocol.runs) <= REMEMBERED_RUNS + 1
    sink = talk.open()
    for number in range(200):
        talk.now_s = float(number)
        talk.start(first_seq=10 * number)
        talk.say(frame_parts(10 * number))
    assert len(talk.protocol.runs[RUN].senders) <= MAX_SENDERS
    assert sink.seqs == list(range(0, 2000, 10))
    assert sum(intake.is_open for intake in talk.protocol.runs.values()) == 1


def test_repeating_a_frame_for_ever_costs_nothing() -> None:
    talk = Talk()
    sink = talk.open()
    talk.say(frame_parts(1))
    sink.holds = True
    talk.say(frame_parts(0))
    intake = talk.protocol.runs[RUN]
    last = make_frame(1)
    for seq in range(50_000):
        intake.repeat(Frame(replace(last.info, seq=seq), last.pixels))
        intake.repeat(last)
    assert len(intake._receipts) <= 2 * intake_module.MAX_PENDING + 1


@pytest.mark.parametrize(
    ("name", "value", "seqs", "reason"),
    [
        pytest.param("MAX_PENDING", 5, range(6), "window", id="frames that wait"),
        pytest.param("MAX_RANGES", 5, range(0, 12, 2), "frame", id="gaps between the numbers"),
    ],
)
def test_frames_beyond_any_measure_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int, seqs: range, reason: str
) -> None:
    monkeypatch.setattr(intake_module, name, value)
    talk = Talk()
    sink = talk.open()
    sink.holds = True
    answers = [talk.say(frame_parts(seq)) for seq in seqs]
    assert answers[:5] == [[]] * 5
    assert [answer.reason for answer in answers[5]] == [reason]
    assert len(sink.frames) == 5


def test_a_run_is_refused_with_the_sentence_of_who_turned_it_away() -> None:
    talk = Talk()
    talk.start()
    talk.protocol.turn_away(RUN, GeometryError("The slab is too long."), 0.0)
    ((_, answer),) = talk.answers
    assert (answer.reason, answer.text) == ("declined", "The slab is too long.")
    talk.start()
    assert len(talk.asked) == 2


class Conversation(RuleBasedStateMachine):
    """One run, two sockets, frames in any order and again, recorded in any order; every way to end."""

    @initialize(window=st.integers(1, 6))
    def begin(self, window: int) -> None:
        self.talk = Talk()
        self.window = window
        self.file: set[int] = set()  # what is recorded
        self.handed: list[int] = []  # to the sink of the present opening, in order
        self.confirmed: list[int] = []  # first confirmations since the present opening, in order
        self.sink = RememberingSink()
        self.read = 0

    def hear(self) -> None:
        """Look at what was answered since: nothing is confirmed that is not in the file."""
        for _, answer in self.talk.answers[self.read :]:
            if isinstance(answer, wire.Ack):
                assert set(answer.received) <= self.file
                assert set(answer.held) <= self.file | set(self.handed), "nothing is held that never came"
                for seq in answer.received:  # a repeated frame is confirmed again
                    if seq in self.handed and seq not in self.confirmed:
                        self.confirmed.append(seq)
        self.read = len(self.talk.answers)

    @property
    def intake(self) -> intake_module.RunIntake | None:
        return self.talk.protocol.runs.get(RUN)

    @rule(peer=st.sampled_from([A, B]))
    def somebody_starts(self, peer: bytes) -> None:
        self.talk.start(peer)
        self.hear()

    @precondition(lambda self: RUN in self.talk.protocol._starting)
    @rule(welcome=st.booleans())
    def the_daemon_decides(self, welcome: bool) -> None:
        if not welcome:
            self.talk.protocol.turn_away(RUN, GeometryError("no."), 0.0)
        else:
            self.sink = RememberingSink(holds=True, window_bytes=self.window * FRAME_BYTES)
            for seq in self.file:
                self.sink.received.add(seq)
            self.handed, self.confirmed = [], []
            self.talk.protocol.begin(RUN, self.sink, 0.0)
        self.hear()

    @rule(peer=st.sampled_from([A, B]), seq=st.integers(0, 12))
    def a_frame_comes(self, peer: bytes, seq: int) -> None:
        before = len(self.sink.frames)
        self.talk.say(frame_parts(seq), peer)
        if len(self.sink.frames) > before:
            assert seq not in self.file
            assert seq not in self.handed, "handed on once"
            self.handed.append(seq)
        self.hear()

    @precondition(lambda self: bool(self.sink.waiting))
    @rule(which=st.integers(0, 100))
    def a_frame_is_recorded(self, which: int) -> None:
        at = which % len(self.sink.waiting)
        receipt = self.sink.waiting[at]
        del self.sink.waiting[at]
        self.file.add(receipt.seq)
        receipt.recorded()
        self.talk.protocol.acknowledge()
        self.hear()

    @rule(peer=st.sampled_from([A, B]), announced=st.integers(0, 2))
    def the_sender_ends(self, peer: bytes, announced: int) -> None:
        self.talk.say(end(announced), peer)
        self.hear()

    @rule(state=st.sampled_from(["closed", "silent"]))
    def the_run_is_closed(self, state: str) -> None:
        if state == "closed":
            self.talk.protocol.close_run(RUN, "for a test.")
        else:
            self.talk.now_s += 1000.0
            self.talk.protocol.look_for_silence(self.talk.now_s)
        self.hear()

    @invariant()
    def confirmations_keep_the_order_of_arrival(self) -> None:
        assert self.confirmed == [seq for seq in self.handed if seq in self.confirmed]

    @invariant()
    def the_window_holds(self) -> None:
        if self.intake is not None:
            assert self.intake.stats.pending_bytes <= self.window * FRAME_BYTES
            unacknowledged = [each for each in self.intake._receipts.values() if each.nbytes]
            assert self.intake.stats.pending_bytes == len(unacknowledged) * FRAME_BYTES

    def teardown(self) -> None:
        if not hasattr(self, "talk") or self.intake is None:
            return
        while self.sink.waiting:
            self.a_frame_is_recorded(0)
        assert self.confirmed == self.handed, "in the end all that was handed on is confirmed"


TestConversation = Conversation.TestCase
