"""The models of the daemon's status: everything that the dashboard shows, at one moment.

A snapshot is complete, nothing has to be remembered from an earlier one. Frozen; sent as JSON, so numbers
that do not exist are None, never NaN. The names are a public interface, for whoever subscribes to the status.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from microdiffusion.daemon.status.previews import Preview

HEADLINE = "sweep_to_disk"
"""The latency that counts: from a sweep's last frame to its volume being readable on disk."""

LIVE = "projection_to_view"
"""From a projection to the rolling volume that contains it, if engine.update is "projection"."""

State = Literal["starting", "waiting", "running", "closing", "closed", "failed"]
Outcome = Literal["written", "lost", "skipped", "failed"]


class StatusModel(BaseModel):
    """Base of the snapshot and its parts: frozen; unknown fields, of a newer daemon, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RunStatus(StatusModel):
    """The run that is shown; `sweeps` is the number planned, None if the end is open."""

    name: str = ""
    id: str = ""
    file: str = ""
    source: str = ""
    sweeps: int | None = None
    shape: tuple[int, int, int] | None = None
    voxel_size_um: tuple[float, float, float] | None = None


class RunSummary(StatusModel):
    """A run that is not closed yet.

    `state` is what its driver was told ("go", "pause", "stop") or "closing"; `waits_for` says why nothing can
    be written now. `frames`, `missing`, `dropped`, `refused` and `duplicate` count frames; `written` counts
    volumes, `waiting` the sweeps that wait for the engine. `silent_s` is the time since the last frame, None
    before the first; `saturated` the share of its pixels at the camera's largest count; `journal_bytes` what
    waits in the sender's journal. `resumed`: its file existed before.
    """

    name: str = ""
    id: str = ""
    file: str = ""
    state: str = ""
    frames: int = 0
    written: int = 0
    waiting: int = 0
    waits_for: str = ""
    missing: int = 0
    dropped: int = 0
    refused: int = 0
    duplicate: int = 0
    silent_s: float | None = None
    saturated: float = 0.0
    journal_bytes: int = 0
    resumed: bool = False


class EngineStatus(StatusModel):
    """The engine, its device and the reason for it; `building` is the progress of a build."""

    device: str = ""
    device_reason: str = ""
    building: str = ""
    weights: str = ""
    method: str = ""
    steps: int = 0
    guidance: float = 0.0


class FrameCounts(StatusModel):
    """The frames of the run that is shown; `announced` is the sender's count, known when the run ends."""

    received: int = 0
    announced: int | None = None
    missing: int = 0
    duplicate: int = 0
    refused: int = 0
    dropped_by_sender: int = 0


class FrameTotals(StatusModel):
    """Frames of all runs since the daemon's start, finished ones included."""

    received: int = 0
    dropped: int = 0
    refused: int = 0
    duplicate: int = 0


class SweepProgress(StatusModel):
    """The sweep that is being received: its number, and how many of its `count` frames are here."""

    number: int = 0
    received: int = 0
    count: int = 0


class QueueDepth(StatusModel):
    """Bytes that wait in a queue; `limit` is 0 if there is none."""

    bytes: int = 0
    limit: int = 0


class Latency(StatusModel):
    """Median and 95th percentile of the last measurements, seconds."""

    p50: float
    p95: float


class VolumeCounts(StatusModel):
    """Outcomes of the sweeps."""

    written: int = 0
    lost: int = 0
    skipped: int = 0
    failed: int = 0


class Quality(StatusModel):
    """The last volume: which answer was served (and why), how well it explains the frames in noise units.

    `alarms` has what looks wrong with its sweep, a sentence by kind.
    """

    served: str = ""
    why: str = ""
    residual: float | None = None
    held_out_error: float | None = None
    held_out_sweep: int | None = None
    candidates: dict[str, float] = {}
    alarms: dict[str, str] = {}


class Learned(StatusModel):
    """The share of voxels that earlier sweeps still describe, and the drift (z, y, x) of the session."""

    still: float
    drift_um: tuple[float, float, float]


class Sureness(StatusModel):
    """Confidence in the last volume, see `frames.Confidence`; None: not known."""

    uncertainty_rms: float
    brightness_slope: float
    brightness_slope_sd: float
    interval_coverage: float | None = None


class Note(StatusModel):
    """A message to the user: its number, counted from 0, and its time since the start, s."""

    number: int
    elapsed_s: float
    level: Literal["info", "warning", "error"] = "info"
    text: str


class Alarm(StatusModel):
    """Something that needs attention: what, how to fix it, and since when (s since the daemon's start)."""

    kind: str
    level: Literal["warning", "error"]
    text: str
    fix: str = ""
    since_s: float


class StatusSnapshot(StatusModel):
    """Everything that the dashboard shows, at one moment.

    `daemon` is a new number at each start of a daemon: answers of different daemons can be told apart by it.
    `history` has the latest values of frame_rate_hz, latency_s, residual and held_out_error; `clock_step_s`
    is by how much the clock of the daemon's computer was set since the start. `preview` belongs to
    `session`, one of `sessions`; it is None unless it is new: the one before still holds. `adaptive` is the
    last decision of an adaptive acquisition, empty where there is none.
    """

    mdd: int = 1
    daemon: str = ""
    state: State = "starting"
    started_utc: str = ""
    time_utc: str = ""
    elapsed_s: float = 0.0
    clock_step_s: float = 0.0
    run: RunStatus = RunStatus()
    runs: tuple[RunSummary, ...] = ()
    engine: EngineStatus = EngineStatus()
    frames: FrameCounts = FrameCounts()
    frames_total: FrameTotals = FrameTotals()
    frame_rate_hz: float = 0.0
    sweep: SweepProgress = SweepProgress()
    queues: dict[str, QueueDepth] = {}
    latencies: dict[str, Latency] = {}
    volumes: VolumeCounts = VolumeCounts()
    quality: Quality = Quality()
    learned: Learned | None = None
    adaptive: str = ""
    sureness: Sureness | None = None
    memory_mb: dict[str, float] = {}
    disk_free_bytes: int | None = None
    history: dict[str, tuple[float, ...]] = {}
    alarms: tuple[Alarm, ...] = ()
    notes: tuple[Note, ...] = ()
    sessions: tuple[str, ...] = ()
    session: str = ""
    preview: Preview | None = None

    @property
    def shown_run(self) -> RunSummary | None:
        """The summary of `run`, while it is open."""
        return next((each for each in self.runs if each.id == self.run.id), None)

    @property
    def backlog_s(self) -> float | None:
        """Time that the engine takes for the waiting sweeps, s; None if nothing is known yet."""
        total = self.latencies.get("total")
        return None if total is None else total.p50 * sum(run.waiting for run in self.runs)
