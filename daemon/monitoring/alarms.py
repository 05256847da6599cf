"""What wants to be seen to, said with the cure: from the status alone, so whoever has it can check it.

`Alarms.look` takes each snapshot in turn and returns the alarms that stand, the most urgent first. It
remembers when each began, and how counters and errors went; an alarm stays for a while after its cause is
gone, so that nothing flickers. Belongs to the daemon's main thread.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from microdiffusion.daemon.status import LITTLE_DISK, Alarm, duration, size
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from microdiffusion.daemon.status import RunSummary, StatusSnapshot

STAYS_S = 10.0
"""How long an alarm stays after its cause is gone."""
RECENT_S = 120.0
"""How long something that happened at one moment (a frame was lost) is an alarm."""
SILENT_S = 15.0
"""A run that takes frames and has had none for so long, or for `SILENT_FACTOR` times the usual gap."""
SILENT_FACTOR = 4.0
BEHIND_SWEEPS, BEHIND_S = 3, 10.0
"""Sweeps of a run that wait for the engine for so long: it is behind."""
BETWEEN_S = 1.0
"""A shorter silence is within a sweep, not between two."""
SATURATED = 1e-3
CLOCK_STEP_S = 2.0
SOON_S = 3600.0
"""A disk that is full within that time at the rate of the last minutes."""
SLOPE_S = 120.0
FULL = 0.9
RISEN, WORTH_TELLING = 1.5, 1.2
"""A held-out error that is so many times what it was, and larger than this (in units of the noise)."""


@dataclass(frozen=True, slots=True)
class _Finding:
    kind: str
    level: Literal["warning", "error"]
    text: str
    cure: str


@dataclass(slots=True)
class _Standing:
    since_s: float
    seen_s: float
    rank: int
    finding: _Finding


class Alarms:
    """Watches the status.

    Parameters
    ----------
    journal_gb : float
        What a sender's journal may hold (`wire.journal_gb`), GB.
    interval_s : float
        Time from one sweep's start to the next, where it is known, s.
    """

    def __init__(self, *, journal_gb: float = 0.0, interval_s: float = 0.0) -> None:
        self._journal_bytes = journal_gb * 1e9
        self._interval_s = interval_s
        self._standing: dict[str, _Standing] = {}
        self._rises: dict[str, _Rise] = {}
        self._behind_s: dict[str, float] = {}
        self._gaps: dict[str, _Gaps] = {}
        self._disk: deque[tuple[float, int]] = deque()
        # The order is the order of urgency among alarms of one level.
        self._rules: tuple[Callable[[StatusSnapshot], Iterator[_Finding]], ...] = (
            self._disk_refuses,
            self._dropped,
            self._journal,
            self._silent,
            self._disk_low,
            self._refused,
            self._no_volume,
            self._saturated,
            self._behind,
            self._held_out,
            self._memory,
            self._clock,
        )

    def look(self, snapshot: StatusSnapshot) -> tuple[Alarm, ...]:
        """Return the alarms that stand."""
        now_s = snapshot.elapsed_s
        for rank, rule in enumerate(self._rules):
            for finding in rule(snapshot):
                standing = self._standing.get(finding.kind)
                since_s = now_s if standing is None else standing.since_s
                self._standing[finding.kind] = _Standing(since_s, now_s, rank, finding)
        for kind in [kind for kind, each in self._standing.items() if now_s - each.seen_s > STAYS_S]:
            del self._standing[kind]
        ranked = sorted(
            self._standing.items(), key=lambda item: (item[1].finding.level != "error", item[1].rank)
        )
        return tuple(
            Alarm(
                kind=kind,
                level=each.finding.level,
                text=each.finding.text,
                cure=each.finding.cure,
                since_s=each.since_s,
            )
            for kind, each in ranked
        )

    def _recent(self, name: str, count: int, now_s: float) -> int:
        """Return by how much a counter has risen lately; 0 where it stands still."""
        rise = self._rises.get(name)
        if rise is None or count < rise.last:
            # What was there before this daemon, or is another run's, is no news.
            rise = self._rises[name] = _Rise(last=count, base=count)
        if count > rise.last:
            if now_s - rise.rose_s > RECENT_S:
                rise.base = rise.last
            rise.last, rise.rose_s = count, now_s
        return rise.last - rise.base if now_s - rise.rose_s <= RECENT_S else 0

    # The rules, the most urgent first -------------------------------------------------------------

    def _disk_refuses(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        for run in snapshot.runs:
            if run.waits_for:
                yield _Finding(
                    "disk-full",
                    "error",
                    f"the disk of {run.name} takes nothing",
                    "free space: frames wait with their sender, it goes on by itself",
                )
                return

    def _dropped(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        lost = self._recent("dropped", snapshot.frames_total.dropped, snapshot.elapsed_s)
        if lost:
            yield _Finding(
                "dropped",
                "error",
                f"{count_noun(lost, 'frame')} dropped by the sender",
                "free the sender's disk, raise wire.journal_gb, or image slower",
            )

    def _journal(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        waiting = sum(run.journal_bytes for run in snapshot.runs)
        if not waiting:
            return
        grave = self._journal_bytes and waiting > self._journal_bytes / 2
        yield _Finding(
            "journal",
            "error" if grave else "warning",
            f"{size(waiting)} wait in the sender's journal",
            "line or disk here is too slow: mend it before the journal is full",
        )

    def _silent(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        alive = {run.id: run for run in snapshot.runs}
        self._gaps = {run_id: self._gaps.get(run_id) or _Gaps() for run_id in alive}
        for run in snapshot.runs:
            if run.state != "go" or run.silent_s is None:
                continue
            usual_s = max(self._interval_s, self._gaps[run.id].usual_s(run))
            if run.silent_s > max(SILENT_S, SILENT_FACTOR * usual_s):
                yield _Finding(
                    "silent",
                    "error",
                    f"no frame for {duration(run.silent_s)}",
                    "look at camera, Micro-Manager, network; or `mdd control stop`",
                )
                return

    def _disk_low(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        free = snapshot.disk_free_bytes
        if free is None:
            self._disk.clear()
            return
        now_s = snapshot.elapsed_s
        if not self._disk or now_s - self._disk[-1][0] >= 1.0:
            self._disk.append((now_s, free))
        while len(self._disk) > 2 and self._disk[1][0] <= now_s - SLOPE_S:
            self._disk.popleft()
        then_s, before = self._disk[0]
        # A file's room is taken all at once: a slope needs its full time to mean anything.
        left_s = float("inf")
        if now_s - then_s >= SLOPE_S / 2 and free < before:
            left_s = free * (now_s - then_s) / (before - free)
        if free >= LITTLE_DISK and left_s > SOON_S:
            return
        when = f", full in about {duration(left_s)}" if left_s <= SOON_S else ""
        grave = free < LITTLE_DISK or left_s < SOON_S / 6
        yield _Finding(
            "disk-low",
            "error" if grave else "warning",
            f"{size(free)} free on the disk{when}",
            "free space, or start again with --output on another disk",
        )

    def _refused(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        refused = self._recent("refused", snapshot.frames_total.refused, snapshot.elapsed_s)
        if refused:
            yield _Finding(
                "refused",
                "warning",
                f"{count_noun(refused, 'message')} refused",
                "check the network, and that both sides have one version of mdd",
            )

    def _no_volume(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        volumes = snapshot.volumes
        for outcome, why in (
            ("lost", "too few frames came: check line and camera; see mdd info RUN"),
            ("failed", "mdd info RUN says why; `mdd reconstruct RUN` tries again"),
            ("skipped", "no time for them now: `mdd reconstruct RUN` makes them later"),
        ):
            count = self._recent(outcome, getattr(volumes, outcome), snapshot.elapsed_s)
            if count:
                level: Literal["warning", "error"] = "warning" if outcome == "skipped" else "error"
                yield _Finding(outcome, level, f"{count_noun(count, 'sweep')} {outcome}", why)

    def _saturated(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        worst = max((run.saturated for run in snapshot.runs), default=0.0)
        if worst > SATURATED:
            yield _Finding(
                "saturated",
                "warning",
                f"{100 * worst:.2g} % of the camera's pixels are saturated",
                "lower the laser's power, the exposure or the camera's gain",
            )

    def _behind(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        now_s = snapshot.elapsed_s
        late = {
            run.id: run
            for run in snapshot.runs
            # What is caught up after the end of a run is behind by intention.
            if run.waiting >= BEHIND_SWEEPS and run.state in ("go", "pause")
        }
        self._behind_s = {run_id: self._behind_s.get(run_id, now_s) for run_id in late}
        lasting = [late[run_id] for run_id, since_s in self._behind_s.items() if now_s - since_s >= BEHIND_S]
        if lasting:
            waiting = sum(run.waiting for run in lasting)
            yield _Finding(
                "behind",
                "warning",
                f"the engine is behind: {waiting} sweeps wait",
                'they are caught up later; engine.policy = "live" keeps up',
            )
        for name, queue in snapshot.queues.items():
            if queue.limit and queue.bytes > FULL * queue.limit and name == "recorder":
                yield _Finding(
                    "disk-slow",
                    "warning",
                    f"{size(queue.bytes)} wait for the disk",
                    "use a faster disk for the runs, and keep other programs off it",
                )

    def _held_out(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        errors = snapshot.history.get("held_out_error", ())
        if len(errors) < 8:
            return
        # Against the run's own beginning, in medians: one bad sweep is no trend.
        before, now = statistics.median(errors[: len(errors) // 2]), statistics.median(errors[-3:])
        if now > RISEN * before and now > WORTH_TELLING:
            yield _Finding(
                "held-out",
                "warning",
                f"held-out error {now:.2f} x noise, was {before:.2f}",
                "look at focus, drift, bleaching; a smaller sweep.step_um helps",
            )

    def _memory(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        for name, queue in snapshot.queues.items():
            if queue.limit and queue.bytes > FULL * queue.limit and name == "engine":
                yield _Finding(
                    f"queue-{name}",
                    "warning",
                    f"the queue of the {name} is full ({size(queue.bytes)})",
                    "raise wire.receive_buffer_mb, or let the engine do less",
                )

    def _clock(self, snapshot: StatusSnapshot) -> Iterator[_Finding]:
        step = snapshot.clock_step_s
        if abs(step) > CLOCK_STEP_S:
            yield _Finding(
                "clock",
                "warning",
                f"the clock was set by {step:+.0f} s, or the machine slept",
                "switch on time synchronisation (NTP); files keep relative times",
            )


@dataclass(slots=True)
class _Rise:
    last: int
    base: int
    rose_s: float = float("-inf")


class _Gaps:
    """How long a run usually is without a frame: the longest silences between its latest frames."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=32)
        self._before_s = 0.0
        self._frames = 0

    def usual_s(self, run: RunSummary) -> float:
        """Take in how long the run has been silent, and return the longest gap of late."""
        silent_s = run.silent_s or 0.0
        if run.frames != self._frames:
            if self._frames and self._before_s > BETWEEN_S:
                self._gaps.append(self._before_s)
            self._frames = run.frames
        self._before_s = silent_s
        return max(self._gaps, default=0.0)
