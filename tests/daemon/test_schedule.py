"""Which sweep is next: fair, bounded, none forgotten; and how quality goes before completeness."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.engine.effort import Ladder, efforts
from microdiffusion.daemon.engine.scheduler import BUSY, NOT_THERE, Dropped, Scheduler
from microdiffusion.daemon.engine.sinks import Lane, SweepJob
from microdiffusion.frames import StagePositions, Sweep

EMPTY = StagePositions.along_z([])


def a_sweep(number: int, nbytes: int = 400, channel: int = 0, position: int = 0) -> Sweep:
    pixels = np.zeros((1, 1, nbytes // 4), dtype=np.float32)
    return Sweep(number, channel, position, EMPTY, pixels, EMPTY, pixels[:, :, :0], received_s=float(number))


def job(number: int, run: str = "a", lane: Lane = "sweep", now_s: float = 0.0, **where: Any) -> SweepJob:
    return SweepJob.of(run, a_sweep(number, **where), lane=lane, now_s=now_s)


def scheduler(*runs: str, **changes: Any) -> Scheduler:
    made = Scheduler(**({"policy": "archive", "backlog": 2, "most_bytes": 1 << 30} | changes))
    made.set_serving(True, 0.0)
    for run in runs or ("a",):
        made.begin(run)
    return made


def drained(queue: Scheduler, now_s: float = 0.0) -> list[tuple[str, int]]:
    taken = []
    while (following := queue.next(now_s)) is not None:
        taken.append((following.lane, following.sweep_number))
    return taken


def test_lanes_go_before_one_another_and_the_newest_rolling_one_counts() -> None:
    queue = scheduler(backlog=1)
    for number in range(3):
        queue.add(job(number, lane="rolling"), 0.0)
        queue.add(job(number), 0.0)
    assert (queue.waiting, queue.backlog, queue.pending("a")) == (2, 2, 3)
    assert drained(queue) == [("sweep", 2), ("rolling", 2), ("later", 0), ("later", 1)]
    assert queue.waiting_bytes == 0


@pytest.mark.parametrize(
    ("policy", "dropped", "left"),
    [("archive", [], [3, 4, 0, 1, 2]), ("live", [0, 1, 2], [3, 4]), ("wait", [], [0, 1, 2, 3, 4])],
)
def test_what_becomes_of_too_many_is_the_policy(policy: Any, dropped: list[int], left: list[int]) -> None:
    queue = scheduler(policy=policy, rungs=(0,))
    went = [each for number in range(5) for each in queue.add(job(number), 0.0)]
    assert [each.job.sweep_number for each in went if not each.put_off] == dropped
    assert all(each.reason == BUSY and each.job.sweep is None for each in went)
    assert [number for _, number in drained(queue)] == left


@pytest.mark.parametrize("slow", [2, 10, 100])
def test_time_is_shared_and_not_turns(slow: int) -> None:
    queue = scheduler("small", "large")
    used: Counter[str] = Counter()
    for number in range(400):
        for run in ("small", "large"):
            queue.add(job(number, run, now_s=number), number)
        following = queue.next(number)
        assert following is not None
        cost = slow if following.run_id == "large" else 1
        queue.used(following, cost)
        used[following.run_id] += cost
    assert abs(used["small"] - used["large"]) <= slow


def test_sessions_of_a_run_share_its_time() -> None:
    queue = scheduler(backlog=3)
    taken: Counter[int] = Counter()
    for number in range(90):
        for channel in range(3):
            queue.add(job(number, channel=channel), number)
        following = queue.next(number)
        assert following is not None
        queue.used(following, 1.0 + following.channel)
        taken[following.channel] += 1
    times = [taken[channel] * (1.0 + channel) for channel in range(3)]
    assert max(times) - min(times) <= 3.0


def test_who_was_idle_saves_nothing_up() -> None:
    queue = scheduler("a", "b", backlog=100)
    for number in range(50):
        queue.add(job(number, "a"), 0.0)
        following = queue.next(0.0)
        assert following is not None
        queue.used(following, 1.0)
    for number in range(10):
        queue.add(job(number, "a"), 0.0)
        queue.add(job(number, "b"), 0.0)
    order = []
    for _ in range(10):
        following = queue.next(0.0)
        assert following is not None
        queue.used(following, 1.0)
        order.append(following.run_id)
    assert 4 <= order.count("b") <= 6


def test_the_bytes_of_all_are_bounded_and_the_largest_run_gives_way() -> None:
    queue = scheduler("small", "large", backlog=100, most_bytes=10_000)
    for number in range(10):
        queue.add(job(number, "small", nbytes=400, now_s=number), number)
    for number in range(10):
        queue.add(job(number, "large", nbytes=4000, now_s=10 + number), 10 + number)
        assert queue.waiting_bytes <= 10_000
    assert queue.put_off_of("small") == 0
    assert queue.put_off_of("large") == 9
    assert queue.pending("small") == 10


def test_one_sweep_may_always_wait_and_rolling_ones_go_first() -> None:
    queue = scheduler(most_bytes=1000)
    queue.add(job(0, lane="rolling", nbytes=800), 0.0)
    assert queue.add(job(0, nbytes=4000), 0.0) == []
    assert (queue.waiting, queue.waiting_bytes) == (1, 4000)


def test_a_run_that_has_no_room_is_passed_over() -> None:
    queue = scheduler("a", "b")
    queue.add(job(0, "a"), 0.0)
    queue.add(job(1, "b"), 0.0)
    following = queue.next(0.0, blocked={"a"})
    assert following is not None
    assert following.run_id == "b"
    assert queue.next(0.0, blocked={"a"}) is None


def test_what_was_not_done_is_the_next() -> None:
    queue = scheduler()
    queue.add(job(0), 0.0)
    queue.add(job(1), 0.0)
    first = queue.next(0.0)
    assert first is not None
    queue.again(first)
    assert queue.pending("a") == 2
    assert queue.next(0.0) is first


def test_frames_that_are_not_in_the_file_yet_are_asked_for_again() -> None:
    queue = scheduler()
    queue.put_off("a", 0, 0, 7, 1.5)
    now_s, given_up = 0.0, None
    for _ in range(9):
        following = queue.next(now_s)
        assert following is not None
        assert (following.sweep_number, following.received_s, following.sweep) == (7, 1.5, None)
        given_up = queue.not_there(following, now_s)
        assert given_up is None
        assert queue.next(now_s) is None
        now_s += 1.0
    following = queue.next(now_s)
    assert following is not None
    given_up = queue.not_there(following, now_s)
    assert given_up == Dropped(following, NOT_THERE)
    assert queue.pending("a") == 0


def test_a_run_that_ends_gives_back_all_of_it() -> None:
    queue = scheduler("a", "b", backlog=1)
    for number in range(3):
        queue.add(job(number, "a"), 0.0)
        queue.add(job(number, "b"), 0.0)
    assert sorted(each.sweep_number for each in queue.end("a")) == [0, 1, 2]
    assert (queue.pending("a"), queue.pending("b")) == (0, 3)
    assert queue.waiting_bytes == 400
    with pytest.raises(KeyError):
        queue.add(job(4, "a"), 0.0)


def test_a_burst_of_100_000_that_are_put_off_takes_some_megabytes() -> None:
    queue = scheduler()
    for number in range(100_000):
        queue.add(job(number, now_s=float(number)), float(number))
    session = queue._runs["a"].sessions[0, 0]
    columns = (session.put_off, session.put_off_received_s)
    size = sum(sys.getsizeof(column) + sum(sys.getsizeof(each) for each in column) for column in columns)
    assert queue.backlog == 99_998
    assert size < 8e6
    assert queue.waiting_bytes == 800


@pytest.mark.parametrize("policy", ["archive", "wait"])
def test_only_the_live_policy_spends_less_effort(policy: Any) -> None:
    queue = scheduler(policy=policy)
    for number in range(30):
        queue.add(job(number, now_s=number), number)
        if number % 5 == 4:
            following = queue.next(number)
            assert following is not None
            assert following.effort == 0


def simulate(costs: dict[int, float], sweeps: int, interval_s: float = 1.0) -> tuple[list[int], list[int]]:
    """Return the efforts of the sweeps that an engine of such costs does, and the numbers that it skips."""
    queue = scheduler(policy="live")
    done, skipped, free_s = [], [], 0.0
    for number in range(sweeps):
        now_s = number * interval_s
        while free_s <= now_s and (following := queue.next(max(free_s, now_s - interval_s))) is not None:
            begins_s = max(free_s, following.queued_s)
            free_s = begins_s + costs[following.effort]
            done.append(following.effort)
        skipped += [each.job.sweep_number for each in queue.add(job(number, now_s=now_s), now_s)]
    return done, skipped


def test_live_an_engine_that_keeps_up_gives_full_effort() -> None:
    done, skipped = simulate({0: 0.8, 1: 0.4, 2: 0.1}, 200)
    assert set(done) == {0}
    assert skipped == []


def test_live_quality_goes_before_completeness() -> None:
    done, skipped = simulate({0: 1.5, 1: 0.7, 2: 0.1}, 300)
    assert done[0] == 0
    assert skipped == []
    assert sum(effort == 1 for effort in done) > 200
    # And only when nothing less is left, sweeps are skipped.
    done, skipped = simulate({0: 9.0, 1: 5.0, 2: 2.0}, 300)
    assert sum(effort == 2 for effort in done) > 0.9 * len(done)
    assert 100 < len(skipped) < 200


def test_live_a_load_between_two_rungs_does_not_flicker() -> None:
    done, _ = simulate({0: 1.2, 1: 0.2, 2: 0.1}, 2000)
    changes = sum(one != other for one, other in pairwise(done))
    assert changes < 60
    assert sum(effort == 1 for effort in done) > 1600


def test_live_full_effort_comes_back_after_a_burst() -> None:
    ladder = Ladder()
    now_s = 0.0
    for _ in range(10):
        ladder.came(now_s)
        ladder.began(now_s + 3.0, now_s)
        now_s += 1.0
    assert ladder.effort == 2
    for _ in range(40):
        ladder.came(now_s)
        ladder.began(now_s + 0.01, now_s)
        now_s += 1.0
    assert ladder.effort == 0


def test_waiting_for_the_engine_to_open_is_no_reason_for_less_effort() -> None:
    queue = Scheduler(policy="live", backlog=5, most_bytes=1 << 30)
    queue.begin("a")
    for number in range(5):
        queue.add(job(number, now_s=number), number)
    queue.set_serving(True, 20.0)
    for _ in range(5):
        following = queue.next(20.1)
        assert following is not None
        assert following.effort == 0


@pytest.mark.parametrize(
    ("changes", "rungs"),
    [
        ({}, (0, 2)),
        ({"steps": 2}, (0, 1, 2)),
        ({"guidance": 1.0}, (0, 1, 2)),
        ({"method": "inr"}, (0,)),
        ({"method": "linear", "steps": 3}, (0,)),
    ],
    ids=str,
)
def test_rungs_are_those_that_cost_less(changes: dict[str, Any], rungs: tuple[int, ...]) -> None:
    assert efforts(EngineConfig(**changes)) == rungs


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.0, 5.0), st.booleans()), min_size=1, max_size=200)
)
def test_a_ladder_moves_one_rung_at_a_time(steps: list[tuple[float, float, bool]]) -> None:
    ladder, now_s = Ladder(), 0.0
    for gap_s, waited_s, overflow in steps:
        now_s += gap_s
        ladder.came(now_s)
        before = ladder.effort
        moved = ladder.up(now_s) if overflow else ladder.began(now_s + waited_s, now_s)
        assert abs(ladder.effort - before) == int(moved)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens: every sweep ends once, bytes are bounded and add up, order in a session is kept."""

    @initialize(
        policy=st.sampled_from(["archive", "live", "wait"]),
        backlog=st.integers(1, 4),
        most_bytes=st.integers(0, 5000),
    )
    def start(self, policy: Any, backlog: int, most_bytes: int) -> None:
        self.queue = Scheduler(policy=policy, backlog=backlog, most_bytes=most_bytes)
        self.queue.begin("a")
        self.queue.begin("b")
        self.most_bytes = most_bytes
        self.wait = policy == "wait"
        self.now_s = 0.0
        self.number = 0
        self.submitted: set[tuple[str, int]] = set()
        self.ended: list[tuple[str, int]] = []
        self.running: SweepJob | None = None

    @rule(
        run=st.sampled_from("ab"),
        channel=st.integers(0, 1),
        size=st.sampled_from([4, 400, 2000]),
        lane=st.sampled_from(["sweep", "sweep", "rolling"]),
    )
    def add(self, run: str, channel: int, size: int, lane: Any) -> None:
        self.number += 1
        self.now_s += 0.1
        if lane == "sweep":
            self.submitted.add((run, self.number))
        new = job(self.number, run, lane, self.now_s, channel=channel, nbytes=size)
        for each in self.queue.add(new, self.now_s):
            assert each.job is not new
            if not each.put_off:
                self.ended.append((each.job.run_id, each.job.sweep_number))

    @rule(blocked=st.sampled_from([(), ("a",), ("a", "b")]))
    def take(self, blocked: tuple[str, ...]) -> None:
        if self.running is None:
            self.running = self.queue.next(self.now_s, blocked)
            assert self.running is None or self.running.run_id not in blocked

    @rule(seconds=st.floats(0.0, 2.0), dies=st.booleans())
    def finish(self, seconds: float, dies: bool) -> None:
        self.now_s += seconds
        done, self.running = self.running, None
        if done is None:
            return
        if dies:
            self.queue.again(done)
            return
        self.queue.used(done, seconds)
        if done.lane != "rolling":
            self.ended.append((done.run_id, done.sweep_number))

    @rule(serving=st.booleans())
    def serve(self, serving: bool) -> None:
        self.queue.set_serving(serving, self.now_s)

    @rule(policy=st.sampled_from(["archive", "live", "wait"]))
    def change(self, policy: Any) -> None:
        self.queue.policy = policy
        self.wait = True  # what piled up meanwhile stays until something is added

    @rule(run=st.sampled_from("ab"))
    def close(self, run: str) -> None:
        if self.running is not None and self.running.run_id == run:
            self.ended += [(run, self.running.sweep_number)] if self.running.lane != "rolling" else []
            self.running = None
        self.ended += [(run, each.sweep_number) for each in self.queue.end(run) if each.lane != "rolling"]
        assert self.queue.pending(run) == 0
        self.queue.begin(run)

    @invariant()
    def every_sweep_is_in_one_place(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.ended) == len(set(self.ended))
        for run in "ab":
            submitted = sum(each[0] == run for each in self.submitted)
            ended = sum(each[0] == run for each in self.ended)
            hand = self.running is not None and self.running.run_id == run and self.running.lane != "rolling"
            assert submitted == ended + self.queue.pending(run) + hand

    @invariant()
    def bytes_are_bounded_and_add_up(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting = [*self.queue._again]
        for run in self.queue._runs.values():
            for session in run.sessions.values():
                waiting += [*session.sweeps, *([session.rolling] if session.rolling else [])]
                numbers = [each.sweep_number for each in session.sweeps]
                assert numbers == sorted(numbers)
        assert self.queue.waiting_bytes == sum(each.nbytes for each in waiting)
        assert self.queue.waiting == len(waiting)
        if not self.wait and not self.queue._again:
            largest = max((each.nbytes for each in waiting), default=0)
            assert self.queue.waiting_bytes <= max(self.most_bytes, largest)


TestAnyOrder = AnyOrder.TestCase
