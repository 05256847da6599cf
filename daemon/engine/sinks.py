"""A sweep on its way through the engine, and the run that takes what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from microdiffusion.errors import MddError
    from microdiffusion.frames import Reconstruction, Sweep
    from microdiffusion.header import RunHeader

Lane = Literal["sweep", "rolling", "later"]


@dataclass(slots=True, eq=False)
class SweepJob:
    """One sweep's way through the engine, from the queue to its run's sink.

    Attributes
    ----------
    effort : int
        0 full, 1 one evaluation of the network, 2 the INR without it.
    received_s, time_s : float
        `time.monotonic()` when its last frame came; that frame's camera time, s since the start of the run.
    newest_seq : int
        Of a rolling one: the newest frame in it; -1 where nobody said.
    sweep : Sweep or None
        Its projections; None where they have to be loaded.
    queued_s : float
        When it was handed in.
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
    def nbytes(self) -> int:
        """Size of its projections, as far as they are in memory."""
        return self.sweep.projections.nbytes + self.sweep.held_out.nbytes if self.sweep is not None else 0


class EngineSink(Protocol):
    """What a run does with the engine's answers. All but `lost` and `event` are called on its thread."""

    def volume(self, job: SweepJob, result: Reconstruction) -> bool:
        """Take a volume; False where there is no room yet."""
        ...

    def live(self, job: SweepJob, result: Reconstruction) -> object:
        """Take a rolling volume; where there is no room it is dropped."""
        ...

    def lost(self, job: SweepJob, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Take note that a sweep gets no volume."""
        ...

    def load(self, job: SweepJob) -> Sweep | None:
        """Return the frames of a sweep that was put off; None where they are not on the disk (yet)."""
        ...

    def event(self, kind: str, text: str) -> None:
        """Take note of what the engine does differently from now on: kind "effort", "backlog" or "engine"."""
        ...


@dataclass(slots=True, eq=False)
class ServedRun:
    """A run that the engine works for.

    `file` is its file's name; `failure` what its sink raised, which ends the work for this run alone;
    `behind`: some of its sweeps are put off.
    """

    header: RunHeader
    sink: EngineSink
    file: str
    failure: MddError | None = None
    behind: bool = False
