"""In-memory index of a run: arrays that mirror the statuses, counts and frames in its files.

It is filled as the recorder writes, or from the files when a run is resumed. The file is written first, the
index second, so the index never claims what is not in the file. It takes 14 bytes a time point and 8 a frame,
for each position that is used. Written by the recorder's thread only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from microdiffusion.runfile import RunPlan, Status

Key = tuple[int, int, int]  # sweep, channel, position


@dataclass(slots=True)
class PositionIndex:
    """A position in one file: arrays (T, C), and `seq` (T, C, M), which holds seq + 1; 0: no frame."""

    status: NDArray[np.uint8]
    expected: NDArray[np.uint32]
    received: NDArray[np.uint32]
    seq: NDArray[np.int64]


@dataclass(slots=True)
class _Part:
    """One file: its first sweep, its time points now, and those that it may be lengthened to."""

    first: int
    time_points: int
    planned: int
    positions: dict[int, PositionIndex] = field(default_factory=dict)


class RunIndex:
    """The index of a run, by file and position.

    Attributes
    ----------
    counts : dict of Status to int
        Number of time points (of each channel and position) of each status; EMPTY is not counted.
    placed : int
        Frames that have their place in the file.
    """

    def __init__(self, channels: int, frames_per_sweep: int) -> None:
        self.counts = dict.fromkeys(Status, 0)
        self.placed = 0
        self._channels = channels
        self._frames = frames_per_sweep
        self._parts: list[_Part] = []
        self._last: dict[tuple[int, int], int] = {}  # channel, position -> highest sweep seen
        self._last_frame = -1

    @property
    def stop(self) -> int:
        """The sweep after the last one that there is room for."""
        return self._parts[-1].first + self._parts[-1].time_points if self._parts else 0

    @property
    def last_sweep(self) -> int:
        """The highest sweep that a frame, a volume or a mark was of; -1: none."""
        return max(self._last.values(), default=-1)

    @property
    def next_sweep(self) -> int:
        """The sweep after the highest one with a frame."""
        return self._last_frame + 1

    def add_part(self, plan: RunPlan) -> None:
        """Add the next file of the run."""
        self._parts.append(
            _Part(plan.first_time_point, plan.time_points, max(plan.planned, plan.time_points))
        )

    def lengthen_last(self, time_points: int) -> None:
        """Note that the last file has been lengthened."""
        self._parts[-1].time_points = time_points

    def part_of(self, sweep: int) -> tuple[int, int]:
        """Return the number of the file that holds a sweep, and its time point there."""
        number = bisect_right(self._parts, sweep, key=lambda part: part.first) - 1
        return number, sweep - self._parts[number].first

    def position(self, part: int, position: int) -> PositionIndex:
        """Return the index of a position in a file."""
        positions = self._parts[part].positions
        if position not in positions:
            lead = (self._parts[part].planned, self._channels)
            positions[position] = PositionIndex(
                np.zeros(lead, np.uint8),
                np.zeros(lead, np.uint32),
                np.zeros(lead, np.uint32),
                np.zeros((*lead, self._frames), np.int64),
            )
        return positions[position]

    def row(self, key: Key) -> tuple[PositionIndex, tuple[int, int]]:
        """Return the index of a time point's position in its file, and its row there: (t, channel)."""
        sweep, channel, position = key
        part, t = self.part_of(sweep)
        return self.position(part, position), (t, channel)

    def load(
        self,
        part: int,
        position: int,
        status: NDArray[np.uint8],
        expected: NDArray[np.uint32],
        seq: NDArray[np.int64],
    ) -> None:
        """Load the arrays of a position from a file; `seq` is -1 where there is no frame."""
        first = self._parts[part].first
        status = status.reshape(-1, self._channels)
        seq = seq.reshape(*status.shape, self._frames)
        if not ((status != 0).any() or (seq >= 0).any()):
            return
        known, used = self.position(part, position), slice(len(status))
        known.status[used] = np.where(status <= max(Status), status, Status.EMPTY)
        known.expected[used] = expected.reshape(status.shape)
        known.seq[used] = np.maximum(seq, -1) + 1
        known.received[:] = np.count_nonzero(known.seq, axis=-1)
        self.placed += int(known.received.sum(dtype=np.int64))
        for code in Status:
            if code is not Status.EMPTY:
                self.counts[code] += int(np.count_nonzero(known.status == code))
        for channel in range(self._channels):
            seen = np.flatnonzero((known.status[:, channel] != 0) | (known.received[:, channel] > 0))
            if seen.size:
                self._note_sweep(first + int(seen[-1]), channel, position)
        frames = np.flatnonzero((known.received > 0).any(axis=1))
        if frames.size:
            self._last_frame = max(self._last_frame, first + int(frames[-1]))

    def seqs(self) -> NDArray[np.int64]:
        """Return the seq of every frame in the file, ascending."""
        parts = [known.seq[known.seq > 0] - 1 for part in self._parts for known in part.positions.values()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))

    def add_frame(self, key: Key, slot: int, seq: int, count: int) -> None:
        """Note that a frame was written."""
        known, row = self.row(key)
        known.seq[(*row, slot)] = seq + 1
        known.received[row] += 1
        known.expected[row] = max(int(known.expected[row]), count)
        self.placed += 1
        self._last_frame = max(self._last_frame, key[0])
        self._note_sweep(*key)

    def settle(self, key: Key, status: Status) -> None:
        """Note the status of a time point."""
        known, row = self.row(key)
        before = Status(int(known.status[row]))
        if before is not Status.EMPTY:
            self.counts[before] -= 1
        self.counts[status] += 1
        known.status[row] = status
        self._note_sweep(*key)

    def last_sweep_of(self, channel: int, position: int) -> int:
        """Return the highest sweep of a session that a frame, a volume or a mark was of; -1: none."""
        return self._last.get((channel, position), -1)

    def is_whole(self, key: Key) -> bool:
        """Return whether all frames of a time point are there."""
        known, row = self.row(key)
        return bool(known.received[row] >= known.expected[row])

    def unfinished(self, wanted: Collection[Status]) -> list[Key]:
        """Return the time points that have frames and one of these statuses, oldest first."""
        found = [
            (part.first + t, channel, position)
            for part in self._parts
            for position, known in part.positions.items()
            for t, channel in np.argwhere(
                np.isin(known.status, [int(status) for status in wanted]) & (known.received > 0)
            ).tolist()
        ]
        return sorted(found)

    def gaps(self) -> list[tuple[Key, bool]]:
        """Return the time points without a status, up to each session's last; whether they have frames."""
        found: list[tuple[Key, bool]] = []
        for (channel, position), last in self._last.items():
            for number, part in enumerate(self._parts):
                known = self.position(number, position)
                used = min(max(last + 1 - part.first, 0), part.time_points)
                found.extend(
                    ((part.first + t, channel, position), bool(known.received[t, channel] > 0))
                    for t in np.flatnonzero(known.status[:used, channel] == Status.EMPTY).tolist()
                )
        return sorted(found)

    def forget(self) -> None:
        """Release everything but the counts of the run as a whole."""
        for part in self._parts:
            part.positions.clear()

    def _note_sweep(self, sweep: int, channel: int, position: int) -> None:
        key = (channel, position)
        self._last[key] = max(self._last.get(key, -1), sweep)
