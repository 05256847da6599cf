"""What goes where, and in which order, when a run file is filled: the recorder's hand.

Owns the run's files (`segment.Segment`) and the book of what is in them (`run_book.RunBook`). Used by one
thread at a time, the recorder's once it runs, but for `read_frames`.

Invariants of the file
- A frame counts when its `seq` is there, which is written last: pixels, figures, then seq. A slot that has
  a frame keeps it.
- A volume's voxels and figures are written before its status says "written". With `durable` each of the two
  steps is forced to the disk. What is written stays written: a later mark for the same time point changes
  nothing.
- Everything may be done twice: the book changes after the file, so an attempt that a full disk broke off is
  simply made again.
- A run longer than one file goes on in the next one; one that was cut when it was closed is made longer
  first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.run_book import Key, RunBook
from microdiffusion.daemon.segment import Segment
from microdiffusion.daemon.seq_set import SeqSet
from microdiffusion.daemon.voxels import VoxelWriter
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.recorded_sweep import FrameRows
from microdiffusion.run_file import (
    LEDGER_COLUMNS,
    REASON_BYTES,
    SERVED,
    STAGES,
    Closed,
    Ledger,
    RunPlan,
    Status,
    position_prefix,
    runtime_code,
    segment_path,
)
from microdiffusion.run_header import RunHeader
from microdiffusion.run_schema import (
    ENGINE_BYTES,
    EVENT_KIND_BYTES,
    EVENT_ROOM,
    SENDER_COLUMNS,
    SENDER_ROOM,
    UNPLACED_ROOM,
)
from microdiffusion.sweep import Frame, Reconstruction, Sweep

_TRIM_MOST_BYTES = 1 << 30  # a second or three of copying at the end of a run
_OPEN_FILES = 4  # those before are opened again for what comes late
_MOST_SEGMENTS_AHEAD = 10  # a sweep number further on than this is a mistake, not an outage


@dataclass(frozen=True, slots=True)
class Written:
    """A volume that can be read from the disk, and how long after its last frame (s).

    `later`: it was reconstructed from the recorded frames, so the latency is not that of the live view.
    """

    sweep: int
    channel: int
    position: int
    latency_s: float
    later: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A time point's file, group, index there, and how to find it in the book."""

    segment: Segment
    prefix: str
    index: tuple[int, ...]
    part: int
    t: int


class RunWriter:
    """Fills a run's files. Made for a new run, or by `reopened`; then `start`.

    Parameters
    ----------
    path : Path
        The run's first file.
    plan : RunPlan
        Of that file.
    config : RecorderConfig
    """

    def __init__(self, path: Path, plan: RunPlan, config: RecorderConfig) -> None:
        self.path = path
        self.header: RunHeader = plan.header
        self.live = plan.live
        self.unplaced = 0
        self.ledger = Ledger()
        self.senders = np.full((SENDER_ROOM, len(SENDER_COLUMNS)), -1, np.int64)
        self.last_time_s = 0.0
        self.book = RunBook(len(plan.header.channels), plan.frames_per_sweep)
        self._plan = plan
        self._durable = config.durable
        self._segments: list[Segment] = []
        self._unplaced_seqs: list[int] = []
        self._events = 0
        self._live_counters: dict[tuple[int, int], int] = {}
        self._began_s = time.monotonic()
        self._voxels = VoxelWriter()

    @classmethod
    def reopened(cls, path: Path, config: RecorderConfig) -> RunWriter:
        """Return a writer that goes on with a run file; nothing is written before `start`.

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
        writer = cls(path, first.layout.plan, config)
        try:
            writer._take_over(first)
        except BaseException:
            first.close()
            writer.close()
            raise
        return writer

    @property
    def paths(self) -> list[Path]:
        """The run's files so far."""
        return [segment.path for segment in self._segments]

    def received(self) -> SeqSet:
        """Return the `seq` of every frame that the run has."""
        seqs = np.union1d(self.book.seqs(), np.array(self._unplaced_seqs, np.int64))
        return SeqSet(seqs.tolist())

    def start(self) -> None:
        """Create the first file, or say in all of them that the run goes on.

        Raises
        ------
        InputFileError, NoRoomError, DiskError
            The file exists, there is no room for it, or it cannot be written.
        """
        if not self._segments:
            self._append(Segment.create(self.path, self._plan))
            return
        for segment in self._segments:
            segment.write("mdd/closed", (), Closed.OPEN)
            if segment not in self._segments[-_OPEN_FILES:]:
                segment.park()
        self._mend_counts()
        self.write_event("run", "the run is gone on with")

    def write_frame(self, frame: Frame) -> None:
        """Write a frame into its slot; one without a slot of its own is counted."""
        info = frame.info
        key = (info.sweep, info.channel, info.position)
        # The slot first: no file is made for a frame that has none.
        place = self._place(key) if 0 <= info.index < self._plan.frames_per_sweep else None
        if place is None:
            self._unplace(info.seq)
            return
        book = self.book.session(place.part, info.position)
        there = int(book.seq[place.t, info.channel, info.index]) - 1
        if there >= 0:
            if there != info.seq:
                self._unplace(info.seq)
            return
        segment, prefix, index = place.segment, place.prefix, place.index
        slot = (*index, info.index)
        received = int(book.received[place.t, info.channel]) + 1
        expected = max(int(book.expected[place.t, info.channel]), info.count)
        pixels = np.ascontiguousarray(frame.pixels, segment.layout.regions[f"{prefix}projections"].dtype)
        checksum = frame.crc32 if frame.crc32 is not None else crc32(pixels.reshape(-1).view(np.uint8).data)
        segment.write(f"{prefix}projections", slot, pixels)
        segment.write(f"{prefix}mdd/frames/crc32", slot, checksum)
        segment.write(f"{prefix}mdd/frames/held_out", slot, info.held_out)
        segment.write(f"{prefix}mdd/frames/camera_time_s", slot, info.camera_time_s)
        segment.write(f"{prefix}mdd/frames/z_um", slot, info.z_um)
        segment.write(f"{prefix}mdd/frames_received", index, received)
        if expected != book.expected[place.t, info.channel]:
            segment.write(f"{prefix}mdd/frames_expected", index, expected)
        if book.status[place.t, info.channel] != Status.EMPTY:  # it came after all
            segment.write(f"{prefix}mdd/frames_missing", index, max(expected - received, 0))
        segment.write(f"{prefix}mdd/frames/seq", slot, info.seq)
        self.book.add_frame(key, info.index, info.seq, info.count)
        self.last_time_s = max(self.last_time_s, info.camera_time_s)

    def write_volume(
        self,
        key: Key,
        result: Reconstruction,
        *,
        acquired_s: float,
        received_s: float,
        effort: int,
        later: bool,
    ) -> Written | None:
        """Write a volume; None where its time point has one, has no place, or the volume is not finite."""
        place = self._place(key)
        if place is None:
            return None
        status = self._status(key, place)
        if status is Status.WRITTEN:
            return None
        later = later or status is not Status.EMPTY
        segment, prefix, index = place.segment, place.prefix, place.index
        checksum = self._voxels.write(segment, f"{prefix}volume", index, result.volume)
        if checksum < 0:
            self.settle(key, Status.FAILED, "the volume held values that are not finite")
            return None
        figures = _figures(result) | {
            "acquired_s": acquired_s,
            "crc32": checksum,
            "effort": effort,
            "later": int(later),
        }
        for name, value in figures.items():
            segment.write(f"{prefix}mdd/{name}", index, value)
        if self._durable:
            segment.force()
        self.settle(key, Status.WRITTEN, "")
        if self._durable:
            segment.force()
        latency_s = time.monotonic() - received_s
        segment.write(f"{prefix}mdd/latency_s", index, latency_s)
        return Written(*key, latency_s, later)

    def write_live(self, sweep: Sweep, result: Reconstruction, newest_seq: int) -> None:
        """Write a rolling volume into the buffer that nobody reads, then count on."""
        header = self.header
        if not (0 <= sweep.channel < len(header.channels) and 0 <= sweep.position < len(header.positions)):
            return
        segment, prefix = self._segments[0], position_prefix(sweep.position)
        session = (sweep.channel, sweep.position)
        channel = () if len(header.channels) == 1 else (sweep.channel,)
        if session not in self._live_counters:
            self._live_counters[session] = int(segment.read(f"{prefix}live/counter", channel))
        counter = self._live_counters[session] + 1
        index = (counter % 2, *channel)
        checksum = self._voxels.write(segment, f"{prefix}live/volume", index, result.volume)
        if checksum < 0:
            return
        values = {
            "sweep": sweep.sweep,
            "newest_seq": newest_seq,
            "time_s": sweep.time_s,
            "crc32": checksum,
        }
        for name, value in values.items():
            segment.write(f"{prefix}live/{name}", index, value)
        segment.write(f"{prefix}live/counter", channel, counter)
        self._live_counters[session] = counter

    def settle(self, key: Key, status: Status, reason: str) -> None:
        """Give a time point its status: reason and counts first."""
        place = self._place(key)
        if place is None or self._status(key, place) is Status.WRITTEN:
            return
        _, channel, position = key
        book = self.book.session(place.part, position)
        missing = int(book.expected[place.t, channel]) - int(book.received[place.t, channel])
        segment, prefix, index = place.segment, place.prefix, place.index
        segment.write(f"{prefix}mdd/reason", index, _text(reason, REASON_BYTES))
        segment.write(f"{prefix}mdd/frames_missing", index, max(missing, 0))
        segment.write(f"{prefix}mdd/status", index, status)
        self.book.settle(key, status)

    def write_ledger(self, ledger: Ledger, senders: NDArray[np.int64] | None = None) -> None:
        """Write where the frames went, and what each sender said; received and unplaced are counted here."""
        if senders is not None:
            self._segments[0].write("mdd/senders", (), senders)
            self.senders = senders
        settled = ledger.settled(received=self.book.placed + self.unplaced, unplaced=self.unplaced)
        self._segments[0].write("mdd/ledger", (), settled.array())
        self.ledger = settled

    def write_engine(self, provenance: Mapping[str, str]) -> None:
        """Write what the engine said of itself; of very long texts only the beginning."""
        values = {key: str(value)[:500] for key, value in provenance.items()}
        while len(text := json.dumps(values).encode()) > ENGINE_BYTES:
            values.popitem()
        self._segments[0].write("mdd/engine", (), np.array(text, f"S{ENGINE_BYTES}"))

    def write_event(self, kind: str, text: str) -> None:
        """Write something worth knowing, over the oldest one where all room is used."""
        first, row = self._segments[0], (self._events % EVENT_ROOM,)
        first.write("mdd/events/time_s", row, time.monotonic() - self._began_s)
        first.write("mdd/events/kind", row, _text(kind, EVENT_KIND_BYTES))
        first.write("mdd/events/text", row, _text(text, REASON_BYTES))
        first.write("mdd/events/count", (), self._events + 1)
        self._events += 1

    def read_frames(self, key: Key, waiting: Sequence[Frame] = ()) -> FrameRows | None:
        """Return the slots of a sweep, with those that wait to be written; None: no room for it. Any thread.

        Raises
        ------
        DiskError
            The file cannot be read.
        """
        sweep, channel, position = key
        header, frames = self.header, self._plan.frames_per_sweep
        if sweep < 0 or not (0 <= channel < len(header.channels) and 0 <= position < len(header.positions)):
            return None
        if sweep < self.book.stop:
            number, t = self.book.part_of(sweep)
            index = (t,) if len(header.channels) == 1 else (t, channel)
            prefix = position_prefix(position)

            def read(name: str) -> Any:
                return self._segments[number].read(prefix + name, index)

            # What has its seq is whole; so that is read first.
            seq = read("mdd/frames/seq")
            rows = FrameRows(
                z_um=read("mdd/frames/z_um"),
                time_s=read("mdd/frames/camera_time_s"),
                held_out=read("mdd/frames/held_out") != 0,
                seq=seq,
                pixels=read("projections"),
                expected=int(read("mdd/frames_expected")),
            )
        elif waiting:
            nan = np.full(frames, np.nan)
            absent = np.full(frames, -1, np.int64)
            pixels = np.zeros((frames, *header.shape[1:]), header.dtype)
            rows = FrameRows(nan, nan.copy(), np.zeros(frames, bool), absent, pixels, 0)
        else:
            return None
        for frame in waiting:
            rows.put(frame)
        return rows

    def finish(self) -> None:
        """Give every time point its status, close the files, trim the last one to what was used."""
        for key, begun in self.book.gaps():
            reason = (
                "the run ended before this sweep was reconstructed"
                if begun
                else "no frame of this sweep came"
            )
            self.settle(key, Status.LOST, reason)
        self.write_ledger(self.ledger)
        for segment in self._segments:
            segment.write("mdd/closed", (), Closed.CLOSED)
            if self._durable:
                segment.force()
            if segment is not self._segments[-1]:
                segment.close()
        last = self._segments[-1]
        used = self.book.last_sweep + 1 - last.layout.plan.first_time_point
        last.trim(max(used, 1), most_bytes=_TRIM_MOST_BYTES)

    def close(self) -> None:
        """Close the files as they are."""
        for segment in self._segments:
            segment.close()

    def _status(self, key: Key, place: _Place) -> Status:
        _, channel, position = key
        return Status(int(self.book.session(place.part, position).status[place.t, channel]))

    def _unplace(self, seq: int) -> None:
        """Count a frame without a place; its number is kept, so that it is known when it comes again."""
        first = self._segments[0]
        if self.unplaced < UNPLACED_ROOM:
            first.write("mdd/unplaced_seq", (self.unplaced,), seq)
        received = self.book.placed + self.unplaced + 1
        ledger = self.ledger.settled(received=received, unplaced=self.unplaced + 1)
        first.write("mdd/ledger", (), ledger.array())
        self.ledger = ledger
        self.unplaced += 1

    def _place(self, key: Key) -> _Place | None:
        """Return a time point's place; None where the run has none for it.

        Raises
        ------
        NoRoomError, DiskError
            A further file is needed and cannot be made.
        """
        sweep, channel, position = key
        header = self.header
        if (
            sweep < 0
            or (header.sweeps is not None and sweep >= header.sweeps)
            or not 0 <= channel < len(header.channels)
            or not 0 <= position < len(header.positions)
            or sweep >= self.book.stop + _MOST_SEGMENTS_AHEAD * self._plan.planned
        ):
            return None
        while sweep >= self.book.stop:
            self._make_room()
        part, t = self.book.part_of(sweep)
        index = (t,) if len(header.channels) == 1 else (t, channel)
        return _Place(self._segments[part], position_prefix(position), index, part, t)

    def _make_room(self) -> None:
        """Make the last file as long as it was planned, or else begin a further one."""
        last = self._segments[-1]
        plan = last.layout.plan
        if plan.time_points < plan.planned and last.lengthen(plan.planned, most_bytes=_TRIM_MOST_BYTES):
            self.book.lengthen_last(plan.planned)
            return
        number, first = len(self._segments), self.book.stop
        room = self._plan.planned
        if self.header.sweeps is not None:
            room = min(room, self.header.sweeps - first)
        further = replace(
            self._plan, segment=number, first_time_point=first, time_points=room, planned_time_points=room
        )
        self._append(Segment.create(segment_path(self.path, number), further))

    def _append(self, segment: Segment) -> None:
        if self._segments:
            # Further files are alike: their layouts are kept once.
            latest = self._segments[-1].layout
            if latest.regions == segment.layout.regions:
                segment.layout = replace(segment.layout, regions=latest.regions)
        for older in self._segments[:-_OPEN_FILES]:
            older.park()
        self._segments.append(segment)
        plan = segment.layout.plan
        self.book.add_part(plan.first_time_point, plan.time_points)

    def _take_over(self, first: Segment) -> None:
        """Take in the files of a run that is there, and what they hold."""
        segment: Segment | None = first
        while segment is not None:
            plan, number = segment.layout.plan, len(self._segments)
            if (plan.header, plan.segment, plan.first_time_point, plan.frames_per_sweep) != (
                self.header,
                number,
                self.book.stop,
                self._plan.frames_per_sweep,
            ):
                segment.close()
                raise InputFileError(
                    f"{segment.path} is not part {number} of run {self.header.run_id}: "
                    "give the run's first file, with its own further files beside it."
                )
            self._append(segment)
            self._load(segment, number)
            following = segment_path(self.path, number + 1)
            segment = Segment.open(following) if following.is_file() else None
        self._load_run(first)

    def _load(self, segment: Segment, number: int) -> None:
        for position in range(len(self.header.positions)):
            prefix = position_prefix(position)
            seq = segment.read(f"{prefix}mdd/frames/seq")
            status = segment.read(f"{prefix}mdd/status")
            expected = segment.read(f"{prefix}mdd/frames_expected")
            self.book.load(number, position, {"status": status, "expected": expected, "seq": seq})
            times = segment.read(f"{prefix}mdd/frames/camera_time_s")[seq >= 0]
            self.last_time_s = max(self.last_time_s, float(np.max(times, initial=0.0)))

    def _load_run(self, first: Segment) -> None:
        columns = first.read("mdd/ledger").tolist()
        self.senders = first.read("mdd/senders")
        ledger = Ledger(**dict(zip(LEDGER_COLUMNS, columns, strict=True)))
        unplaced = first.read("mdd/unplaced_seq")
        self._unplaced_seqs = unplaced[unplaced >= 0].tolist()
        self.unplaced = max(ledger.unplaced, len(self._unplaced_seqs))
        self.ledger = ledger.settled(received=self.book.placed + self.unplaced, unplaced=self.unplaced)
        self._events = max(int(first.read("mdd/events/count")), 0)
        elapsed_s = _seconds_since(self._plan.created_utc)
        if self._events:  # a clock that was set back must not put an event before the one it follows
            times = first.read("mdd/events/time_s")
            elapsed_s = max(elapsed_s, float(times[(self._events - 1) % EVENT_ROOM]))
        self._began_s = time.monotonic() - elapsed_s

    def _mend_counts(self) -> None:
        """Write the counts of frames anew where a kill came between a frame and its count."""
        for number, segment in enumerate(self._segments):
            for position in range(len(self.header.positions)):
                prefix = position_prefix(position)
                book = self.book.session(number, position)
                on_disk = segment.read(f"{prefix}mdd/frames_received").reshape(book.received.shape)
                for t, channel in np.argwhere(on_disk != book.received).tolist():
                    index = (t,) if len(self.header.channels) == 1 else (t, channel)
                    received = int(book.received[t, channel])
                    segment.write(f"{prefix}mdd/frames_received", index, received)
                    if book.status[t, channel] != Status.EMPTY:
                        missing = max(int(book.expected[t, channel]) - received, 0)
                        segment.write(f"{prefix}mdd/frames_missing", index, missing)


def _text(text: str, room: int) -> NDArray[np.bytes_]:
    """Return the text cut to whole characters within `room` bytes."""
    return np.array(text.encode(errors="replace")[:room].decode(errors="ignore").encode(), f"S{room}")


def _seconds_since(created_utc: str) -> float:
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(created_utc)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _figures(result: Reconstruction) -> dict[str, Any]:
    """Return what is kept of a reconstruction besides its voxels, by dataset below /mdd."""
    seconds = {stage: 0.0 for stage in STAGES if stage in result.seconds}
    for stage, value in result.seconds.items():
        name = stage if stage in STAGES else "other"
        seconds[name] = seconds.get(name, 0.0) + value
    served = SERVED.index(result.served) if result.served in SERVED else 0
    return {
        "served": served,
        "residual": result.residual,
        "held_out_error": result.held_out_error,
        "inr_iterations": result.inr_iterations,
        "network_weight": result.network_weight,
        "merged": int(result.merged),
        "runtime": runtime_code(result.runtime),
        **{f"seconds/{stage}": value for stage, value in seconds.items()},
        **{
            f"held_out_errors/{name}": value
            for name, value in result.candidate_errors.items()
            if name in SERVED[1:]
        },
    }
