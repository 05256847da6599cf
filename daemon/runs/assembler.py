"""From frames to sweeps: collects each session's frames and says when a sweep is whole, or given up.

A pure state machine: no thread, no clock (times are handed in), so every order of arrival can be tested.
Frames are placed by their index, whatever order they come in. Sweeps of a session come out in their order. A
sweep is over when all of its frames are there, when a later sweep of its session has been whole for a moment
(a damaged frame is sent again, and may come after it), when nothing came for the timeout although something
later did (a long exposure is no loss), or when the run ends. An incomplete sweep is still used if at least
half of its slabs are there.

`window` returns the newest sweep's worth of frames after each of them: the current sweep's, and of the one
before what the current one has not reached yet. Once it was asked, each session's last sweep is kept for it.

Memory is bounded in bytes over all sessions, and in sweeps of each: beyond, the sweep of the session that was
silent for longest is over (its raw frames are in the run file).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from microdiffusion.frames import Frame, StagePositions, Sweep
from microdiffusion.header import RunHeader

LEAST_SHARE = 0.5
"""Of a sweep's slabs: with fewer, too much of the volume would be invented."""
GRACE_S = 0.3
"""Time that a whole sweep waits for the missing frames of those before it."""
MAX_OPEN = 2048
"""Sweeps of one session that may be open at the same time."""
MAX_GAP = 100
"""Sweeps in a row that are reported although no frame of them came; the run file knows of the others."""
MOST_FRAMES = 1 << 20
"""Frames of one sweep: what a message can number."""
FRAME_COST = 1024
"""Bytes that a frame takes besides its pixels: counts where frames are tiny."""
WINDOW_SHARE = 0.2
"""Share of the time that putting windows together may take; beyond it there are fewer of them."""


def room_for(header: RunHeader, least_bytes: int) -> int:
    """Return a limit for `Assembler`: at least `least_bytes`, and two sweeps of each channel of a run."""
    height, width = header.shape[1:]
    frame = height * width * np.dtype(header.dtype).itemsize + FRAME_COST
    return max(least_bytes, 2 * len(header.channels) * header.frames_per_sweep * frame)


def enough(seen: int, missing: int) -> bool:
    """Return whether so many slabs of a sweep are enough, where so many of its frames are missing."""
    return seen >= max(1, LEAST_SHARE * (seen + missing))


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
        """True where a frame is missing before one that came."""
        return max(self.frames, default=-1) >= len(self.frames)

    @property
    def nbytes(self) -> int:
        """Size of the pixels."""
        return sum(frame.pixels.nbytes for frame in self.frames.values())


@dataclass(slots=True)
class _Window:
    """A session's last sweep, kept for its rolling windows."""

    number: int = -1
    before: _Open | None = None  # the sweep `number`, which is over
    built_s: float = float("-inf")
    took_s: float = 0.0

    @property
    def nbytes(self) -> int:
        """Size of the pixels."""
        return self.before.nbytes if self.before else 0


class Assembler:
    """Collects the frames of one run.

    Parameters
    ----------
    timeout_s : float
        How long a sweep waits for its next frame.
    limit_bytes : int
        Most that the frames of open sweeps may take, unless one sweep of `most_frames` takes more.
    most_frames : int
        Most frames that a sweep should have.

    Attributes
    ----------
    missing, late : int
        Frames that never came, and that came after their sweep was over.
    """

    def __init__(
        self, timeout_s: float, *, limit_bytes: int = 1 << 30, most_frames: int = MOST_FRAMES
    ) -> None:
        self._timeout_s = timeout_s
        self._most_frames = most_frames
        self._limit = limit_bytes
        self._open: dict[tuple[int, int], dict[int, _Open]] = {}  # the session that was silent longest first
        self._next: dict[tuple[int, int], int] = {}
        self._windows: dict[tuple[int, int], _Window] = {}
        self._frames = 0
        self.missing = 0
        self.late = 0
        self._open_bytes = 0
        self._kept_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Size of the pixels of sweeps that are still open, and of those that are kept for windows."""
        return self._open_bytes + self._kept_bytes

    def start_at(self, channel: int, position: int, sweep: int) -> None:
        """Regard the sweeps of a session before `sweep` as over: the run is resumed."""
        self._next[channel, position] = sweep

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
        sweeps = self._open.pop(session, {})
        self._open[session] = sweeps  # the last one now
        current = sweeps.setdefault(info.sweep, _Open(info.count, frame.received_s))
        if info.index not in current.frames:
            current.frames[info.index] = frame
            self._open_bytes += frame.pixels.nbytes
            self._frames += 1
        current.last_s = frame.received_s
        current.count = max(current.count, info.count)
        if len(current.frames) < current.count:
            current.whole_s = None
        elif current.whole_s is None:
            current.whole_s = frame.received_s
        return [*self._close_due(session, frame.received_s), *self._give_up(session)]

    def window(self, channel: int, position: int) -> Sweep | None:
        """Return the newest sweep's worth of a session's frames, to be asked after `add`.

        None while there is no sweep's worth yet, where too many slabs are missing, and as often as putting
        windows together would take more than `WINDOW_SHARE` of the time.
        """
        session = (channel, position)
        sweeps = self._open.get(session)
        kept = self._windows.setdefault(session, _Window())
        if not sweeps:
            return None
        number = max(sweeps)
        current = sweeps[number]
        before = sweeps.get(number - 1) or (kept.before if kept.number == number - 1 else None)
        if before is None or current.last_s - kept.built_s < kept.took_s / WINDOW_SHARE:
            return None
        begun = time.perf_counter()
        frames = _joined(before.frames, current.frames)
        sweep = _sweep_of(number, session, frames, missing=max(0, before.count - len(frames)))
        kept.built_s, kept.took_s = current.last_s, time.perf_counter() - begun
        return sweep

    def tick(self, now_s: float) -> list[Sweep | LostSweep]:
        """Return the sweeps that waited too long for a frame, and those that waited for them."""
        over: list[Sweep | LostSweep] = []
        for session, sweeps in list(self._open.items()):
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
        for session, sweeps in list(self._open.items()):
            over.extend(self._close_up_to(session, max(sweeps)))
        self._windows.clear()
        self._kept_bytes = 0
        return over

    def _close_due(self, session: tuple[int, int], now_s: float) -> Iterator[Sweep | LostSweep]:
        """Yield whole sweeps whose turn it is, or that have waited long enough for those before them."""
        while True:
            due = [
                number
                for number, sweep in self._open.get(session, {}).items()
                if sweep.whole_s is not None
                and (number == self._next.get(session, 0) or now_s - sweep.whole_s > GRACE_S)
            ]
            if not due:
                return
            yield from self._close_up_to(session, min(due))

    def _give_up(self, session: tuple[int, int]) -> Iterator[Sweep | LostSweep]:
        """Yield what there is no room for, after a frame of `session` came."""
        while len(self._open.get(session, ())) > MAX_OPEN:
            why = f"and more than {MAX_OPEN} sweeps were incomplete at the same time"
            yield from self._close_up_to(session, min(self._open[session]), why)
        while self._open_bytes + FRAME_COST * self._frames > self._limit:
            stalest = next(iter(self._open))
            sweeps = self._open[stalest]
            if stalest == session and len(sweeps) == 1:
                (only,) = sweeps.values()
                if len(only.frames) <= self._most_frames:
                    return
            why = (
                f"and more than {self._limit / 1e6:.0f} MB of sweeps were incomplete at the same time: "
                "raise wire.receive_buffer_mb"
            )
            yield from self._close_up_to(stalest, min(sweeps), why)

    def _close_up_to(
        self, session: tuple[int, int], last: int, why: str | None = None
    ) -> Iterator[Sweep | LostSweep]:
        """Yield the sweeps up to `last`, which is open; `why` there was no waiting for more frames."""
        sweeps = self._open[session]
        expected = self._next.get(session, 0)
        for number in sorted(number for number in sweeps if number <= last):
            for nothing in range(expected, min(number, expected + MAX_GAP)):
                yield LostSweep(nothing, *session, 0, "no frame of this sweep came")
            expected = number + 1
            found = sweeps.pop(number)
            self._open_bytes -= found.nbytes
            self._frames -= len(found.frames)
            self._keep(number, session, found)
            yield self._close(number, session, found, why)
        self._next[session] = last + 1
        if not sweeps:
            del self._open[session]

    def _keep(self, number: int, session: tuple[int, int], found: _Open) -> None:
        """Keep a sweep that is over for the windows of the next one, where windows are asked for."""
        kept = self._windows.pop(session, None)
        if kept is None:
            return
        self._windows[session] = kept  # the last one now
        self._kept_bytes += found.nbytes - kept.nbytes
        kept.number, kept.before = number, found
        while self._kept_bytes > self._limit // 2 and len(self._windows) > 1:
            self._kept_bytes -= self._windows.pop(next(iter(self._windows))).nbytes

    def _close(
        self, number: int, session: tuple[int, int], found: _Open, why: str | None
    ) -> Sweep | LostSweep:
        missing = found.count - len(found.frames)
        self.missing += missing
        sweep = _sweep_of(number, session, found.frames, missing)
        if sweep is not None:
            return sweep
        why = why or "too few for a volume"
        return LostSweep(
            number, *session, missing, f"only {len(found.frames)} of {found.count} frames came, {why}"
        )


def _joined(before: Mapping[int, Frame], current: Mapping[int, Frame]) -> Mapping[int, Frame]:
    """Return the frames of a sweep, and of the one before what it has not reached yet.

    By their places in the sweep; where these lie at other depths from sweep to sweep, by their depths.
    """
    if not any(frame.info.decision for frame in (*before.values(), *current.values())):
        return {**before, **current}
    deepest = max(
        frame.info.stage for frame in current.values() if not frame.info.held_out or len(current) == 1
    )
    left = {-1 - place: frame for place, frame in before.items() if frame.info.stage > deepest}
    return {**left, **current}


def _sweep_of(
    number: int, session: tuple[int, int], found: Mapping[int, Frame], missing: int
) -> Sweep | None:
    """Return frames as a sweep; None where too few of its slabs are there."""
    frames = sorted(found.values(), key=lambda frame: (frame.info.stage, frame.info.index))
    seen = [frame for frame in frames if not frame.info.held_out]
    held = [frame for frame in frames if frame.info.held_out]
    if not enough(len(seen), missing):
        return None
    return Sweep(
        sweep=number,
        channel=session[0],
        position=session[1],
        stage=StagePositions.of(frame.info.stage for frame in seen),
        projections=_stack(seen, frames[0].pixels.shape),
        held_out_stage=StagePositions.of(frame.info.stage for frame in held),
        held_out=_stack(held, frames[0].pixels.shape),
        missing=missing,
        time_s=max(frame.info.camera_time_s for frame in frames),
        received_s=max(frame.received_s for frame in frames),
        slots=np.array([frame.info.index for frame in (*seen, *held)], np.int64),
    )


def _stack(frames: list[Frame], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the pixels of frames (Y, X) as (M, Y, X) float32, without a copy in between."""
    stack = np.empty((len(frames), *shape), np.float32)
    for place, frame in zip(stack, frames, strict=True):
        place[:] = frame.pixels
    return stack
