"""Writes frames, volumes and statuses into the files of a run, in an order that is always consistent.

Keeps the run's files (`files.RunFiles`) with their index, and what the run has once (`run_data.RunData`).
Used by one thread at a time, the recorder's once it runs.

Invariants of the file
- A frame counts once its `seq` is there, which is written last: pixels, figures, then seq. A slot that has
  a frame keeps it.
- A volume's voxels, its coarser levels and figures are written before its status says "written". With
  `durable` each of the two steps is flushed to the disk. A written time point stays written: a later mark for
  it changes nothing.
- Everything may be done twice: the index changes after the file, so an attempt that a full disk interrupted
  is simply repeated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.recorder.files import Place, RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.run_data import RunData, cut
from microdiffusion.daemon.recorder.voxels import VoxelWriter
from microdiffusion.frames import FIGURES, Frame, FrameInfo, Reconstruction, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import (
    CHECKED,
    DECISION_BYTES,
    REASON_BYTES,
    SERVED,
    STAGES,
    UNPLACED_ROOM,
    Status,
    position_prefix,
    recorded_fields,
    runtime_code,
)

_LOOK_S = 5.0  # between two checks of the free space


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
    """Fills a run's files.

    Parameters
    ----------
    files : RunFiles
    config : RecorderConfig

    Attributes
    ----------
    data : RunData
        What the run has once.
    live : bool
        Whether there is room for rolling volumes.
    short_of_room : str
        What the disk will soon have too little room for, in a sentence; empty: all is well. Any thread.
    """

    def __init__(self, files: RunFiles, config: RecorderConfig) -> None:
        self.files = files
        self.index = files.index
        self.data = RunData(files.segments[0], placed=self.index.placed)
        self.live = files.plan.live
        self.short_of_room = ""
        self._looked_s = -_LOOK_S
        self._durable = config.durable
        self._live_counters: dict[tuple[int, int], int] = {}
        self._voxels = VoxelWriter()
        self._frame_fields = recorded_fields(files.plan.minor)

    def received(self) -> FrameRanges:
        """Return the `seq` of every frame that the run has."""
        seqs = np.union1d(self.index.seqs(), np.array(sorted(self.data.unplaced_seqs), np.int64))
        return FrameRanges(seqs.tolist())

    def resume(self) -> None:
        """Mark all files as open."""
        self.files.resume()
        self.data.write_event("run", "the run was resumed")

    def write_frame(self, frame: Frame) -> str:
        """Write a frame into its slot; one without a slot of its own is counted.

        Returns why it must not be taken for recorded, one sentence: its place was taken. Else it is empty.
        """
        info, slot = frame.info, frame.info.index
        key = (info.sweep, info.channel, info.position)
        # The slot first: no file is made for a frame that has none.
        place = self.files.place(key) if 0 <= slot < self.files.plan.frames_per_sweep else None
        if place is None:
            self.data.unplace(info.seq, placed=self.index.placed)
            return ""
        there = int(place.known.seq[(*place.row, slot)]) - 1
        if there >= 0:
            if there == info.seq:
                return ""
            self.data.unplace(info.seq, placed=self.index.placed)
            return _taken(info, there)
        received, expected = place.received + 1, max(place.expected, info.count)
        pixels = np.ascontiguousarray(frame.pixels, place.dtype("projections"))
        checksum = frame.crc32 if frame.crc32 is not None else crc32(pixels.reshape(-1).view(np.uint8).data)
        _write(place, "projections", pixels, slot)
        kept = {field.name: field.plain(info) for field in self._frame_fields} | {"crc32": checksum}
        for name, value in kept.items():
            if name != "seq":
                _write(place, f"mdd/frames/{name}", value, slot)
        checked = np.array(tuple(kept[name] for name in CHECKED.names or ()), CHECKED)
        _write(place, "mdd/frames/check", crc32(checked.tobytes()), slot)
        if info.decision and self.files.plan.minor >= 3:
            _write(place, "mdd/decision", cut(info.decision, DECISION_BYTES))
        _write(place, "mdd/frames_received", received)
        if expected != place.expected:
            _write(place, "mdd/frames_expected", expected)
        if place.status is not Status.EMPTY:  # it arrived after all
            _write(place, "mdd/frames_missing", max(expected - received, 0))
        _write(place, "mdd/frames/seq", info.seq, slot)
        self.index.add_frame(key, slot, info.seq, info.count)
        self.files.last_time_s = max(self.files.last_time_s, info.camera_time_s)
        return ""

    def compare_frame(self, info: FrameInfo, checksum: int | None) -> str:
        """Return why a frame is not the one of its number that is there, one sentence; empty: it is."""
        key, slot = (info.sweep, info.channel, info.position), info.index
        has_slot = info.sweep < self.index.stop and slot < self.files.plan.frames_per_sweep
        place = self.files.place(key) if has_slot else None
        there = -1 if place is None else int(place.known.seq[(*place.row, slot)]) - 1
        if place is not None and there == info.seq:
            recorded = int(place.segment.read(f"{place.prefix}mdd/frames/crc32", (*place.index, slot)))
            same = checksum == recorded
        elif there >= 0:
            return _taken(info, there)
        else:  # of very many without a place, only the first are known by their numbers
            same = info.seq in self.data.unplaced_seqs or self.data.unplaced > UNPLACED_ROOM
        return (
            ""
            if same
            else (
                f"frame {info.seq} came before with another place or other pixels: a number is never reused."
            )
        )

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
        if place is None or place.status is Status.WRITTEN:
            return None
        later = later or place.status is not Status.EMPTY
        coarser = f"{place.prefix}pyramid/"
        sums = self._voxels.write(
            place.segment, f"{place.prefix}volume", place.index, result.volume, coarser=coarser
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
            "frames/used": _used(place, result),
        }
        for name, value in figures.items():
            _write(place, f"mdd/{name}", value)
        latency_s = self._write_latency(place, received_s)
        if self._durable:
            place.segment.force()
            latency_s = self._write_latency(place, received_s)  # a power cut leaves one of the two
        self.settle(key, Status.WRITTEN, "")
        if self._durable:
            place.segment.force()
        return Written(*key, latency_s, later)

    @staticmethod
    def _write_latency(place: Place, received_s: float) -> float:
        """Write how long a volume took until now, s; its status follows at once."""
        latency_s = time.monotonic() - received_s
        _write(place, "mdd/latency_s", latency_s)
        return latency_s

    def _write_uncertainty(self, place: Place, result: Reconstruction) -> dict[str, int]:
        """Write the uncertainty where there is one and room for it, and return its figures."""
        if not self.files.plan.uncertainty:
            return {}
        sums = None
        if result.uncertainty is not None:
            name = f"{place.prefix}uncertainty"
            sums = self._voxels.write(place.segment, name, place.index, result.uncertainty)
        if sums is None:  # absent, or not finite
            return {"has_uncertainty": 0, "uncertainty_crc32": 0}
        return {"has_uncertainty": 1, "uncertainty_crc32": sums[0]}

    def write_live(self, sweep: Sweep, result: Reconstruction, newest_seq: int) -> None:
        """Write a rolling volume into the buffer that is not being read, then increment the counter."""
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
        """Set the status of a time point, after its reason and counts."""
        place = self.files.place(key)
        if place is None or place.status is Status.WRITTEN:
            return
        _write(place, "mdd/reason", cut(reason, REASON_BYTES))
        _write(place, "mdd/frames_missing", max(place.expected - place.received, 0))
        _write(place, "mdd/status", status)
        self.index.settle(key, status)
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Record once that the disk will be too small for the run's next file."""
        short = self.files.short_of_room()
        if short and not self.short_of_room:
            self.data.write_event("disk", short)
        self.short_of_room = short

    def write_ledger(self, ledger: Ledger, senders: NDArray[np.int64] | None) -> None:
        """Write what became of the frames, and what each sender said; received frames are counted here.

        Raises
        ------
        DiskError
            A file of the run has lost its name.
        """
        self.files.check()
        self.data.write_ledger(ledger, placed=self.index.placed, senders=senders)

    def finish(self) -> None:
        """Give every time point a status, and close the files."""
        for key, begun in self.index.gaps():
            reason = "no frame of this sweep came"
            if begun:
                reason = "the run ended before this sweep was reconstructed"
            self.settle(key, Status.LOST, reason)
        self.write_ledger(self.data.ledger, None)
        self.files.finish(durable=self._durable)


def _taken(info: FrameInfo, there: int) -> str:
    return (
        f"the place of frame {info.seq} (sweep {info.sweep}, channel {info.channel}, position "
        f"{info.position}, index {info.index}) has frame {there}: each place takes one frame."
    )


def _used(place: Place, result: Reconstruction) -> NDArray[np.uint8]:
    """Return which frames a volume is made of, (M,); one may have come after its sweep was closed."""
    there: NDArray[np.bool_] = place.known.seq[place.row] > 0
    if result.slots is not None:
        there[:] = False
        there[result.slots[result.slots < len(there)]] = True
    return there.astype(np.uint8)


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
        **({"age": result.age} if result.age is not None and minor > 0 else {}),
        **(
            {"uncertainty_map": result.uncertainty_map}
            if result.uncertainty_map is not None and minor > 3
            else {}
        ),
    }


def _write(place: Place, name: str, value: ArrayLike, *slot: int) -> None:
    """Write what a dataset holds of a time point, or of one of its frames."""
    place.segment.write(place.prefix + name, (*place.index, *slot), value)
