"""Alarms: what needs attention, and how to fix it; from the status alone, so that whoever has it can tell.

`RULES` is the table of all that there are, in the order of urgency. `Alarms.look` takes each snapshot in turn
and returns the alarms that stand, the most urgent first. An alarm stays for a while after its cause is gone,
so that nothing flickers. Belongs to the daemon's main thread.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from microdiffusion.daemon.status import (
    LITTLE_DISK,
    Alarm,
    QueueDepth,
    RunSummary,
    StatusSnapshot,
    duration,
    size,
)
from microdiffusion.text import IN_WORDS, USUAL_ERROR, count_noun, in_noise

STAYS_S = 10.0
"""Time that an alarm stays after its cause is gone."""
RECENT_S = 120.0
"""Time that something that happened at one moment (a frame was lost) is an alarm."""
SILENT_S, SILENT_FACTOR = 15.0, 4.0
"""No frame for so long, and for so many times the usual gap."""
BETWEEN_S = 1.0
"""A shorter silence is within a sweep, not between two."""
BEHIND_SWEEPS, BEHIND_S = 3, 10.0
"""Sweeps of a run that wait for the engine for so long: it is behind."""
SATURATED = 1e-3
CLOCK_STEP_S = 2.0
SOON_S, SLOPE_S = 3600.0, 120.0
"""A disk that is full within that time, at the rate of the last minutes: that of their slower half."""
FULL = 0.9
RISEN, WORTH_TELLING = 1.5, 1.2
"""A held-out error that is so many times what it was, and larger than this (in units of the noise)."""

Found = tuple[Literal["warning", "error"], str] | None
"""Severity of what was found, and a sentence on it."""


Find = Callable[["StatusSnapshot", "Past"], Found]


@dataclass(slots=True)
class Past:
    """Memory of the rules from snapshot to snapshot, and their part of the configuration."""

    journal_bytes: float = 0.0
    interval_s: float = 0.0
    counters: dict[str, _Counter] = field(default_factory=dict)
    gaps: dict[str, _Gaps] = field(default_factory=dict)
    behind_s: dict[str, float] = field(default_factory=dict)
    disk: deque[tuple[float, int]] = field(default_factory=deque)

    def risen(self, name: str, count: int, now_s: float) -> int:
        """Return by how much a counter has risen lately; 0 if it stands still."""
        counter = self.counters.get(name)
        if counter is None or count < counter.last:
            # What was there before this daemon, or is another run's, is no news.
            counter = self.counters[name] = _Counter(last=count, base=count)
        if count > counter.last:
            if now_s - counter.rose_s > RECENT_S:
                counter.base = counter.last
            counter.last, counter.rose_s = count, now_s
        return counter.last - counter.base if now_s - counter.rose_s <= RECENT_S else 0


@dataclass(slots=True)
class _Counter:
    last: int
    base: int
    rose_s: float = -math.inf


class _Gaps:
    """The usual gap of a run: the longest silence between its latest frames."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=32)
        self._before_s = 0.0
        self._frames = 0

    def usual_s(self, run: RunSummary) -> float:
        """Add how long the run has been silent, and return the longest gap of late."""
        if run.frames != self._frames:
            if self._frames and self._before_s > BETWEEN_S:
                self._gaps.append(self._before_s)
            self._frames = run.frames
        self._before_s = run.silent_s or 0.0
        return max(self._gaps, default=0.0)


def _disk_full(now: StatusSnapshot, past: Past) -> Found:
    full = [run.name for run in now.runs if run.waits_for]
    return ("error", f"the disk of {full[0]} accepts no data") if full else None


def _dropped(now: StatusSnapshot, past: Past) -> Found:
    lost = past.risen("dropped", now.frames_total.dropped, now.elapsed_s)
    return ("error", f"{count_noun(lost, 'frame')} dropped by the sender") if lost else None


def _journal(now: StatusSnapshot, past: Past) -> Found:
    waiting = sum(run.journal_bytes for run in now.runs)
    if not waiting:
        return None
    serious = past.journal_bytes and waiting > past.journal_bytes / 2
    return "error" if serious else "warning", f"{size(waiting)} waiting in the sender's journal"


def _silent(now: StatusSnapshot, past: Past) -> Found:
    past.gaps = {run.id: past.gaps.get(run.id) or _Gaps() for run in now.runs}
    for run in now.runs:
        if run.state == "go" and run.silent_s is not None:
            usual_s = max(past.interval_s, past.gaps[run.id].usual_s(run))
            if run.silent_s > max(SILENT_S, SILENT_FACTOR * usual_s):
                return "error", f"no frame for {duration(run.silent_s)}"
    return None


def _disk_low(now: StatusSnapshot, past: Past) -> Found:
    free, disk = now.disk_free_bytes, past.disk
    if disk and (free is None or now.elapsed_s - disk[-1][0] > SLOPE_S / 2):  # or this computer slept
        disk.clear()
    if free is None:
        return None
    if not disk or now.elapsed_s - disk[-1][0] >= 1.0:
        disk.append((now.elapsed_s, free))
    while len(disk) > 2 and disk[1][0] <= now.elapsed_s - SLOPE_S:
        disk.popleft()
    left_s = math.inf
    if now.elapsed_s - disk[0][0] >= SLOPE_S:
        # A run file's room is taken at once, in one of the halves: what fills a disk is in both.
        begin, middle, end = disk[0], disk[len(disk) // 2], (now.elapsed_s, free)
        taken_s = min((a[1] - b[1]) / (b[0] - a[0]) for a, b in ((begin, middle), (middle, end)))
        left_s = free / taken_s if taken_s > 0 else math.inf
    if free >= LITTLE_DISK and left_s > SOON_S:
        return None
    when = f", full in about {max(1, round(left_s / 60))} min" if left_s <= SOON_S else ""
    serious = free < LITTLE_DISK or left_s < SOON_S / 6
    return "error" if serious else "warning", f"{size(free)} free on the disk{when}"


def _refused(now: StatusSnapshot, past: Past) -> Found:
    refused = past.risen("refused", now.frames_total.refused, now.elapsed_s)
    return ("warning", f"{count_noun(refused, 'message')} refused") if refused else None


def _outcome(name: str, level: Literal["warning", "error"]) -> Find:
    """Return what finds sweeps that ended so."""

    def find(now: StatusSnapshot, past: Past) -> Found:
        count = past.risen(name, getattr(now.volumes, name), now.elapsed_s)
        return (level, f"{count_noun(count, 'sweep')} {name}") if count else None

    return find


def _saturated(now: StatusSnapshot, past: Past) -> Found:
    worst = max((run.saturated for run in now.runs), default=0.0)
    text = f"{100 * worst:.2g} % of the camera's pixels are saturated"
    return ("warning", text) if worst > SATURATED else None


def _behind(now: StatusSnapshot, past: Past) -> Found:
    # A run that is over is caught up late by intention.
    late = {run.id: run for run in now.runs if run.waiting >= BEHIND_SWEEPS and run.state in ("go", "pause")}
    past.behind_s = {run_id: past.behind_s.get(run_id, now.elapsed_s) for run_id in late}
    lasting = [run for run in late.values() if now.elapsed_s - past.behind_s[run.id] >= BEHIND_S]
    waiting = sum(run.waiting for run in lasting)
    return ("warning", f"the engine is behind: {waiting} sweeps waiting") if lasting else None


def _full_queue(now: StatusSnapshot, name: str) -> QueueDepth | None:
    queue = now.queues.get(name)
    return queue if queue and queue.limit and queue.bytes > FULL * queue.limit else None


def _disk_slow(now: StatusSnapshot, past: Past) -> Found:
    queue = _full_queue(now, "recorder")
    return ("warning", f"{size(queue.bytes)} waiting for the disk") if queue else None


def _engine_queue(now: StatusSnapshot, past: Past) -> Found:
    queue = _full_queue(now, "engine")
    return ("warning", f"the queue of the engine is full ({size(queue.bytes)})") if queue else None


def _held_out(now: StatusSnapshot, past: Past) -> Found:
    errors = now.history.get("held_out_error", ())
    if len(errors) < 8:
        return None
    # Against the run's own beginning, in medians: one bad sweep is no trend.
    before, latest = statistics.median(errors[: len(errors) // 2]), statistics.median(errors[-3:])
    if latest <= RISEN * before or latest <= WORTH_TELLING or before > IN_WORDS:
        return None
    return "warning", f"held-out error {in_noise(latest)}, was {before:.2f} ({USUAL_ERROR})"


def _quality(kind: str) -> Find:
    """Return what finds a sweep that looks wrong in this way."""

    def find(now: StatusSnapshot, past: Past) -> Found:
        text = now.quality.alarms.get(kind)
        return None if text is None else ("warning", text)

    return find


def _clock(now: StatusSnapshot, past: Past) -> Found:
    text = f"the clock was set by {now.clock_step_s:+.0f} s, or the computer slept"
    return ("warning", text) if abs(now.clock_step_s) > CLOCK_STEP_S else None


class Rule(NamedTuple):
    """An alarm: its kind, what finds it, and the fix."""

    kind: str
    find: Find
    fix: str


RULES = (
    Rule("disk-full", _disk_full, "free space: frames wait with their sender, it resumes by itself"),
    Rule("dropped", _dropped, "free the sender's disk, raise wire.journal_gb, or image slower"),
    Rule("journal", _journal, "network or disk here is too slow: fix it before the journal fills"),
    Rule("silent", _silent, "check camera, Micro-Manager, network; or `mdd control stop`"),
    Rule("disk-low", _disk_low, "free space, stop what else writes there, or use another --output"),
    Rule("refused", _refused, "check the network, and that both sides run one version of mdd"),
    Rule("lost", _outcome("lost", "error"), "too few frames: check network and camera; see mdd info RUN"),
    Rule("failed", _outcome("failed", "error"), "mdd info RUN says why; `mdd reconstruct RUN` tries again"),
    Rule(
        "skipped",
        _outcome("skipped", "warning"),
        "no time for them: `mdd reconstruct RUN` makes them later",
    ),
    Rule("saturated", _saturated, "lower the laser power, the exposure or the camera's gain"),
    Rule("behind", _behind, 'they are caught up later; engine.policy = "live" keeps up'),
    Rule("disk-slow", _disk_slow, "use a faster disk for the runs, and keep other programs off it"),
    Rule("held-out", _held_out, "check focus, drift, bleaching; a smaller sweep.step_um helps"),
    Rule("stage", _quality("stage"), "check the stage: direction, speed, backlash, what else moves it"),
    Rule("column", _quality("column"), "a line of the camera, or dirt on it: look at the raw frames"),
    Rule("blurred", _quality("blurred"), "check the focus and the objective's immersion"),
    Rule("dimmed", _quality("dimmed"), "bleaching, the shutter, or the laser: less light, or stop"),
    Rule("spot", _quality("spot"), "a bubble, dirt, or a strong event: look at the raw frames"),
    Rule("unexpected", _quality("unexpected"), "moved, changed, or the optics are not as configured"),
    Rule("unfamiliar", _quality("unfamiliar"), "trust the network less; compare with engine.method = inr"),
    Rule("queue-engine", _engine_queue, "raise wire.receive_buffer_mb, or let the engine do less"),
    Rule("clock", _clock, "switch on time synchronisation (NTP); files keep relative times"),
)


class Alarms:
    """Watches the status.

    A sender's journal may hold `journal_gb`; sweeps start `interval_s` apart, if that is known.
    """

    def __init__(self, *, journal_gb: float = 0.0, interval_s: float = 0.0) -> None:
        self._past = Past(journal_gb * 1e9, interval_s)
        self._standing: dict[str, tuple[Alarm, float]] = {}  # and when its cause was last there

    def look(self, snapshot: StatusSnapshot) -> tuple[Alarm, ...]:
        """Return the alarms that stand, the most urgent first."""
        now_s = snapshot.elapsed_s
        for kind, find, fix in RULES:
            found = find(snapshot, self._past)
            if found is not None:
                level, text = found
                since_s = self._standing[kind][0].since_s if kind in self._standing else now_s
                alarm = Alarm(kind=kind, level=level, text=text, fix=fix, since_s=since_s)
                self._standing[kind] = alarm, now_s
            elif kind in self._standing and now_s - self._standing[kind][1] > STAYS_S:
                del self._standing[kind]
        standing = [self._standing[rule.kind][0] for rule in RULES if rule.kind in self._standing]
        return tuple(sorted(standing, key=lambda alarm: alarm.level != "error"))
