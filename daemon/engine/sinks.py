"""A sweep on its way through the engine, and the run that receives the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from microdiffusion.daemon.engine.placement import SessionName
from microdiffusion.frames import Reconstruction, Sweep
from microdiffusion.wire import SweepFeedback

Lane = Literal["sweep", "rolling", "later"]


@dataclass(slots=True, eq=False)
class SweepJob:
    """One sweep on its way through the engine.

    Attributes
    ----------
    effort : int
        0 full, 1 one evaluation of the network, 2 the INR without it.
    received_s, time_s : float
        `time.monotonic()` when its last frame arrived; that frame's camera time, s since the start of the
        run.
    newest_seq : int
        Of a rolling update: its newest frame.
    sweep : Sweep or None
        None where the projections have to be loaded from the run file.
    attempts : int
        How many engine processes died over it.
    """

    run_id: str
    sweep_number: int
    channel: int
    position: int
    lane: Lane = "sweep"
    effort: int = 0
    received_s: float = 0.0
    time_s: float = 0.0
    newest_seq: int = -1
    sweep: Sweep | None = None
    queued_s: float = 0.0
    attempts: int = 0

    @classmethod
    def of(cls, run_id: str, sweep: Sweep, *, lane: Lane, newest_seq: int = -1, now_s: float) -> SweepJob:
        """Return the job of a sweep."""
        return cls(
            run_id,
            sweep.sweep,
            sweep.channel,
            sweep.position,
            lane,
            received_s=sweep.received_s,
            time_s=sweep.time_s,
            newest_seq=newest_seq,
            sweep=sweep,
            queued_s=now_s,
        )

    @property
    def session(self) -> SessionName:
        """Its session."""
        return SessionName(self.run_id, self.channel, self.position)

    @property
    def nbytes(self) -> int:
        """Size of its projections in memory."""
        return self.sweep.projections.nbytes + self.sweep.held_out.nbytes if self.sweep is not None else 0


class EngineSink(Protocol):
    """The receiver of a run's results; all but `lost`, `left`, `event` are called on the engine's thread."""

    def volume(self, job: SweepJob, result: Reconstruction) -> bool:
        """Take a volume; return False where there is no room yet."""

    def live(self, job: SweepJob, result: Reconstruction) -> object:
        """Take a rolling volume, or drop it where there is no room."""

    def feedback(self, feedback: SweepFeedback) -> None:
        """Take what a sweep of an adaptive run showed, before its volume is there."""

    def lost(self, job: SweepJob, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Note that a sweep gets no volume."""

    def left(self, jobs: Sequence[SweepJob], reason: str) -> None:
        """Note that these sweeps, at least one, get no volume any more: they are skipped."""

    def load(self, job: SweepJob) -> Sweep | None:
        """Return the frames of a sweep that was put off; None where they are not on disk (yet)."""

    def event(self, kind: str, text: str) -> None:
        """Note a change in how the engine works: kind "effort", "backlog" or "engine"."""
