"""What goes where, and in which order, when a run file is filled: the recorder's hand.

Keeps the run's files (`files.RunFiles`), their book, and the notes (`run_data.RunData`). Used by one
thread at a time, the recorder's once it runs.

Invariants of the file
- A frame counts when its `seq` is there, which is written last: pixels, figures, then seq. A slot that has
  a frame keeps it.
- A volume's voxels, its coarser levels and figures are written before its status says "written". With
  `durable` each of the two steps is forced to the disk. What is written stays written: a later mark for the
  same time point changes nothing.
- Everything may be done twice: the book changes after the file, so an attempt that a full disk broke off is
  simply made again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.recorder.files import Place, RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.run_data import RunData, cut
from microdiffusion.daemon.recorder.voxels import VoxelWriter
from microdiffusion.errors import RunError
from microdiffusion.frames import FIGURES, Frame, Reconstruction, Sweep
from microdiffusion.runfile import (
    CHECKED,
    REASON_BYTES,
    SERVED,
    STAGES,
    Ledger,
    Status,
    position_prefix,
    recorded_fields,
    runtime_code,
)

_LOOK_S = 5.0  # between two looks at the free space


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


class RunWriter:
    """Fills a run's files; `start` first.

    Parameters
    ----------
    files : RunFiles
        Of a new run, or of one that is there.
    config : RecorderConfig
    """

    def __init__(self, files: RunFiles, config: RecorderConfig) -> None:
        self.files = files
        self.book = files.book
        self.live = files.plan.live
        self.short_of_room = ""  # what is told of a disk that will be full; read from any thread
        self._looked_s = -_LOOK_S
        self._durable = config.durable
        self._notes: RunData | None = None
        self._unplaced_seqs = np.empty(0, np.int64)
        self._live_counters: dict[tuple[int, int], int] = {}
        self._voxels = VoxelWriter()
        self._frame_fields = recorded_fields(files.plan.minor)
        if files.segments:
            self._notes, self._unplaced_seqs = RunData.read(files.segments[0], placed=self.book.placed)

    @property
    def notes(self) -> RunData:
        """What the run has once; there as soon as its first file is."""
        if self._notes is None:
            raise RunError("The run file is not there yet: start the recorder first.")
        return self._notes

    def received(self) -> FrameRanges:
        """Return the `seq` of every frame that the run has."""
        seqs = np.union1d(self.book.seqs(), self._unplaced_seqs)
        return FrameRanges(seqs.tolist())

    def start(self) -> None:
        """Create the first file, or say in all of them that the run goes on.

        Raises
        ------
        InputFileError, NoRoomError, DiskError
            The file exists, there is no room for it, or it cannot be written.
        """
        if self.files.segments:
            self.files.go_on()
            self.notes.write_event("run", "the run is gone on with")
        else:
            self.files.create()
            self._notes = RunData(self.files.segments[0])

    def write_frame(self, frame: Frame) -> None:
        """Write a frame into its slot; one without a slot of its own is counted."""
        info = frame.info
        key = (info.sweep, info.channel, info.position)
        # The slot first: no file is made for a frame that has none.
        place = self.files.place(key) if 0 <= info.index < self.files.plan.frames_per_sweep else None
        if place is None:
            self.notes.unplace(info.seq, placed=self.book.placed)
            return
        book = self.book.session(place.part, info.position)
        there = int(book.seq[place.t, info.channel, info.index]) - 1
        if there >= 0:
            if there != info.seq:
                self.notes.unplace(info.seq, placed=self.book.placed)
            return
        segment, prefix, index = place.segment, place.prefix, place.index
        slot = (*index, info.index)
        received = int(book.received[place.t, info.channel]) + 1
        expected = max(int(book.expected[place.t, info.channel]), info.count)
        pixels = np.ascontiguousarray(frame.pixels, segment.layout.regions[f"{prefix}projections"].dtype)
        checksum = frame.crc32 if frame.crc32 is not None else crc32(pixels.reshape(-1).view(np.uint8).data)
        segment.write(f"{prefix}projections", slot, pixels)
        kept = {field.name: field.plain(info) for field in self._frame_fields} | {"crc32": checksum}
        for name, value in kept.items():
            if name != "seq":
                segment.write(f"{prefix}mdd/frames/{name}", slot, value)
        checked = np.array(tuple(kept[name] for name in CHECKED.names or ()), CHECKED)
        segment.write(f"{prefix}mdd/frames/check", slot, crc32(checked.tobytes()))
        segment.write(f"{prefix}mdd/frames_received", index, received)
        if expected != book.expected[place.t, info.channel]:
            segment.write(f"{prefix}mdd/frames_expected", index, expected)
        if book.status[place.t, info.channel] != Status.EMPTY:  # it came after all
            segment.write(f"{prefix}mdd/frames_missing", index, max(expected - received, 0))
        segment.write(f"{prefix}mdd/frames/seq", slot, info.seq)
        self.book.add_frame(key, info.index, info.seq, info.count)
        self.files.last_time_s = max(self.files.last_time_s, info.camera_time_s)

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
        place = self.files.place(key)
        if place is None:
            return None
        status = self._status(key, place)
        if status is Status.WRITTEN:
            return None
        later = later or status is not Status.EMPTY
        segment, prefix, index = place.segment, place.prefix, place.index
        sums = self._voxels.write(
            segment, f"{prefix}volume", index, result.volume, coarser=f"{prefix}pyramid/"
        )
        if sums is None:
            self.settle(key, Status.FAILED, "the volume held values that are not finite")
            return None
        figures = _figures(result, self.files.plan.minor) | {
            "acquired_s": acquired_s,
            "crc32": sums[0],
            **{f"pyramid_crc32/{level}": value for level, value in enumerate(sums[1:], 1)},
            **self._write_uncertainty(place, result),
            "effort": effort,
            "later": int(later),
        }
        for name, value in figures.items():
            segment.write(f"{prefix}mdd/{name}", index, value)
        self._write_used(place, key, result)
        latency_s = self._write_latency(place, received_s)
        if self._durable:
            segment.force()
            latency_s = self._write_latency(place, received_s)  # a power cut leaves one of the two
        self.settle(key, Status.WRITTEN, "")
        if self._durable:
            segment.force()
        return Written(*key, latency_s, later)

    @staticmethod
    def _write_latency(place: Place, received_s: float) -> float:
        """Write how long a volume took until now, s; its status follows at once."""
        latency_s = time.monotonic() - received_s
        place.segment.write(f"{place.prefix}mdd/latency_s", place.index, latency_s)
        return latency_s

    def _write_uncertainty(self, place: Place, result: Reconstruction) -> dict[str, int]:
        """Write the uncertainty where there is one and room for it, and return its figures."""
        if not place.segment.layout.plan.uncertainty:
            return {}
        sums = None
        if result.uncertainty is not None:
            sums = self._voxels.write(
                place.segment, f"{place.prefix}uncertainty", place.index, result.uncertainty
            )
        if sums is None:  # absent, or not finite
            return {"has_uncertainty": 0, "uncertainty_crc32": 0}
        return {"has_uncertainty": 1, "uncertainty_crc32": sums[0]}

    def _write_used(self, place: Place, key: Key, result: Reconstruction) -> None:
        """Write which frames a volume is made of."""
        _, channel, position = key
        there = self.book.session(place.part, position).seq[place.t, channel] > 0
        used = there.astype(np.uint8)
        if result.slots is not None:  # a frame may have come after its sweep was closed
            used[:] = 0
            used[result.slots[result.slots < len(used)]] = 1
        place.segment.write(f"{place.prefix}mdd/frames/used", place.index, used)

    def write_live(self, sweep: Sweep, result: Reconstruction, newest_seq: int) -> None:
        """Write a rolling volume into the buffer that nobody reads, then count on."""
        header = self.files.plan.header
        if not (0 <= sweep.channel < len(header.channels) and 0 <= sweep.position < len(header.positions)):
            return
        segment, prefix = self.files.segments[0], position_prefix(sweep.position)
        session = (sweep.channel, sweep.position)
        channel = () if len(header.channels) == 1 else (sweep.channel,)
        if session not in self._live_counters:
            self._live_counters[session] = int(segment.read(f"{prefix}live/counter", channel))
        counter = self._live_counters[session] + 1
        index = (counter % 2, *channel)
        sums = self._voxels.write(segment, f"{prefix}live/volume", index, result.volume)
        if sums is None:
            return
        values = {
            "sweep": sweep.sweep,
            "newest_seq": newest_seq,
            "time_s": sweep.time_s,
            "crc32": sums[0],
        }
        for name, value in values.items():
            segment.write(f"{prefix}live/{name}", index, value)
        segment.write(f"{prefix}live/counter", channel, counter)
        self._live_counters[session] = counter

    def settle(self, key: Key, status: Status, reason: str) -> None:
        """Give a time point its status: reason and counts first."""
        place = self.files.place(key)
        if place is None or self._status(key, place) is Status.WRITTEN:
            return
        _, channel, position = key
        book = self.book.session(place.part, position)
        missing = int(book.expected[place.t, channel]) - int(book.received[place.t, channel])
        segment, prefix, index = place.segment, place.prefix, place.index
        segment.write(f"{prefix}mdd/reason", index, cut(reason, REASON_BYTES))
        segment.write(f"{prefix}mdd/frames_missing", index, max(missing, 0))
        segment.write(f"{prefix}mdd/status", index, status)
        self.book.settle(key, status)
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Say in the file, once, when the disk will be too small for the run's next file."""
        short = self.files.short_of_room()
        if short and not self.short_of_room:
            self.notes.write_event("disk", short)
        self.short_of_room = short

    def write_ledger(self, ledger: Ledger, senders: NDArray[np.int64] | None) -> None:
        """Write where the frames went, and what each sender said; received is counted here."""
        self.notes.write_ledger(ledger, placed=self.book.placed, senders=senders)

    def finish(self) -> None:
        """Give every time point its status, close the files, trim the last one to what was used."""
        for key, begun in self.book.gaps():
            reason = (
                "the run ended before this sweep was reconstructed"
                if begun
                else "no frame of this sweep came"
            )
            self.settle(key, Status.LOST, reason)
        self.notes.write_ledger(self.notes.ledger, placed=self.book.placed)
        self.files.finish(durable=self._durable)

    def _status(self, key: Key, place: Place) -> Status:
        _, channel, position = key
        return Status(int(self.book.session(place.part, position).status[place.t, channel]))


def _figures(result: Reconstruction, minor: int) -> dict[str, Any]:
    """Return what is kept of a reconstruction besides its voxels, by dataset below /mdd."""
    seconds = {stage: 0.0 for stage in STAGES if stage in result.seconds}
    for stage, value in result.seconds.items():
        name = stage if stage in STAGES else "other"
        seconds[name] = seconds.get(name, 0.0) + value
    errors = {name: error for name, error in result.candidate_errors.items() if name in SERVED[1:]}
    return {
        **{one.name: one.plain(result) for one in FIGURES if one.column and one.column.since <= minor},
        "served": SERVED.index(result.served) if result.served in SERVED else 0,
        "runtime": runtime_code(result.runtime),
        **{f"seconds/{stage}": value for stage, value in seconds.items()},
        **{f"held_out_errors/{name}": error for name, error in errors.items()},
    }
