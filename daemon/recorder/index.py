"""What the recorder knows of every time point without asking the disk: arrays that mirror the run file.

Owns statuses, counts of frames and which slots are taken, for each file (part) of the run and each position;
filled as the recorder writes, or from the file when a run is gone on with. The file is written first, the
book second, so the book never claims what is not in the file. Memory is bounded by the room of the files:
14 bytes a time point and 8 a frame, taken as it is used. Written by the recorder's thread alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.runfile import Status

Key = tuple[int, int, int]  # sweep, channel, position

_ARRAYS = ("status", "expected", "received", "seq")


@dataclass(slots=True)
class SessionBook:
    """A position in one part: arrays (T, C), and `seq` (T, C, M), which holds seq + 1; 0: no frame."""

    status: NDArray[np.uint8]
    expected: NDArray[np.uint32]
    received: NDArray[np.uint32]
    seq: NDArray[np.int64]

    @classmethod
    def empty(cls, time_points: int, channels: int, frames: int) -> SessionBook:
        """Return the book of a position that nothing is known of."""
        lead = (time_points, channels)
        return cls(
            np.zeros(lead, np.uint8),
            np.zeros(lead, np.uint32),
            np.zeros(lead, np.uint32),
            np.zeros((*lead, frames), np.int64),
        )

    def lengthen(self, time_points: int) -> None:
        """Make room for more time points."""
        for name in _ARRAYS:
            old = getattr(self, name)
            new = np.zeros((time_points, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


@dataclass(slots=True)
class _Part:
    first: int
    time_points: int
    sessions: dict[int, SessionBook] = field(default_factory=dict)


class RunIndex:
    """The books of a run, by part and position.

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
        self._last: dict[tuple[int, int], int] = {}  # channel, position -> highest sweep heard of
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

    def add_part(self, first: int, time_points: int) -> None:
        """Take in the next file of the run."""
        self._parts.append(_Part(first, time_points))

    def lengthen_last(self, time_points: int) -> None:
        """Take in that the last file has become longer."""
        self._parts[-1].time_points = time_points
        for session in self._parts[-1].sessions.values():
            session.lengthen(time_points)

    def part_of(self, sweep: int) -> tuple[int, int]:
        """Return the number of the part that holds a sweep, and its time point there."""
        number = bisect_right(self._parts, sweep, key=lambda part: part.first) - 1
        return number, sweep - self._parts[number].first

    def session(self, part: int, position: int) -> SessionBook:
        """Return the book of a position, begun where it is not there yet."""
        sessions = self._parts[part].sessions
        if position not in sessions:
            room = self._parts[part].time_points
            sessions[position] = SessionBook.empty(room, self._channels, self._frames)
        return sessions[position]

    def load(self, part: int, position: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take over what a file holds of a position: status, expected, and seq with -1 for no frame."""
        first = self._parts[part].first
        status = columns["status"].reshape(-1, self._channels)
        seq = columns["seq"].reshape(*status.shape, self._frames)
        if not ((status != 0).any() or (seq >= 0).any()):
            return
        book = self.session(part, position)
        book.status[:] = np.where(status <= max(Status), status, Status.EMPTY)
        book.expected[:] = columns["expected"].reshape(status.shape)
        book.seq[:] = np.maximum(seq, -1) + 1
        book.received[:] = np.count_nonzero(book.seq, axis=-1)
        self.placed += int(book.received.sum(dtype=np.int64))
        for code in Status:
            if code is not Status.EMPTY:
                self.counts[code] += int(np.count_nonzero(book.status == code))
        for channel in range(self._channels):
            heard = np.flatnonzero((book.status[:, channel] != 0) | (book.received[:, channel] > 0))
            if heard.size:
                self._hear(first + int(heard[-1]), channel, position)
        frames = np.flatnonzero((book.received > 0).any(axis=1))
        if frames.size:
            self._last_frame = max(self._last_frame, first + int(frames[-1]))

    def seqs(self) -> NDArray[np.int64]:
        """Return the seq of every frame in the file, ascending."""
        parts = [book.seq[book.seq > 0] - 1 for part in self._parts for book in part.sessions.values()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))

    def add_frame(self, key: Key, index: int, seq: int, count: int) -> None:
        """Note that a frame has its place."""
        sweep, channel, position = key
        number, t = self.part_of(sweep)
        book = self.session(number, position)
        book.seq[t, channel, index] = seq + 1
        book.received[t, channel] += 1
        book.expected[t, channel] = max(int(book.expected[t, channel]), count)
        self.placed += 1
        self._last_frame = max(self._last_frame, sweep)
        self._hear(sweep, channel, position)

    def settle(self, key: Key, status: Status) -> None:
        """Note the status of a time point."""
        sweep, channel, position = key
        number, t = self.part_of(sweep)
        book = self.session(number, position)
        before = Status(int(book.status[t, channel]))
        if before is not Status.EMPTY:
            self.counts[before] -= 1
        self.counts[status] += 1
        book.status[t, channel] = status
        self._hear(sweep, channel, position)

    def last_sweep_of(self, channel: int, position: int) -> int:
        """Return the highest sweep of a session that a frame, a volume or a mark was of; -1: none."""
        return self._last.get((channel, position), -1)

    def is_whole(self, key: Key) -> bool:
        """Return whether all frames of a time point are there."""
        sweep, channel, position = key
        number, t = self.part_of(sweep)
        book = self.session(number, position)
        return bool(book.received[t, channel] >= book.expected[t, channel])

    def unfinished(self, wanted: Collection[Status]) -> list[Key]:
        """Return the time points that have frames and one of these statuses, oldest first."""
        found = [
            (part.first + t, channel, position)
            for part in self._parts
            for position, book in part.sessions.items()
            for t, channel in np.argwhere(
                np.isin(book.status, [int(status) for status in wanted]) & (book.received > 0)
            ).tolist()
        ]
        return sorted(found)

    def gaps(self) -> list[tuple[Key, bool]]:
        """Return time points without status that a session came to or past; whether they have frames."""
        found: list[tuple[Key, bool]] = []
        for (channel, position), last in self._last.items():
            for number, part in enumerate(self._parts):
                book = self.session(number, position)
                used = max(last + 1 - part.first, 0)
                found.extend(
                    ((part.first + t, channel, position), bool(book.received[t, channel] > 0))
                    for t in np.flatnonzero(book.status[:used, channel] == Status.EMPTY).tolist()
                )
        return sorted(found)

    def forget(self) -> None:
        """Let go of everything but the figures of the run as a whole."""
        for part in self._parts:
            part.sessions.clear()

    def _hear(self, sweep: int, channel: int, position: int) -> None:
        key = (channel, position)
        self._last[key] = max(self._last.get(key, -1), sweep)
