"""What the daemon says about itself: the board that gathers it (`status_wire` has its way over ZeroMQ).

Whoever knows a number writes it on the `StatusBoard`, from any thread; the main thread takes a
`StatusSnapshot` a few times a second, draws it and publishes it. A snapshot is whole but for the previews,
which are much larger than all figures: each session's comes when it is new, and again every few seconds.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from microdiffusion.daemon.status.channel import StatusPublisher, subscribe
from microdiffusion.daemon.status.frame_totals import FrameSums
from microdiffusion.daemon.status.history import Histogram, History
from microdiffusion.daemon.status.models import (
    HEADLINE,
    LIVE,
    EngineStatus,
    FrameCounts,
    Latency,
    Note,
    Outcome,
    Quality,
    QueueDepth,
    RunStatus,
    RunSummary,
    State,
    StatusSnapshot,
    SweepProgress,
    VolumeCounts,
)
from microdiffusion.daemon.status.shelf import LatestPreviews
from microdiffusion.daemon.system import disk_free_bytes, resident_mb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from microdiffusion.daemon.status.previews import Preview

__all__ = [
    "HEADLINE",
    "LIVE",
    "EngineStatus",
    "FrameCounts",
    "Outcome",
    "RunStatus",
    "State",
    "StatusBoard",
    "StatusPublisher",
    "StatusSnapshot",
    "subscribe",
]

RATE_WINDOW_S = 10.0
LATENCY_WINDOW = 256
NOTES_KEPT = 8


class StatusBoard:
    """Gathers the numbers of all threads; every method may be called from any thread and is quick.

    Parameters
    ----------
    clock, wall
        Seconds, monotonic and since 1970; a test passes its own.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._started_utc = datetime.fromtimestamp(wall(), UTC).isoformat(timespec="seconds")
        self._clock_offset_s = wall() - clock()
        self._number = secrets.token_hex(8)
        self._listener: Callable[[Note], None] = lambda note: None
        self._lock = threading.Lock()
        self._state: State = "starting"
        self._run = RunStatus()
        self._runs: tuple[RunSummary, ...] = ()
        self._engine = EngineStatus()
        self._frames = FrameCounts()
        self._sweep = SweepProgress()
        self._queues: dict[str, QueueDepth] = {}
        self._latencies: dict[str, deque[float]] = {}
        self._volumes: Counter[str] = Counter()
        self._quality = Quality()
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._previews = LatestPreviews()
        self._history = History()
        self._histograms: dict[str, Histogram] = {}
        self._sums = FrameSums()
        self._processes: dict[str, int | None] = {"daemon": None}
        self._rates: deque[tuple[float, int]] = deque()
        self._received = 0

    def set_state(self, state: State) -> None:
        """Say what the daemon is doing."""
        with self._lock:
            self._state = state

    def set_run(self, run: RunStatus) -> None:
        """Say which run this is; the disk that holds ``run.file`` is watched."""
        with self._lock:
            self._run = run

    def set_runs(self, runs: tuple[RunSummary, ...]) -> None:
        """Say which runs are not closed yet."""
        with self._lock:
            self._runs = runs
            self._sums.take(runs)

    def set_engine(self, engine: EngineStatus) -> None:
        """Say what reconstructs."""
        with self._lock:
            self._engine = engine

    def set_frames(self, frames: FrameCounts) -> None:
        """Replace the ledger of frames; its `received` is what the frame rate is made of."""
        now = self._clock()
        with self._lock:
            self._frames = frames
            # One entry per tenth of a second is enough, however fast the frames come.
            if not self._rates or now - self._rates[-1][0] >= 0.1:
                self._rates.append((now, frames.received))

    def set_sweep(self, number: int, received: int, count: int) -> None:
        """Say how far sweep `number` has come: `received` of its `count` frames."""
        with self._lock:
            self._sweep = SweepProgress(number=number, received=received, count=count)

    def set_queue(self, name: str, depth_bytes: int, limit_bytes: int = 0) -> None:
        """Say how much waits in queue `name`."""
        with self._lock:
            self._queues[name] = QueueDepth(bytes=depth_bytes, limit=limit_bytes)

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
    ) -> None:
        """Say how good the volume of `sweep` is; NaN where it was not measured.

        Most sweeps hold no held-out projection, so its last error stays until there is a new one.
        """
        measured = math.isfinite(held_out_error)
        with self._lock:
            before = self._quality
            self._history.add("residual", residual)
            self._history.add("held_out_error", held_out_error)
            self._quality = Quality(
                served=served,
                residual=residual if math.isfinite(residual) else None,
                held_out_error=held_out_error if measured else before.held_out_error,
                held_out_sweep=sweep if measured else before.held_out_sweep,
                candidates={name: error for name, error in (candidates or {}).items() if math.isfinite(error)}
                or before.candidates,
            )

    def set_preview(self, preview: Preview | None, session: str = "") -> None:
        """Show this as the newest volume of `session` (see `preview.make_preview`); None: it has none."""
        with self._lock:
            self._previews.put(session, preview)

    def watch_process(self, name: str, pid: int | None) -> None:
        """Show the memory of this process too; None means the own one."""
        with self._lock:
            self._processes[name] = pid

    def note(self, text: str, level: Literal["info", "warning", "error"] = "info") -> None:
        """Tell the user something; the last few notes are kept."""
        with self._lock:
            number = self._notes[-1].number + 1 if self._notes else 0
            elapsed_s = self._clock() - self._started
            note = Note(number=number, elapsed_s=elapsed_s, level=level, text=text)
            self._notes.append(note)
        self._listener(note)

    def on_note(self, listener: Callable[[Note], None]) -> None:
        """Have every note told to `listener` too, on the thread that notes it: it must be quick."""
        self._listener = listener

    def histograms(self) -> dict[str, Histogram]:
        """Return every stage's measurements since the start."""
        with self._lock:
            return {stage: histogram.copy() for stage, histogram in self._histograms.items()}

    def snapshot(self, *, preview: bool = True) -> StatusSnapshot:
        """Return everything at this moment.

        Parameters
        ----------
        preview
            Whether to take a preview along: for whoever shows them, since it counts as told.
        """
        with self._lock:
            now = self._clock()
            rate_hz = self._frame_rate(now)
            self._history.sample("frame_rate_hz", rate_hz, now)
            session, picture = self._previews.next(now) if preview else ("", None)
            wall_s = self._wall()
            file = self._run.file
            processes = dict(self._processes)
            latencies = {stage: list(seconds) for stage, seconds in self._latencies.items()}
            snapshot = StatusSnapshot(
                daemon=self._number,
                state=self._state,
                started_utc=self._started_utc,
                time_utc=datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds"),
                elapsed_s=now - self._started,
                clock_step_s=round(wall_s - now - self._clock_offset_s, 3),
                run=self._run,
                runs=self._runs,
                engine=self._engine,
                frames=self._frames,
                frames_total=self._sums.totals(),
                frame_rate_hz=rate_hz,
                sweep=self._sweep,
                queues=dict(self._queues),
                volumes=VolumeCounts(**self._volumes),
                quality=self._quality,
                notes=tuple(self._notes),
                history=self._history.values(),
                sessions=self._previews.sessions,
                session=session,
                preview=picture,
            )
        # Percentiles and questions to the operating system need no lock.
        memory = {name: resident_mb(pid) for name, pid in processes.items()}
        return snapshot.model_copy(
            update={
                "latencies": {stage: _latency(seconds) for stage, seconds in latencies.items()},
                "memory_mb": {name: mb for name, mb in memory.items() if mb is not None},
                "disk_free_bytes": disk_free_bytes(Path(file)) if file else None,
            }
        )

    def _frame_rate(self, now: float) -> float:
        # Sweeps come in bursts; the window spans several of them.
        while len(self._rates) > 1 and self._rates[1][0] <= now - RATE_WINDOW_S:
            self._rates.popleft()
        if not self._rates or now <= self._rates[0][0]:
            return 0.0
        start, received = self._rates[0]
        return max(0, self._frames.received - received) / (now - start)


def _latency(seconds: list[float]) -> Latency:
    p50, p95 = np.percentile(seconds, (50, 95))
    return Latency(p50=float(p50), p95=float(p95))
