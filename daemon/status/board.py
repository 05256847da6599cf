"""The status board: gathers the daemon's figures from all threads.

Whoever knows a figure puts it on the `StatusBoard` under its field of `StatusSnapshot`, so a new figure needs
its field and its producer, nothing here. The board itself keeps what has to be counted or remembered between
two snapshots: rates, latencies, totals, trends. The main thread takes a snapshot a few times a second, draws
it and publishes it (`channel`). A snapshot is complete except for the previews, which are much larger than
all figures together: each session's comes when it is new, and again every few seconds.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from microdiffusion.daemon.status.history import Histogram, History
from microdiffusion.daemon.status.models import (
    HEADLINE,
    FrameTotals,
    Latency,
    Note,
    Outcome,
    Quality,
    RunSummary,
    StatusSnapshot,
    Sureness,
    VolumeCounts,
)
from microdiffusion.daemon.status.previews import LatestPreviews, Preview
from microdiffusion.daemon.system import disk_free_bytes, resident_mb
from microdiffusion.frames import Confidence

RATE_WINDOW_S = 10.0
LATENCY_WINDOW = 256
NOTES_KEPT = 8

_TOTALS = {"received": "frames", "dropped": "dropped", "refused": "refused", "duplicate": "duplicate"}
"""Name of a total, and of the run's figure that it sums."""


class StatusBoard:
    """Gathers the figures; every method may be called from any thread and is quick.

    `clock` and `wall` give seconds, monotonic and since 1970.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._clock_offset_s = wall() - clock()
        self._lock = threading.Lock()
        self._figures = StatusSnapshot(
            daemon=secrets.token_hex(8),
            started_utc=datetime.fromtimestamp(wall(), UTC).isoformat(timespec="seconds"),
        )
        self._totals: Counter[str] = Counter()
        self._counted: dict[str, dict[str, int]] = {}  # what the open runs have added to them
        self._rates: deque[tuple[float, int]] = deque()
        self._latencies: dict[str, deque[float]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._history = History()
        self._volumes: Counter[str] = Counter()
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._listener: Callable[[Note], None] = lambda note: None
        self._previews = LatestPreviews()
        self._processes: dict[str, int | None] = {"daemon": None}

    def put(self, **figures: object) -> None:
        """Set fields of the snapshot; a mapping is merged into the one that is there.

        Raises
        ------
        TypeError
            The snapshot has no such field.
        """
        unknown = figures.keys() - StatusSnapshot.model_fields.keys()
        if unknown:
            raise TypeError(f"StatusSnapshot has no field {', '.join(sorted(unknown))}")
        with self._lock:
            for name, value in figures.items():
                if isinstance(value, dict):
                    figures[name] = getattr(self._figures, name) | value
            self._figures = self._figures.model_copy(update=figures)
            if "runs" in figures:
                self._count_frames(self._figures.runs)
            if "frames" in figures:
                self._sample_rate()

    def add_latency(self, stage: str, seconds: float) -> None:
        """Add one measurement of a stage; `HEADLINE` is the one that counts."""
        if math.isfinite(seconds):
            with self._lock:
                self._latencies.setdefault(stage, deque(maxlen=LATENCY_WINDOW)).append(seconds)
                self._histograms.setdefault(stage, Histogram()).add(seconds)
                if stage == HEADLINE:
                    self._history.add("latency_s", seconds)

    def add_volume(self, outcome: Outcome) -> None:
        """Count a sweep's outcome."""
        with self._lock:
            self._volumes[outcome] += 1

    def set_quality(
        self,
        sweep: int,
        served: str,
        residual: float,
        held_out_error: float = math.nan,
        candidates: Mapping[str, float] | None = None,
        why: str = "",
        alarms: Mapping[str, str] | None = None,
    ) -> None:
        """Set the quality of the volume of `sweep`; NaN where it was not measured.

        Most sweeps hold no held-out projection, so its last error stays until there is a new one.
        """
        measured = math.isfinite(held_out_error)
        with self._lock:
            before = self._figures.quality
            self._history.add("residual", residual)
            self._history.add("held_out_error", held_out_error)
            quality = Quality(
                served=served,
                why=why,
                residual=residual if math.isfinite(residual) else None,
                held_out_error=held_out_error if measured else before.held_out_error,
                held_out_sweep=sweep if measured else before.held_out_sweep,
                candidates={name: error for name, error in (candidates or {}).items() if math.isfinite(error)}
                or before.candidates,
                alarms=dict(alarms or {}),
            )
            self._figures = self._figures.model_copy(update={"quality": quality})

    def set_confidence(self, confidence: Confidence) -> None:
        """Set how far the last volume may be off; the coverage stays until it is measured again."""
        if not math.isfinite(confidence.uncertainty_rms + confidence.brightness_slope):
            return
        covered: float | None = confidence.interval_coverage
        with self._lock:
            if covered is None or not math.isfinite(covered):
                before = self._figures.sureness
                covered = None if before is None else before.interval_coverage
            sureness = Sureness(
                uncertainty_rms=confidence.uncertainty_rms,
                brightness_slope=confidence.brightness_slope,
                brightness_slope_sd=confidence.brightness_slope_sd,
                interval_coverage=covered,
            )
            self._figures = self._figures.model_copy(update={"sureness": sureness})

    def set_preview(self, preview: Preview | None, session: str = "") -> None:
        """Set the newest preview of `session` (see `make_preview`); None: it has none."""
        with self._lock:
            self._previews.put(session, preview)

    def watch_process(self, name: str, pid: int | None) -> None:
        """Show the memory of this process, too; None means the daemon's own."""
        with self._lock:
            self._processes[name] = pid

    def note(self, text: str, level: Literal["info", "warning", "error"] = "info") -> None:
        """Add a note for the user; the last few are kept."""
        with self._lock:
            number = self._notes[-1].number + 1 if self._notes else 0
            elapsed_s = self._clock() - self._started
            note = Note(number=number, elapsed_s=elapsed_s, level=level, text=text)
            self._notes.append(note)
        self._listener(note)

    def on_note(self, listener: Callable[[Note], None]) -> None:
        """Pass the kept notes and all that follow to `listener`, quick, on the thread that adds them."""
        self._listener = listener
        for note in list(self._notes):
            listener(note)

    def histograms(self) -> dict[str, Histogram]:
        """Return every stage's measurements since the start."""
        with self._lock:
            return {stage: histogram.copy() for stage, histogram in self._histograms.items()}

    def snapshot(self, *, preview: bool = True) -> StatusSnapshot:
        """Return everything at this moment, with a `preview` for whoever shows it: it then counts as sent."""
        with self._lock:
            now = self._clock()
            wall_s = self._wall()
            rate_hz = self._frame_rate(now)
            self._history.sample("frame_rate_hz", rate_hz, now)
            session, picture = self._previews.next(now) if preview else ("", None)
            figures = self._figures
            processes = dict(self._processes)
            latencies = {stage: list(seconds) for stage, seconds in self._latencies.items()}
            derived: dict[str, object] = {
                "time_utc": datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds"),
                "elapsed_s": now - self._started,
                "clock_step_s": round(wall_s - now - self._clock_offset_s, 3),
                "frames_total": FrameTotals(**self._totals),
                "frame_rate_hz": rate_hz,
                "volumes": VolumeCounts(**self._volumes),
                "notes": tuple(self._notes),
                "history": self._history.values(),
                "sessions": self._previews.sessions,
                "session": session,
                "preview": picture,
            }
        # Percentiles and questions to the operating system need no lock.
        derived["latencies"] = {stage: _latency(seconds) for stage, seconds in latencies.items()}
        memory = {name: resident_mb(pid) for name, pid in processes.items()}
        derived["memory_mb"] = {name: mb for name, mb in memory.items() if mb is not None}
        if figures.run.file:
            derived["disk_free_bytes"] = disk_free_bytes(Path(figures.run.file))
        return figures.model_copy(update=derived)

    def _count_frames(self, runs: Iterable[RunSummary]) -> None:
        """Add what is new in the open runs; what a run added is kept when it is over."""
        counted: dict[str, dict[str, int]] = {}
        for run in runs:
            now = {name: int(getattr(run, column)) for name, column in _TOTALS.items()}
            # What a resumed run had already was counted by the daemon before.
            before = self._counted.get(run.id, now if run.resumed else {})
            for name, value in now.items():
                self._totals[name] += max(0, value - before.get(name, 0))
            counted[run.id] = now
        self._counted = counted

    def _sample_rate(self) -> None:
        now = self._clock()
        # One entry per tenth of a second is enough, however fast the frames come.
        if not self._rates or now - self._rates[-1][0] >= 0.1:
            self._rates.append((now, self._figures.frames.received))

    def _frame_rate(self, now: float) -> float:
        # Sweeps come in bursts; the window spans several of them.
        while len(self._rates) > 1 and self._rates[1][0] <= now - RATE_WINDOW_S:
            self._rates.popleft()
        if not self._rates or now <= self._rates[0][0]:
            return 0.0
        start, received = self._rates[0]
        return max(0, self._figures.frames.received - received) / (now - start)


def _latency(seconds: list[float]) -> Latency:
    p50, p95 = np.percentile(seconds, (50, 95))
    return Latency(p50=float(p50), p95=float(p95))
