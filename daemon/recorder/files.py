"""The files of a run: which time point is kept in which, room for more, and files that are there already.

Owns the run's files (`segment.Segment`) and the index of what is in them (`index.RunIndex`), which the writer
keeps. A run longer than one file continues in a further one; a file that was trimmed when it was closed is
lengthened first. Few files are open at a time. Used by one thread at a time, the recorder's once it runs,
except for `read_frames`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.daemon.recorder.disk import free_bytes, open_files, size_text
from microdiffusion.daemon.recorder.index import Key, PositionIndex, RunIndex
from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.frames import Frame
from microdiffusion.runfile import (
    REASON_BYTES,
    Closed,
    FrameTable,
    RunParts,
    RunPlan,
    Status,
    file_bytes,
    position_prefix,
    segment_path,
)

_TRIM_MOST_BYTES = 1 << 30
_BROKEN_OFF = np.array(b"its volume was being written when mdd was killed", f"S{REASON_BYTES}")
_AHEAD = 10  # a sweep that is more files further on is a mistake, not an outage


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a time point in the run's files.

    Attributes
    ----------
    key : Key
    segment : Segment
        Its file.
    prefix : str
        The group of its position there.
    index : tuple of int
        Of the time point, below that: (t,) or (t, channel).
    known : PositionIndex
        The index of that position in that file; `row` is the time point's row there.
    row : (t, channel)
    """

    key: Key
    segment: Segment
    prefix: str
    index: tuple[int, ...]
    known: PositionIndex
    row: tuple[int, int]

    @property
    def status(self) -> Status:
        """The time point's status."""
        return Status(int(self.known.status[self.row]))

    @property
    def received(self) -> int:
        """Number of frames it has."""
        return int(self.known.received[self.row])

    @property
    def expected(self) -> int:
        """Number of frames it should have, by what those say; 0: there are none."""
        return int(self.known.expected[self.row])

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of a dataset's numbers."""
        return self.segment.layout.regions[self.prefix + name].dtype


class RunFiles:
    """The files of a run. Made by `create` or `open`.

    Attributes
    ----------
    path : Path
        The run's first file.
    plan : RunPlan
        Of that file.
    segments : list of Segment
        The files so far.
    index : RunIndex
    last_time_s : float
        Camera time of the newest frame.
    """

    def __init__(self, first: Segment, *, most_bytes: int) -> None:
        self.path = first.path
        self.plan = first.layout.plan
        self.segments: list[Segment] = []
        self.index = RunIndex(len(self.plan.header.channels), self.plan.frames_per_sweep)
        self.last_time_s = 0.0
        self._most_bytes = most_bytes
        self._append(first)

    @classmethod
    def create(cls, path: Path, plan: RunPlan, *, most_bytes: int) -> RunFiles:
        """Create the first file of a run, with less room than planned where `most_bytes` do not hold it."""
        return cls(Segment.create(path, _fitted(plan, most_bytes)), most_bytes=most_bytes)

    @classmethod
    def open(cls, path: Path, *, most_bytes: int) -> RunFiles:
        """Open the files of a run that is there; nothing is written before `resume`."""
        with contextlib.closing(RunParts(path)) as parts:
            parts.require_all()
        first = Segment.open(path)
        if first.layout.plan.segment:
            raise _foreign(first, 0, first.layout.plan)
        files = cls(first, most_bytes=most_bytes)
        try:
            files._load(0)
            while (further := segment_path(path, len(files.segments))).is_file():
                files._append(files._belonging(Segment.open(further)))
                files._load(len(files.segments) - 1)
        except BaseException:
            files.close()
            raise
        return files

    def resume(self) -> None:
        """Mark all files as open, and complete what a kill interrupted."""
        self._count_files()
        # The last one first: a run is closed if its last file is, wherever this is interrupted.
        for segment in reversed(self.segments):
            segment.write("mdd/closed", (), Closed.OPEN)
            if segment not in self.segments[-open_files() :]:
                segment.park()
        for number, segment in enumerate(self.segments):
            for position in range(len(self.plan.header.positions)):
                self._complete(number, position)
            if segment not in self.segments[-open_files() :]:
                segment.park()

    def check(self, sweep: int | None = None) -> None:
        """Make sure that the run's files have their names: the first one and that of a sweep, or all.

        Raises
        ------
        DiskError
            One was renamed, removed, replaced or cut.
        """
        wanted = self.segments
        if sweep is not None:
            wanted = self.segments[:1]
            if 0 <= sweep < self.index.stop and (part := self.index.part_of(sweep)[0]):
                wanted = [*wanted, self.segments[part]]
        for segment in wanted:
            segment.check()

    def rescue(self) -> list[str]:
        """Give the content of files that have lost their names other ones; return a sentence for each.

        The others follow, so that the run's files are found beside its first one.
        """
        numbers = range(len(self.segments))
        path = self.path.with_name(f"{self.path.stem}_rescued{self.path.suffix}")
        tried = 1
        while any(segment_path(path, number).exists() for number in numbers):
            tried += 1
            path = self.path.with_name(f"{self.path.stem}_rescued_{tried}{self.path.suffix}")
        used = self.index.last_sweep + 1 - self.segments[-1].layout.plan.first_time_point
        told: list[str] = []
        there: dict[int, Segment] = {}
        for number, segment in enumerate(self.segments):
            room = max(used, 1) if number == numbers[-1] else segment.layout.plan.time_points
            try:
                told.append(segment.rescue(segment_path(path, number), room))
                there[number] = segment
            except DiskError as error:
                told.append(str(error))
        return [text for text in [*told, self._gather(there, path)] if text]

    @staticmethod
    def _gather(there: Mapping[int, Segment], other: Path) -> str:
        """Name files after the first one, or all after `other` where such a name is taken; say so."""
        for first in (there[0].path, other) if 0 in there else ():
            moves = [(each, segment_path(first, number)) for number, each in there.items()]
            moves = [(segment, target) for segment, target in moves if segment.path != target]
            if any(target.exists() for _, target in moves):
                continue
            for segment, target in moves:
                try:
                    segment.move(target)
                except OSError as error:
                    return f"Rename {segment.path.name} to {target.name}: mdd could not ({error.strerror})."
            return f"All that there is of the run goes by {first} now." if moves else ""
        return ""

    def place(self, key: Key) -> Place | None:
        """Return a time point's place; None where the run has none for it."""
        sweep, _, _ = key
        if not self._is_possible(key) or sweep >= self.index.stop + _AHEAD * self.plan.planned:
            return None
        while sweep >= self.index.stop:
            self._make_room()
        return self._place(key)

    def read_frames(self, key: Key, waiting: Sequence[Frame] = ()) -> FrameTable | None:
        """Return the slots of a sweep, with queued frames; None: the run has no place for it. Any thread."""
        if not self._is_possible(key):
            return None
        if key[0] < self.index.stop:
            place = self._place(key)

            def read(name: str) -> Any:
                return place.segment.read(place.prefix + name, place.index)

            rows = FrameTable.read(read, self.plan.minor)
        elif waiting:
            header = self.plan.header
            pixels = np.zeros((self.plan.frames_per_sweep, *header.shape[1:]), header.dtype)
            rows = FrameTable.empty(pixels)
        else:
            return None
        for frame in waiting:
            rows.put(frame)
        return rows

    def short_of_room(self) -> str:
        """Return a warning where the next file of the run would find no room; empty: all is well.

        It is given from the middle of a file on, while there is time to make room.
        """
        last, sweeps = self.segments[-1].layout.plan, self.plan.header.sweeps
        used = self.index.last_sweep + 1 - last.first_time_point
        if 2 * used < last.time_points or (sweeps is not None and sweeps <= self.index.stop):
            return ""
        needed = file_bytes(self._further())
        try:
            free = free_bytes(self.path)
        except OSError:  # writing reports what is wrong with the disk
            return ""
        if needed <= free:
            return ""
        return (
            f"room for {max(last.time_points - used, 0)} more sweeps: then the run needs {size_text(needed)} "
            f"and the disk has {size_text(free)}; free some"
        )

    def finish(self, *, durable: bool) -> None:
        """Mark all files as closed; trim the last one to what was used."""
        for segment in self.segments:
            segment.write("mdd/closed", (), Closed.CLOSED)
            if durable:
                segment.force()
            segment.check()
            if segment is not self.segments[-1]:
                segment.close()
        last = self.segments[-1]
        used = self.index.last_sweep + 1 - last.layout.plan.first_time_point
        last.trim(max(used, 1), most_bytes=_TRIM_MOST_BYTES)

    def close(self) -> None:
        """Close the files as they are."""
        with contextlib.ExitStack() as closing:
            for segment in self.segments:
                closing.callback(segment.close)

    def _is_possible(self, key: Key) -> bool:
        """Return whether the run has such a sweep, channel and position."""
        sweep, channel, position = key
        header = self.plan.header
        return (
            sweep >= 0
            and (header.sweeps is None or sweep < header.sweeps)
            and 0 <= channel < len(header.channels)
            and 0 <= position < len(header.positions)
        )

    def _place(self, key: Key) -> Place:
        sweep, channel, position = key
        part, t = self.index.part_of(sweep)
        known = self.index.position(part, position)
        segment, prefix = self.segments[part], position_prefix(position)
        return Place(key, segment, prefix, self._at(t, channel), known, (t, channel))

    def _at(self, t: int, channel: int) -> tuple[int, ...]:
        return (t,) if len(self.plan.header.channels) == 1 else (t, channel)

    def _make_room(self) -> None:
        """Lengthen the last file to its planned length, or else create a further one."""
        self.check()  # nothing is begun in a folder that has taken its place
        last = self.segments[-1]
        plan = last.layout.plan
        if plan.planned > plan.time_points and last.lengthen(plan.planned, most_bytes=_TRIM_MOST_BYTES):
            self.index.lengthen_last(plan.planned)
            return
        further = self._further()
        self._append(Segment.create(segment_path(self.path, further.segment), further))
        self._count_files()

    def _count_files(self) -> None:
        """Say in the first file how many there are, when they have their names."""
        if "mdd/files" in self.segments[0].layout.regions:
            self.segments[0].write("mdd/files", (), len(self.segments))

    def _further(self) -> RunPlan:
        """Return the plan of the next file."""
        first, room = self.index.stop, self.plan.planned
        if self.plan.header.sweeps is not None:
            room = min(room, self.plan.header.sweeps - first)
        further = replace(self.plan, segment=len(self.segments), first_time_point=first, time_points=room)
        return _fitted(further, self._most_bytes)

    def _append(self, segment: Segment) -> None:
        if self.segments:
            # Further files are alike: they share one layout in memory.
            latest = self.segments[-1].layout
            if latest.regions == segment.layout.regions:
                segment.layout = replace(segment.layout, regions=latest.regions)
        for older in self.segments[: -open_files()]:
            older.park()
        self.segments.append(segment)
        self.index.add_part(segment.layout.plan)

    def _belonging(self, segment: Segment) -> Segment:
        """Return a further file if it is the next one of this run."""
        plan, number = segment.layout.plan, len(self.segments)
        expected = (self.plan.header, number, self.index.stop, self.plan.frames_per_sweep)
        if (plan.header, plan.segment, plan.first_time_point, plan.frames_per_sweep) != expected:
            raise _foreign(segment, number, self.plan)
        return segment

    def _load(self, number: int) -> None:
        """Load the index of a file."""
        segment = self.segments[number]
        for position in range(len(self.plan.header.positions)):
            prefix = position_prefix(position)
            status, expected, seq, times = (
                segment.read(f"{prefix}mdd/{name}")
                for name in ("status", "frames_expected", "frames/seq", "frames/camera_time_s")
            )
            self.index.load(number, position, status, expected, seq)
            self.last_time_s = max(self.last_time_s, float(np.max(times[seq >= 0], initial=0.0)))

    def _complete(self, number: int, position: int) -> None:
        """Write what a kill interrupted: a count of frames, the reason of a gap."""
        segment, prefix = self.segments[number], position_prefix(position)
        known, there = self.index.position(number, position), slice(segment.layout.plan.time_points)
        status, received = known.status[there], known.received[there]
        on_disk = segment.read(f"{prefix}mdd/frames_received").reshape(received.shape)
        for t, channel in np.argwhere(on_disk != received).tolist():
            place = self._place((segment.layout.plan.first_time_point + t, channel, position))
            segment.write(f"{prefix}mdd/frames_received", place.index, place.received)
            if place.status is not Status.EMPTY:
                missing = max(place.expected - place.received, 0)
                segment.write(f"{prefix}mdd/frames_missing", place.index, missing)
        reasons = segment.read(f"{prefix}mdd/reason").reshape(status.shape)
        for t, channel in np.argwhere((status > Status.WRITTEN) & (reasons == b"")).tolist():
            segment.write(f"{prefix}mdd/reason", self._at(t, channel), _BROKEN_OFF)


def _foreign(segment: Segment, number: int, run: RunPlan) -> InputFileError:
    segment.close()
    return InputFileError(
        f"{segment.path} is not part {number} of run {run.header.run_id}: "
        "give the run's first file, with its own further files beside it."
    )


def _fitted(plan: RunPlan, most_bytes: int) -> RunPlan:
    """Return the plan of a new file with as much room as `most_bytes` hold."""
    one = file_bytes(replace(plan, time_points=1))
    each = file_bytes(replace(plan, time_points=2)) - one
    room = max(1, min(plan.time_points, (most_bytes - one) // each + 1))
    return replace(plan, time_points=room, planned_time_points=room)
