"""From frames to sweeps: collects each session's frames and says when a sweep is whole, or given up.

A pure state machine: no thread, no clock of its own (times are handed in), so every order of arrival can
be tested. Frames are placed by their index, whatever order they come in. Sweeps of a session come out in
their order. A sweep is over when all of its frames are there, when a later sweep of its session has been
whole for a moment (a damaged frame is sent again, and may come after it), when nothing came for the
timeout although something later did (a long exposure is no loss), or when the run ends. An incomplete
sweep is still used if at least half of its slabs are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from microdiffusion.sweep import Frame, Sweep

LEAST_SHARE = 0.5
"""Of a sweep's slabs: with fewer, too much of the volume would be invented."""

GRACE_S = 0.3
"""How long a whole sweep waits for the missing frames of those before it."""


@dataclass(frozen=True, slots=True)
class LostSweep:
    """A sweep that cannot be reconstructed, and why."""

    sweep: int
    channel: int
    position: int
    missing: int
    reason: str


@dataclass(slots=True)
class _Open:
    """A sweep whose frames are still coming."""

    count: int
    last_s: float
    whole_s: float | None = None
    frames: dict[int, Frame] = field(default_factory=dict)

    @property
    def has_hole(self) -> bool:
        """Whether a later frame of this sweep came than one that is missing."""
        return max(self.frames, default=-1) >= len(self.frames)


class Assembler:
    """Collects the frames of one run.

    Parameters
    ----------
    timeout_s : float
        How long a sweep waits for its next frame.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._open: dict[tuple[int, int], dict[int, _Open]] = {}
        self._next: dict[tuple[int, int], int] = {}
        self.missing = 0
        self.late = 0

    @property
    def waiting_bytes(self) -> int:
        """Size of the frames of sweeps that are still open."""
        return sum(
            frame.pixels.nbytes
            for sweeps in list(self._open.values())
            for sweep in list(sweeps.values())
            for frame in list(sweep.frames.values())
        )

    def progress(self, channel: int, position: int, sweep: int) -> tuple[int, int]:
        """Return how many frames of a sweep are there, and how many it has; (0, 0) when it is not open."""
        found = self._open.get((channel, position), {}).get(sweep)
        return (len(found.frames), found.count) if found else (0, 0)

    def add(self, frame: Frame) -> list[Sweep | LostSweep]:
        """Take a frame; return what is over by it, oldest first.

        A frame of a sweep that is over is counted as late and not used; a second frame of the same index
        replaces nothing.
        """
        info = frame.info
        session = (info.channel, info.position)
        if info.sweep < self._next.get(session, 0):
            self.late += 1
            return []
        sweeps = self._open.setdefault(session, {})
        current = sweeps.setdefault(info.sweep, _Open(info.count, frame.received_s))
        current.frames.setdefault(info.index, frame)
        current.last_s = frame.received_s
        if current.whole_s is None and len(current.frames) == current.count:
            current.whole_s = frame.received_s
        return list(self._close_due(session, frame.received_s))

    def tick(self, now_s: float) -> list[Sweep | LostSweep]:
        """Return the sweeps that waited too long for a frame, and those that waited for these."""
        over: list[Sweep | LostSweep] = []
        for session, sweeps in self._open.items():
            stale = [
                number
                for number, sweep in sweeps.items()
                if now_s - sweep.last_s > self._timeout_s and (sweep.has_hole or number < max(sweeps))
            ]
            if stale:
                over.extend(self._close_up_to(session, max(stale)))
            over.extend(self._close_due(session, now_s))
        return over

    def finish(self) -> list[Sweep | LostSweep]:
        """Return what is still open: the run has ended."""
        over: list[Sweep | LostSweep] = []
        for session, sweeps in self._open.items():
            if sweeps:
                over.extend(self._close_up_to(session, max(sweeps)))
        return over

    def _close_due(self, session: tuple[int, int], now_s: float) -> Iterator[Sweep | LostSweep]:
        """Yield whole sweeps whose turn it is, or that have waited long enough for those before them."""
        sweeps = self._open[session]
        while True:
            due = [
                number
                for number, sweep in sweeps.items()
                if sweep.whole_s is not None
                and (number == self._next.get(session, 0) or now_s - sweep.whole_s > GRACE_S)
            ]
            if not due:
                return
            yield from self._close_up_to(session, min(due))

    def _close_up_to(self, session: tuple[int, int], last: int) -> Iterator[Sweep | LostSweep]:
        sweeps = self._open[session]
        for number in range(self._next.get(session, 0), last + 1):
            found = sweeps.pop(number, None)
            if found is None:
                yield LostSweep(number, *session, 0, "no frame of this sweep came")
            else:
                yield self._close(number, session, found)
        self._next[session] = last + 1

    def _close(self, number: int, session: tuple[int, int], found: _Open) -> Sweep | LostSweep:
        missing = found.count - len(found.frames)
        self.missing += missing
        frames = sorted(found.frames.values(), key=lambda frame: frame.info.z_um)
        seen = [frame for frame in frames if not frame.info.held_out]
        held = [frame for frame in frames if frame.info.held_out]
        if len(seen) < max(1, LEAST_SHARE * (len(seen) + missing)):
            return LostSweep(
                number,
                *session,
                missing,
                f"only {len(frames)} of {found.count} frames came, too few for a volume",
            )
        shape = frames[0].pixels.shape
        return Sweep(
            sweep=number,
            channel=session[0],
            position=session[1],
            z_um=np.array([frame.info.z_um for frame in seen]),
            projections=np.stack([frame.pixels for frame in seen]).astype(np.float32),
            held_out_z_um=np.array([frame.info.z_um for frame in held]),
            held_out=np.stack([frame.pixels for frame in held]).astype(np.float32)
            if held
            else np.empty((0, *shape), np.float32),
            missing=missing,
            time_s=max(frame.info.camera_time_s for frame in frames),
            received_s=max(frame.received_s for frame in frames),
        )
