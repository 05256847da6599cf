"""Alarms: each comes when it should, says what helps, and goes when it is over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from microdiffusion.daemon.monitoring.alarms import STAYS_S, Alarms
from microdiffusion.daemon.runs.exposure import saturated_share
from microdiffusion.daemon.status.models import (
    Alarm,
    FrameTotals,
    Quality,
    QueueDepth,
    RunSummary,
    StatusSnapshot,
    VolumeCounts,
)
from microdiffusion.engines.trust.quality_watch import TEXTS
from microdiffusion.metrics import saturation_level


def at(second: float, run: dict[str, object] | None = None, **status: object) -> StatusSnapshot:
    runs = () if run is None else (RunSummary(**{"id": "1", "name": "run", "state": "go", **run}),)
    return StatusSnapshot(state="running", elapsed_s=second, runs=runs, **status)


def seconds(*spans: tuple[int, int, dict[str, object]]) -> Iterator[StatusSnapshot]:
    for start, stop, what in spans:
        for second in range(start, stop):
            yield at(second, **what)


def last(alarms: Alarms, snapshots: Iterator[StatusSnapshot]) -> tuple[Alarm, ...]:
    found: tuple[Alarm, ...] = ()
    for snapshot in snapshots:
        found = alarms.look(snapshot)
    return found


CALM: dict[str, object] = {"run": {"silent_s": 0.1}}
CASES = {
    "disk-full": ({"run": {"waits_for": "the disk is full"}}, "error", "accepts no data"),
    "dropped": ({"frames_total": FrameTotals(dropped=7)}, "error", "7 frames dropped"),
    "journal": ({"run": {"journal_bytes": 3_000_000_000}}, "warning", "3.0 GB waiting"),
    "silent": ({"run": {"silent_s": 34.0}}, "error", "no frame for 0:00:34"),
    "disk-low": ({"disk_free_bytes": 1_000_000_000}, "error", "1.0 GB free"),
    "refused": ({"frames_total": FrameTotals(refused=2)}, "warning", "2 messages refused"),
    "lost": ({"volumes": VolumeCounts(lost=1)}, "error", "1 sweep lost"),
    "skipped": ({"volumes": VolumeCounts(skipped=1)}, "warning", "1 sweep skipped"),
    "saturated": ({"run": {"saturated": 0.04}}, "warning", "4 % of the camera's pixels"),
    "behind": ({"run": {"waiting": 14}}, "warning", "14 sweeps waiting"),
    "disk-slow": (
        {"queues": {"recorder": QueueDepth(bytes=95, limit=100)}},
        "warning",
        "waiting for the disk",
    ),
    "queue-engine": ({"queues": {"engine": QueueDepth(bytes=95, limit=100)}}, "warning", "is full"),
    "held-out": (
        {"history": {"held_out_error": (1.0,) * 8 + (1.9,) * 3}},
        "warning",
        "1.90 × noise, was 1.00 (1 to 3 is usual)",
    ),
    "clock": ({"clock_step_s": 3600.0}, "warning", "set by +3600 s"),
    **{
        kind: ({"quality": Quality(alarms={kind: sentence})}, "warning", sentence)
        for kind, sentence in TEXTS.items()
    },
}


@pytest.mark.parametrize("kind", CASES)
def test_an_alarm_comes_says_what_helps_and_goes(kind: str) -> None:
    trouble, level, text = CASES[kind]
    alarms = Alarms(journal_gb=20.0)
    calm = {"disk_free_bytes": 10**12} if "disk_free_bytes" in trouble else {}
    assert last(alarms, seconds((0, 5, {**CALM, **calm}))) == ()
    stand = last(alarms, seconds((5, 30, trouble)))
    assert [(alarm.kind, alarm.level) for alarm in stand] == [(kind, level)]
    (alarm,) = stand
    assert text in alarm.text
    assert 20 < len(alarm.fix) <= 66, "one line of 80 columns, after the time"
    assert alarm.since_s in (5, 15), "15: what has to last for ten seconds"
    # Counters keep their values: what was lost is no alarm for ever.
    after = {name: value for name, value in trouble.items() if name in ("frames_total", "volumes")}
    assert last(alarms, seconds((30, 30 + 140, {**CALM, **calm, **after}))) == ()


def test_the_most_urgent_comes_first_and_since_when_is_kept() -> None:
    alarms = Alarms()
    alarms.look(at(0))
    alarms.look(at(1, clock_step_s=10.0))
    alarms.look(at(2, clock_step_s=10.0, frames_total=FrameTotals(dropped=1)))
    stand = alarms.look(at(3, {"waits_for": "full"}, clock_step_s=10.0, frames_total=FrameTotals(dropped=1)))
    assert [(alarm.kind, alarm.since_s) for alarm in stand] == [
        ("disk-full", 3),
        ("dropped", 2),
        ("clock", 1),
    ]


def test_an_alarm_that_is_over_stays_a_while_so_that_nothing_flickers() -> None:
    alarms = Alarms()
    alarms.look(at(0, {"saturated": 0.1}))
    assert alarms.look(at(STAYS_S - 1, {"saturated": 0.0}))
    assert not alarms.look(at(STAYS_S + 1, {"saturated": 0.0}))


def test_what_was_there_before_the_daemon_is_no_news() -> None:
    assert Alarms().look(at(0, frames_total=FrameTotals(dropped=7), volumes=VolumeCounts(lost=3))) == ()


def test_a_run_between_two_sweeps_is_not_silent() -> None:
    alarms = Alarms()
    found: set[str] = set()
    for second in range(400):  # a sweep each minute
        since = second % 60
        snapshot = at(second, {"frames": 9 * (second // 60 + 1), "silent_s": float(since)})
        found |= {f"{alarm.kind} {second // 60}" for alarm in alarms.look(snapshot)}
    assert found <= {"silent 0", "silent 1"}, "once it has seen how long a gap is, it waits"
    own = Alarms(interval_s=60.0)
    assert not any(own.look(at(s, {"frames": 9, "silent_s": float(s)})) for s in range(200))
    assert own.look(at(300, {"frames": 9, "silent_s": 300.0}))


def test_a_paused_run_is_not_silent() -> None:
    assert not Alarms().look(at(100, {"state": "pause", "silent_s": 90.0}))


def test_a_disk_that_fills_is_told_before_it_is_full() -> None:
    alarms, found = Alarms(), {}
    for second in range(130):
        found[second] = alarms.look(at(second, disk_free_bytes=200_000_000_000 - second * 100_000_000))
    assert [second for second, stand in found.items() if stand] == list(range(120, 130))
    (alarm,) = found[129]
    assert (alarm.kind, alarm.level) == ("disk-low", "warning")
    assert alarm.text == "187 GB free on the disk, full in about 31 min", "at 100 MB/s"


@pytest.mark.parametrize("taken", [5, 100, 170])
def test_room_that_is_taken_at_once_does_not_fill_a_disk(taken: int) -> None:
    """As a run's file takes it, and what another program copies."""
    alarms = Alarms()
    for second in range(400):
        free = 64_000_000_000 - 3_000_000_000 * (second >= taken)
        assert alarms.look(at(second, disk_free_bytes=free)) == ()


def test_a_computer_that_slept_has_seen_too_little_of_its_disk() -> None:
    alarms = Alarms()
    for second in [*range(5), 1000, 1001, 1002]:
        assert alarms.look(at(second, disk_free_bytes=64_000_000_000 - 30_000_000 * second)) == ()


@pytest.mark.parametrize(
    ("top", "share", "expected"),
    [
        (4095, 0.02, 0.02),
        (65535, 0.5, 0.5),
        (0xFFF0, 0.1, 0.1),
        (255, 0.01, 0.01),
        (4092, 0.02, 0.02),
        (61000, 0.01, 0.01),
        (3000, 0.0001, 0.0),
        (4095, 0.0001, 0.0),
    ],
    ids=[
        "12 bits",
        "16 bits",
        "12 bits, moved up",
        "8 bits",
        "12 bits, a plateau below",
        "16 bits, 1 % below",
        "few",
        "a few hot pixels",
    ],
)
def test_saturation_is_many_pixels_at_a_camera_s_largest_count(
    top: int, share: float, expected: float
) -> None:
    pixels = np.random.default_rng(0).integers(0, top - 1, (200, 200)).astype(np.uint16)
    pixels.ravel()[: round(share * pixels.size)] = top
    assert saturated_share(pixels) == pytest.approx(expected)


def test_computed_pixels_are_not_judged() -> None:
    assert saturated_share(np.full((20, 20), 4095.0, np.float32)) == 0.0


@pytest.mark.parametrize("step", [1, 16], ids=["counts", "12 bits, moved up"])
@pytest.mark.parametrize("mean", [1.0, 3.0, 104.0])
def test_the_top_of_a_dim_image_is_no_limit(mean: float, step: int) -> None:
    for seed in range(20):
        pixels = np.random.default_rng(seed).poisson(mean, (64, 64)).astype(np.uint16) * np.uint16(step)
        assert saturated_share(pixels) == 0.0


def test_live_and_calibration_have_one_rule() -> None:
    light = np.random.default_rng(0).normal(60_500, 215, (3, 64, 64))
    clipped = np.minimum(light, 61_000).round()
    assert saturation_level(clipped.astype(np.float32), least=50) == 61_000
    assert saturated_share(clipped[0].astype(np.uint16)) == pytest.approx(0.01, abs=0.005)
    assert saturated_share(np.full((64, 64), 100, np.uint16)) == 0.0
