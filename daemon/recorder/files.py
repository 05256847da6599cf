"""The files of a run: which time point lies in which, making room for more, taking over those that are there.

Owns the run's files (`segment.Segment`) and the book of what is in them (`index.RunIndex`), which
the writer keeps. A run longer than one file goes on in the next one; a file that was cut when it was
closed is made longer first. Few files are open at a time. Used by one thread at a time, the recorder's once
it runs, but for `read_frames`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.daemon.recorder.index import Key, RunIndex
from microdiffusion.daemon.recorder.segment import Segment, free_bytes, size_text
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.frames import Frame
from microdiffusion.runfile import (
    REASON_BYTES,
    Closed,
    FrameTable,
    RunPlan,
    Status,
    file_bytes,
    position_prefix,
    segment_path,
)

_TRIM_MOST_BYTES = 1 << 30
_BROKEN_OFF = np.array(b"its volume was being written when mdd was killed", f"S{REASON_BYTES}")
_OPEN_FILES = 4  # those before are opened again for what comes late
_AHEAD = 10  # a sweep that is more files further on is a mistake, not an outage


@dataclass(frozen=True, slots=True)
class Place:
    """A time point's file, group, index there, and how to find it in the book."""

    segment: Segment
    prefix: str
    index: tuple[int, ...]
    part: int
    t: int


class RunFiles:
    """The files of a run. Made for a new run, or by `reopened`.

    Parameters
    ----------
    path : Path
        The run's first file.
    plan : RunPlan
        Of that file; a new one gets less room where `most_bytes` do not hold it.
    most_bytes : int
        Most that one file may hold.

    Attributes
    ----------
    plan : RunPlan
    segments : list of Segment
        The files so far.
    book : RunIndex
    last_time_s : float
        Camera time of the newest frame.
    """

    def __init__(self, path: Path, plan: RunPlan, *, most_bytes: int) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self.plan = plan
        self.segments: list[Segment] = []
        self.book = RunIndex(len(plan.header.channels), plan.frames_per_sweep)
        self.last_time_s = 0.0

    @classmethod
    def reopened(cls, path: Path, *, most_bytes: int) -> RunFiles:
        """Return the files of a run that is there; nothing is written before `go_on`.

        Raises
        ------
        InputFileError, MissingFileError
            A file of the run is damaged, foreign, or absent.
        DiskError
            It cannot be opened for writing.
        """
        if not path.is_file():
            raise MissingFileError(f"There is no run file at {path}: check the path.")
        first = Segment.open(path)
        files = cls(path, first.layout.plan, most_bytes=most_bytes)
        try:
            files._take_over(first)
        except BaseException:
            first.close()
            files.close()
            raise
        return files

    def create(self) -> None:
        """Create the first file.

        Raises
        ------
        InputFileError, NoRoomError, DiskError
            It exists, there is no room for it, or it cannot be written.
        """
        self.plan = _fitted(self.plan, self._most_bytes)
        self._append(Segment.create(self.path, self.plan))

    def go_on(self) -> None:
        """Say in all files that the run goes on.

        Raises
        ------
        NoRoomError, DiskError
            They cannot be written.
        """
        # The last one first: a run whose last file is closed is closed, whenever this is broken off.
        for segment in reversed(self.segments):
            segment.write("mdd/closed", (), Closed.OPEN)
            if segment not in self.segments[-_OPEN_FILES:]:
                segment.park()
        self._mend()

    def place(self, key: Key) -> Place | None:
        """Return a time point's place; None where the run has none for it.

        Raises
        ------
        NoRoomError, DiskError
            A further file is needed and cannot be made.
        """
        sweep, channel, position = key
        header = self.plan.header
        if (
            sweep < 0
            or (header.sweeps is not None and sweep >= header.sweeps)
            or not 0 <= channel < len(header.channels)
            or not 0 <= position < len(header.positions)
            or sweep >= self.book.stop + _AHEAD * self.plan.planned
        ):
            return None
        while sweep >= self.book.stop:
            self._make_room()
        part, t = self.book.part_of(sweep)
        index = (t,) if len(header.channels) == 1 else (t, channel)
        return Place(self.segments[part], position_prefix(position), index, part, t)

    def _make_room(self) -> None:
        """Make the last file as long as it was planned, or else begin a further one."""
        last = self.segments[-1]
        plan = last.layout.plan
        if plan.planned > plan.time_points and last.lengthen(plan.planned, most_bytes=_TRIM_MOST_BYTES):
            self.book.lengthen_last(plan.planned)
            return
        further = self._further()
        self._append(Segment.create(segment_path(self.path, further.segment), further))

    def _further(self) -> RunPlan:
        """Return the plan of the next file."""
        first, room = self.book.stop, self.plan.planned
        if self.plan.header.sweeps is not None:
            room = min(room, self.plan.header.sweeps - first)
        further = replace(self.plan, segment=len(self.segments), first_time_point=first, time_points=room)
        return _fitted(further, self._most_bytes)

    def short_of_room(self) -> str:
        """Return a sentence where the next file of the run would find no room now; empty: all is well.

        Asked from the middle of a file on, while there is time to make room.
        """
        last, sweeps = self.segments[-1].layout.plan, self.plan.header.sweeps
        used = self.book.last_sweep + 1 - last.first_time_point
        if 2 * used < last.time_points or (sweeps is not None and sweeps <= self.book.stop):
            return ""
        needed = file_bytes(self._further())
        try:
            free = free_bytes(self.path)
        except OSError:  # a look ahead harms no run; writing tells what is wrong with the disk
            return ""
        if needed <= free:
            return ""
        return (
            f"room for {max(last.time_points - used, 0)} more sweeps: then the run needs {size_text(needed)} "
            f"and the disk has {size_text(free)}; free some"
        )

    def _append(self, segment: Segment) -> None:
        if self.segments:
            # Further files are alike: their layouts are kept once.
            latest = self.segments[-1].layout
            if latest.regions == segment.layout.regions:
                segment.layout = replace(segment.layout, regions=latest.regions)
        for older in self.segments[:-_OPEN_FILES]:
            older.park()
        self.segments.append(segment)
        plan = segment.layout.plan
        self.book.add_part(plan.first_time_point, plan.time_points)

    def read_frames(self, key: Key, waiting: Sequence[Frame] = ()) -> FrameTable | None:
        """Return the slots of a sweep, with those that wait to be written; None: no room for it. Any thread.

        Raises
        ------
        DiskError
            The file cannot be read.
        """
        sweep, channel, position = key
        header, frames = self.plan.header, self.plan.frames_per_sweep
        if sweep < 0 or not (0 <= channel < len(header.channels) and 0 <= position < len(header.positions)):
            return None
        if sweep < self.book.stop:
            number, t = self.book.part_of(sweep)
            index = (t,) if len(header.channels) == 1 else (t, channel)
            prefix = position_prefix(position)

            def read(name: str) -> Any:
                return self.segments[number].read(prefix + name, index)

            rows = FrameTable.read(read, self.plan.minor)
        elif waiting:
            rows = FrameTable.empty(np.zeros((frames, *header.shape[1:]), header.dtype))
        else:
            return None
        for frame in waiting:
            rows.put(frame)
        return rows

    def finish(self, *, durable: bool) -> None:
        """Say in all files that the run is closed; trim the last one to what was used."""
        for segment in self.segments:
            segment.write("mdd/closed", (), Closed.CLOSED)
            if durable:
                segment.force()
            if segment is not self.segments[-1]:
                segment.close()
        last = self.segments[-1]
        used = self.book.last_sweep + 1 - last.layout.plan.first_time_point
        last.trim(max(used, 1), most_bytes=_TRIM_MOST_BYTES)

    def close(self) -> None:
        """Close the files as they are.

        Raises
        ------
        DiskError
            The disk failed with one of them; the others are closed.
        """
        with contextlib.ExitStack() as closing:
            for segment in self.segments:
                closing.callback(segment.close)

    def _take_over(self, first: Segment) -> None:
        """Take in the files of a run that is there, and what they hold."""
        segment: Segment | None = first
        while segment is not None:
            plan, number = segment.layout.plan, len(self.segments)
            if (plan.header, plan.segment, plan.first_time_point, plan.frames_per_sweep) != (
                self.plan.header,
                number,
                self.book.stop,
                self.plan.frames_per_sweep,
            ):
                segment.close()
                raise InputFileError(
                    f"{segment.path} is not part {number} of run {self.plan.header.run_id}: "
                    "give the run's first file, with its own further files beside it."
                )
            self._append(segment)
            self._load(segment, number)
            following = segment_path(self.path, number + 1)
            segment = Segment.open(following) if following.is_file() else None

    def _load(self, segment: Segment, number: int) -> None:
        for position in range(len(self.plan.header.positions)):
            prefix = position_prefix(position)
            seq = segment.read(f"{prefix}mdd/frames/seq")
            status = segment.read(f"{prefix}mdd/status")
            expected = segment.read(f"{prefix}mdd/frames_expected")
            self.book.load(number, position, {"status": status, "expected": expected, "seq": seq})
            times = segment.read(f"{prefix}mdd/frames/camera_time_s")[seq >= 0]
            self.last_time_s = max(self.last_time_s, float(np.max(times, initial=0.0)))

    def _mend(self) -> None:
        """Write anew what a kill left behind: a count behind its frames, a gap without its reason."""
        for number, segment in enumerate(self.segments):
            for position in range(len(self.plan.header.positions)):
                prefix = position_prefix(position)
                book = self.book.session(number, position)
                on_disk = segment.read(f"{prefix}mdd/frames_received").reshape(book.received.shape)
                for t, channel in np.argwhere(on_disk != book.received).tolist():
                    index = (t,) if len(self.plan.header.channels) == 1 else (t, channel)
                    received = int(book.received[t, channel])
                    segment.write(f"{prefix}mdd/frames_received", index, received)
                    if book.status[t, channel] != Status.EMPTY:
                        missing = max(int(book.expected[t, channel]) - received, 0)
                        segment.write(f"{prefix}mdd/frames_missing", index, missing)
                reasons = segment.read(f"{prefix}mdd/reason").reshape(book.status.shape)
                for t, channel in np.argwhere((book.status > Status.WRITTEN) & (reasons == b"")).tolist():
                    index = (t,) if len(self.plan.header.channels) == 1 else (t, channel)
                    segment.write(f"{prefix}mdd/reason", index, _BROKEN_OFF)
            if segment not in self.segments[-_OPEN_FILES:]:
                segment.park()


def _fitted(plan: RunPlan, most_bytes: int) -> RunPlan:
    """Return the plan of a new file with as much room as `most_bytes` hold."""
    one = file_bytes(replace(plan, time_points=1))
    each = file_bytes(replace(plan, time_points=2)) - one
    room = max(1, min(plan.time_points, (most_bytes - one) // each + 1))
    return replace(plan, time_points=room, planned_time_points=room)
