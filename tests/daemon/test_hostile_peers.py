"""A peer that knows the protocol and the run, but not its secret, changes nothing of it.

Without sockets: thousands of seeded conversations beside a good sender, whose run has to end as it does
without the other. Over sockets: the file and the answers, with and without keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from support.ingest_support import Peer, RememberingSink, frame_parts
from support.wire_support import FREE_PORT, RUN, make_frame, make_header, put_all, sending, wait_until

from microdiffusion import open_run, wire
from microdiffusion.config.models import Config
from microdiffusion.daemon.engine import EngineProcess
from microdiffusion.daemon.ingest import Ingest, NotYet, owner_of
from microdiffusion.daemon.ingest.intake import Origin
from microdiffusion.daemon.ingest.protocol import Answer, IngestProtocol
from microdiffusion.daemon.runs import OpenRuns
from microdiffusion.daemon.status import StatusBoard
from microdiffusion.errors import ConfigError
from microdiffusion.runfile import verify_run
from microdiffusion.sender import deliver
from microdiffusion.wire import security as keys

PROOF = "the-good-one"
FRAMES = 8
GOOD, GOOD_AGAIN = b"good", b"good again"
HEADER = make_header(sweeps=2)

good_frame = lru_cache(64)(lambda seq: frame_parts(seq, header=HEADER))


@lru_cache(256)
def bad_frame(seq: int, shade: int, **places: int) -> list[bytes]:
    """Return a frame of the run with other pixels."""
    frame = make_frame(1000 + shade, HEADER)
    info = make_frame(seq % 20, HEADER).info
    values = {name: getattr(info, name) for name in type(info).__slots__} | {"seq": seq} | places
    return [bytes(part) for part in wire.encode_frame(RUN, type(frame)(type(info)(**values), frame.pixels))]


class OwnedSink(RememberingSink):
    """A run that belongs to its sender."""

    def __init__(self, owner: str) -> None:
        super().__init__(HEADER, holds=True)
        self.owners = {owner} if owner else ()
        self.alarms: list[str] = []

    def alarm(self, text: str) -> None:
        self.alarms.append(text)


@dataclass
class Outcome:
    """What became of the run, as far as its file and its sender can tell."""

    frames: list[tuple[Any, bytes]] = field(default_factory=list)
    books: list[Any] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    state: str = ""


@dataclass
class Stage:
    """A protocol with a good sender, and others; `intrude` says something between its messages."""

    key: str
    intrude: Callable[[Stage], None]
    sink: OwnedSink = field(init=False)
    to_others: list[Answer] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.sink = OwnedSink(owner_of(PROOF, self.key))
        self.protocol = IngestProtocol(
            answer=self._answer,
            ask=self._ask,
            wake=lambda: None,
            runs=8,
            silent_s=60.0,
            max_frame_bytes=1 << 20,
        )
        self._asked: list[str] = []

    def _answer(self, origin: Origin, answer: Answer) -> None:
        (self.outcome.answers if origin.peer in (GOOD, GOOD_AGAIN) else self.to_others).append(answer)

    def _ask(self, header: Any, owner: str) -> None:
        self._asked.append(owner)

    def settle_starts(self) -> None:
        """Answer whoever wants to begin the run, as `OpenRuns` does."""
        while self._asked:
            if self._asked.pop() in self.sink.owners:
                self.sink.state = type(self.sink.state).OPEN
                self.protocol.begin(RUN, self.sink, 0.0)
            else:
                self.protocol.turn_away(RUN, NotYet(), 0.0)

    def good(self, message: wire.Control | list[bytes], peer: bytes = GOOD) -> None:
        parts = message if isinstance(message, list) else wire.encode(message)
        self.protocol.received(Origin(peer, self.key), parts, 0.0)
        self.settle_starts()
        self.intrude(self)

    def play(self) -> Outcome:
        """Have the good sender send its run, over a line that breaks once; return what became of it."""
        self.good(wire.RunStart(header=HEADER, secret=PROOF))
        peer = GOOD
        for seq in range(FRAMES):
            self.good(good_frame(seq), peer)
            if seq == FRAMES // 2:
                peer = GOOD_AGAIN
                self.good(wire.RunStart(header=HEADER, secret=PROOF, attempt=1), peer)
                self.good(good_frame(seq), peer)  # once more: a duplicate
            if seq % 3 == 2:
                waiting, self.sink.waiting = self.sink.waiting, type(self.sink.waiting)()
                for receipt in waiting:
                    receipt.recorded()
                self.protocol.acknowledge()
                self.intrude(self)
            self.good(wire.RunProgress(run=RUN, announced=seq + 1, dropped=0), peer)
        self.sink.release()
        self.protocol.acknowledge()
        self.intrude(self)
        self.good(wire.RunEnd(run=RUN, announced=FRAMES, dropped=0), peer)
        self.intrude(self)
        stats = self.protocol.runs[RUN].stats
        self.outcome.frames = [(frame.info, frame.pixels.tobytes()) for frame in self.sink.frames]
        self.outcome.books = [self.sink.starts, self.sink.reports, self.sink.ends, self.sink.silences]
        self.outcome.books += [stats.duplicates, dict(stats.refused), stats.frames, stats.pending_bytes]
        self.outcome.state = str(self.sink.state)
        return self.outcome


def hostile(seed: int, key: str) -> Callable[[Stage], None]:
    """Return an intruder that says valid messages about the run, drawn from a seed."""
    dice = Random(seed)  # noqa: S311
    names = [b"bad", b"worse"]

    def number() -> int:
        return dice.choice([0, 1, FRAMES - 1, FRAMES, 12, 19, 1 << 32])

    def say(stage: Stage) -> None:
        for _ in range(dice.randrange(4)):
            origin = Origin(dice.choice(names), key)
            if key != stage.key and dice.random() < 0.3:  # also under the other's name, with its own key
                origin = Origin(dice.choice([GOOD, GOOD_AGAIN]), key)
            message: wire.Control | list[bytes]
            match dice.randrange(6):
                case 0 | 1:
                    message = bad_frame(number(), dice.randrange(3))
                case 2:
                    message = good_frame(dice.randrange(FRAMES))
                case 3:
                    header = dice.choice([HEADER, HEADER, make_header(name="another")])
                    guess = dice.choice(["", "a-guess", owner_of(PROOF)])
                    first = dice.choice([0, 0, 3, 1 << 32])
                    message = wire.RunStart(header=header, first_seq=first, attempt=number(), secret=guess)
                case 4:
                    message = wire.RunProgress(
                        run=RUN, first_seq=dice.choice([0, 3]), announced=99, dropped=number()
                    )
                case _:
                    message = wire.RunEnd(
                        run=RUN, first_seq=dice.choice([0, 3]), announced=99, dropped=9, reason="mine"
                    )
            parts = message if isinstance(message, list) else wire.encode(message)
            before = len(stage.outcome.answers)
            stage.protocol.received(origin, parts, 0.0)
            if origin.peer in (GOOD, GOOD_AGAIN):  # who spoke under that name hears that he was refused
                stage.to_others += stage.outcome.answers[before:]
                del stage.outcome.answers[before:]
            stage.settle_starts()

    return say


def quiet(stage: Stage) -> None:
    """Say nothing."""


def check(seeds: range) -> None:
    for key, other in (("", ""), ("its key", "another key"), ("a key", "a key")):
        alone = Stage(key, quiet).play()
        assert alone.state == "ended"
        assert len(alone.frames) == FRAMES
        for seed in seeds:
            stage = Stage(key, hostile(seed, other))
            assert stage.play() == alone, (seed, key, other)
            assert all(isinstance(answer, wire.Refuse) for answer in stage.to_others), (seed, key, other)
            assert len(stage.sink.alarms) <= 1


def test_a_hostile_peer_changes_nothing_of_a_run() -> None:
    check(range(70))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hostile_peer_changes_nothing_of_a_run_in_ten_thousand_sequences() -> None:
    check(range(70, 3_404))


def test_strangers_who_ask_for_a_run_all_the_time_keep_nobody_from_it() -> None:
    stage = Stage("", quiet)
    for number in range(9):  # the first one is asked about when the others come
        origin = Origin(GOOD if number == 5 else b"bad %d" % (number % 4))
        secret = PROOF if number == 5 else f"guess-{number}"
        stage.protocol.received(origin, wire.encode(wire.RunStart(header=HEADER, secret=secret)), 0.0)
    stage.settle_starts()
    (answer,) = stage.outcome.answers
    assert isinstance(answer, wire.Ack)
    assert stage.sink.state == "open"


def test_what_strangers_say_is_counted_apart() -> None:
    said = hostile(3, "")
    stage = Stage("", said)
    stage.play()
    assert stage.protocol.runs[RUN].stats.strangers == len(stage.to_others) > 0


class Place:
    """A daemon's ingest and runs, with an engine that was not started; on this machine, perhaps with keys."""

    def __init__(self, folder: Path, security: Any = None) -> None:
        recorder = {"output": folder, "time_points": 2}
        config = Config.model_validate({"recorder": recorder, "engine": {"method": "linear"}})
        self.folder = folder
        self.board = StatusBoard()
        self.ingest = Ingest(FREE_PORT, security=security)
        self.runs = OpenRuns(
            config, EngineProcess(config.engine, waiting_bytes=1 << 30), self.board, self.ingest
        )
        self.ingest.start(self.runs.on_start)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:
        self.ingest.stop()
        self.runs.close_all(drain_s=0.0, hurry=lambda: True, show=lambda: None)
        self.ingest.raise_if_failed()

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self.board.snapshot().notes]


def both_keys(folder: Path) -> tuple[Any, Any, Any]:
    """Return the keys of a daemon and of two machines that it trusts."""
    for name in ("daemon", "good", "bad"):
        keys.new_keys(folder / name)
    for name in ("good", "bad"):
        keys.trust(folder / "daemon", name, keys.public_key(folder / name))
    daemon = keys.server_keys(folder / "daemon")
    good, bad = (keys.client_keys(folder / name, daemon.public) for name in ("good", "bad"))
    return daemon, good, bad


@pytest.mark.parametrize("keyed", [False, True], ids=["no keys", "keys"])
def test_over_sockets_the_file_holds_what_its_sender_sent(tmp_path: Path, keyed: bool) -> None:
    daemon, good, bad = both_keys(tmp_path / "keys") if keyed else (None, None, None)
    dice = Random(5)  # noqa: S311
    with (
        Place(tmp_path, daemon) as place,
        Peer(place.ingest.address, keys=bad) as intruder,
        sending(place.ingest.address, header=HEADER, security=good) as sender,
    ):
        wait_until(lambda: sender.stats.connected)
        for seq in range(20):
            for _ in range(5):
                intruder.say(bad_frame(dice.randrange(20), dice.randrange(3)))
            intruder.say(wire.RunStart(header=HEADER, secret=dice.choice(["", "a-guess"])))
            intruder.say(wire.RunProgress(run=RUN, announced=999, dropped=900))
            intruder.say(wire.RunEnd(run=RUN, announced=999, dropped=900))
            put_all(sender, range(seq, seq + 1))
        stats = sender.finish()
        assert (stats.acknowledged, stats.refused, stats.ended) == (20, 0, True)
        heard = [intruder.hear() for _ in range(8 * 20)]
        assert {answer.reason for answer in heard} == {"unknown-run", "declined"}
        assert place.ingest.run_stats(RUN).strangers == len(heard)
        assert sum("without its secret" in note for note in place.notes) == 1
        assert not any(dict(place.ingest.run_stats(RUN).refused).values())
    (path,) = tmp_path.glob("*.h5")
    assert verify_run(path).faults == []
    with open_run(path) as run:
        for seq in range(20):
            np.testing.assert_array_equal(
                run.projections.filled(0)[seq // 10, seq % 10], make_frame(seq).pixels
            )
        ledger = run.ledger
        assert (ledger.announced, ledger.received, ledger.refused, ledger.duplicates) == (20, 20, 0, 0)
        assert any(f"{len(heard)} messages refused of connections" in event.text for event in run.events)


def test_a_run_is_resumed_with_its_secret_alone_also_by_another_daemon(tmp_path: Path) -> None:
    with Place(tmp_path) as place, sending(place.ingest.address, header=HEADER) as sender:
        put_all(sender, range(5))
        wait_until(lambda: sender.stats.acknowledged == 5)
        secret = sender.secret
    (path,) = tmp_path.glob("*.h5")
    assert secret.encode() not in path.read_bytes(), "the file holds a hash"
    with Place(tmp_path) as place, Peer(place.ingest.address) as peer:
        for guess in ("", "a-guess", owner_of(secret)):
            peer.say(wire.RunStart(header=HEADER, secret=guess))
            refusal = peer.hear()
            assert (refusal.reason, "belongs to another sender" in refusal.text) == ("declined", True)
        assert len(place.runs) == 0, "the file stays as it was"
        with sending(place.ingest.address, header=HEADER, secret=secret) as sender:
            put_all(sender, range(5, 20))
            assert sender.finish().acknowledged == 15
    with open_run(path) as run:
        assert run.ledger.received == 20


@pytest.mark.parametrize("keyed", [False, True], ids=["no keys", "keys"])
def test_a_sender_that_knows_no_secret_yet_is_bound_by_its_connection_and_key(
    tmp_path: Path, keyed: bool
) -> None:
    daemon, good, bad = both_keys(tmp_path / "keys") if keyed else (None, None, None)
    with (
        Place(tmp_path, daemon) as place,
        Peer(place.ingest.address, keys=good) as old,
        Peer(place.ingest.address, keys=bad) as intruder,
    ):
        old.start(header=HEADER)
        intruder.say(bad_frame(0, 0))
        assert intruder.hear().reason == "unknown-run"
        old.say(good_frame(0))
        assert old.confirmed(1) == [0]
        with Peer(place.ingest.address, keys=good) as back:  # its line broke
            assert back.start(attempt=1, header=HEADER).attempt == 1
            back.say(good_frame(1))
            assert back.confirmed(1) == [1]
        answer = intruder.start(header=HEADER)
        if keyed:  # without keys nobody can tell the two
            assert answer.reason == "declined"


def test_the_same_number_with_other_pixels_is_an_alarm_and_no_duplicate(tmp_path: Path) -> None:
    with Place(tmp_path) as place, Peer(place.ingest.address) as peer:
        peer.start(header=HEADER)
        peer.say(good_frame(0))
        assert peer.confirmed(1) == [0]
        peer.say(good_frame(0))
        assert peer.confirmed(1) == [0]
        for wrong, text in (
            (bad_frame(0, 0), "came before with another place or other pixels"),
            (bad_frame(0, 0, index=1), "came before with another place"),
            (bad_frame(0, 0, sweep=1), "came before with another place"),
            (bad_frame(7, 0, index=0), "has frame 0: each place takes one frame"),
            (bad_frame(7, 0, index=0), "has frame 0: each place takes one frame"),
        ):
            peer.say(wrong)
            refusal = peer.hear()
            assert (refusal.reason, text in refusal.text) == ("frame", True), refusal
        (run,) = place.runs.unclosed
        wait_until(lambda: sum("came before" in note for note in place.notes) == 3)
        run.tick(1e9, shown=False)
        stats = place.ingest.run_stats(RUN)
        assert (stats.duplicates, dict(stats.refused)) == (1, {"frame": 5})
    (path,) = tmp_path.glob("*.h5")
    with open_run(path) as run:
        np.testing.assert_array_equal(run.projections.filled(0)[0, 0], make_frame(0).pixels)
        assert (run.ledger.duplicates, run.ledger.refused, run.ledger.unplaced) == (1, 5, 1)
        assert sum(event.kind == "peer" for event in run.events) == 5


def test_a_wrong_frame_that_comes_while_the_right_one_waits_is_refused_at_once() -> None:
    stage = Stage("", quiet)
    stage.good(wire.RunStart(header=HEADER, secret=PROOF))
    stage.good(good_frame(0))
    stage.good(bad_frame(0, 0))
    assert stage.outcome.answers[-1].reason == "frame"
    assert len(stage.sink.alarms) == 1
    stage.good(good_frame(0))
    stage.sink.release()
    stage.protocol.acknowledge()
    assert stage.outcome.answers[-1] == wire.Ack(run=RUN, received=(0,))
    assert stage.protocol.runs[RUN].stats.duplicates == 1


def test_a_journal_keeps_the_secret_that_delivers_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Place(tmp_path) as place:
        address = place.ingest.address
        with sending(address, header=HEADER, journal=folder, journal_bytes=1 << 30) as sender:
            put_all(sender, range(5))
            wait_until(lambda: sender.stats.acknowledged == 5)
            place.ingest.stop()
            put_all(sender, range(5, 20))
            assert sender.finish(timeout_s=0).unsent == 15
        (start,) = folder.glob("*/start")
        assert sender.secret in start.read_text()
        assert os.name == "nt" or start.stat().st_mode & 0o077 == 0, "nobody else may read it"
        assert sender.secret not in place.board.snapshot().model_dump_json()
    right = start.read_text()
    for text, done in ((right.replace(sender.secret, "a-guess"), False), (right, True)):
        start.write_text(text)
        with Place(tmp_path) as place:
            (delivered,) = deliver(folder, place.ingest.address)
            assert delivered.done == done
            assert ("belongs to another sender" in delivered.reason) != done
    (path,) = tmp_path.glob("*.h5")
    with open_run(path) as run:
        assert (run.ledger.announced, run.ledger.received) == (20, 20)


def test_a_daemon_that_resumes_a_run_lets_its_own_driver_in_besides(tmp_path: Path) -> None:
    first, own = "the-first", "the-daemon-s"
    with Place(tmp_path) as place:
        place.runs.on_start(HEADER, owner_of(first))
    (path,) = tmp_path.glob("*.h5")
    with Place(tmp_path) as place:
        place.runs.resume(path, owner_of(own))
        for secret in (first, own):
            place.runs.on_start(HEADER, owner_of(secret))
    with Place(tmp_path) as place:  # which remembers both
        for secret in (own, first):
            run = place.runs.on_start(HEADER, owner_of(secret))
        assert set(run.owners) == {owner_of(first), owner_of(own)}
        with pytest.raises(ConfigError, match="belongs to another sender"):
            place.runs.on_start(HEADER, owner_of("a-guess"))


def test_a_run_file_that_names_no_owner_is_resumed_by_whoever_asks(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.runs.on_start(HEADER)
    (path,) = tmp_path.glob("*.h5")
    with Place(tmp_path) as place:
        place.runs.resume(path, owner_of("the-daemon-s"))
        for secret in ("", "one", "another"):
            place.runs.on_start(HEADER, owner_of(secret))
