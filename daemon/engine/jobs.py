"""One sweep's way through the engine, from the queue to its run's sink. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from microdiffusion.frames import Sweep

Lane = Literal["sweep", "rolling", "later"]


@dataclass(slots=True, eq=False)
class Job:
    """One sweep's way through the engine.

    Attributes
    ----------
    run_id : str
    sweep_number, channel, position : int
    lane : "sweep", "rolling" or "later"
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
    def of(cls, run_id: str, sweep: Sweep, *, lane: Lane, newest_seq: int = -1, now_s: float) -> Job:
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
