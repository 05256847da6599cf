"""The recorder: takes frames, volumes and notes from the daemon's threads and puts them into the run file.

Owns one thread, which owns the run's files (`segment.Segment`). Callers never wait for the disk: what
they hand over goes into a queue that is bounded in bytes, and a full queue is answered with False. They
must not change an array that they handed over.

Invariants of the file
- A volume's voxels and figures are written before its status says "written"; `on_written` is called
  after that. With `durable` each of the two steps is forced to the disk.
- What is written stays written: a later mark for the same time point changes nothing.
- When a run is closed in order, no time point that was begun, or passed over, is left without a status.
- A run longer than one file goes on in the next one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.segment import Segment
from microdiffusion.errors import DiskError, MddError, RunError
from microdiffusion.run_file import (
    REASON_BYTES,
    SERVED,
    STAGES,
    Ledger,
    RunPlan,
    Status,
    position_prefix,
    runtime_code,
    segment_path,
)
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Frame, Reconstruction

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRIM_MOST_BYTES = 1 << 30  # a second or three of copying at the end of a run
_MOST_SEGMENTS_AHEAD = 10  # a sweep number further on than this is a mistake, not an outage

_Key = tuple[int, int, int]  # sweep, channel, position


@dataclass(frozen=True, slots=True)
class Written:
    """A volume that can be read from the disk, and how long after its last frame (s)."""

    sweep: int
    channel: int
    position: int
    latency_s: float


@dataclass(slots=True)
class _Progress:
    """What the recorder knows of a time point."""

    count: int = 0
    seen: set[int] = field(default_factory=set)
    status: Status = Status.EMPTY


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[], None]
    size: int = 0


class Recorder:
    """Writes a run; `start`, the `put` methods and `mark` from any thread, then `stop`.

    Parameters
    ----------
    path : Path
        The run's first file, which must not exist.
    header : RunHeader
    config : RecorderConfig
    frames_per_sweep : int
        Most frames of a sweep, held-out ones included.
    configuration : str
        The resolved configuration, JSON.
    provenance : mapping of str to str
        Versions, checksum of the weights, device ...
    on_written : callable
        Called in the recorder's thread for each volume that can be read from the disk.
    """

    def __init__(
        self,
        path: Path,
        header: RunHeader,
        config: RecorderConfig,
        *,
        frames_per_sweep: int,
        configuration: str,
        provenance: Mapping[str, str],
        on_written: Callable[[Written], None],
    ) -> None:
        self._path = path
        self._config = config
        self._on_written = on_written
        self._plan = RunPlan(
            header=header,
            time_points=min(config.time_points, header.sweeps or config.time_points),
            frames_per_sweep=frames_per_sweep,
            configuration=configuration,
            provenance=dict(provenance),
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._limit = int(config.queue_mb * 1e6)
        self._segments: list[Segment] = []
        self._progress: dict[_Key, _Progress] = {}
        self._ledger = Ledger()
        self._unplaced = 0
        self._counts = dict.fromkeys(Status, 0)
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._queued

    @property
    def paths(self) -> list[Path]:
        """The run's files so far."""
        return [segment.path for segment in self._segments]

    @property
    def counts(self) -> dict[Status, int]:
        """Number of time points (of each channel and position) that are written, lost, skipped, failed."""
        return dict(self._counts)

    @property
    def unplaced(self) -> int:
        """Frames that have no place in the file: beyond the planned sweeps or frames per sweep."""
        return self._unplaced

    def start(self) -> None:
        """Create the run file and start the thread.

        Raises
        ------
        InputFileError
            The file exists.
        DiskError
            It cannot be created, or there is not enough room for all of its time points.
        """
        self._segments.append(Segment.create(self._path, self._plan))
        self._thread.start()

    def put_frame(self, frame: Frame) -> bool:
        """Hand over a frame; False where the queue is full, or the recorder has failed."""
        return self._put(lambda: self._write_frame(frame), frame.pixels.nbytes)

    def put_volume(
        self,
        sweep: int,
        channel: int,
        position: int,
        result: Reconstruction,
        *,
        acquired_s: float,
        received_s: float,
    ) -> bool:
        """Hand over a volume; False where the queue is full, or the recorder has failed.

        Parameters
        ----------
        acquired_s
            Camera time of the sweep's last frame, s since the start of the run.
        received_s
            `time.monotonic()` when that frame came; the latency counts from there.
        """
        key = (sweep, channel, position)
        return self._put(
            lambda: self._write_volume(key, result, acquired_s, received_s), result.volume.nbytes
        )

    def mark(self, sweep: int, channel: int, position: int, status: Status, reason: str) -> None:
        """Say that a time point has no volume, and why (one sentence; cut at 160 bytes)."""
        self._put(lambda: self._settle((sweep, channel, position), status, reason))

    def put_ledger(self, ledger: Ledger) -> None:
        """Hand over where the frames went; the last one counts. `unplaced` is the recorder's own."""
        self._put(lambda: self._write_ledger(ledger))

    def raise_if_failed(self) -> None:
        """Raise what ended the recorder's thread, if something did."""
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout_s: float = 60.0) -> None:
        """Write what waits, close the run's files and end the thread.

        Raises
        ------
        DiskError
            It was not done within `timeout_s`, or the disk failed.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise DiskError(
                f"The recorder still has {self._queued / 1e6:.0f} MB to write after {timeout_s:g} s: "
                "the disk is too slow or hangs; what was announced as written is safe."
            )
        self.raise_if_failed()

    def _put(self, work: Callable[[], None], size: int = 0) -> bool:
        """Queue a job. One of no size is always taken, one of any size where the queue is empty."""
        with self._changed:
            full = size > 0 and self._queued > 0 and self._queued + size > self._limit
            if full or self._stopping or self._failure is not None:
                return False
            self._jobs.append(_Job(work, size))
            self._queued += size
            self._changed.notify_all()
        return True

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                job.work()
                with self._changed:
                    self._queued -= job.size
            self._finish()
        except MddError as error:
            self._fail(error)
        except Exception as error:  # the thread's owner gets it from raise_if_failed
            failure = RunError(f"The recorder failed ({type(error).__name__}: {error}): please report this.")
            failure.__cause__ = error
            self._fail(failure)
        finally:
            for segment in self._segments:
                segment.close()

    def _next(self) -> _Job | None:
        """Wait for a job; None when the recorder stops and nothing waits any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopping)
            return self._jobs.popleft() if self._jobs else None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._jobs.clear()
            self._queued = 0

    def _write_frame(self, frame: Frame) -> None:
        info = frame.info
        key = (info.sweep, info.channel, info.position)
        place = self._place(key)
        if place is None or not 0 <= info.index < self._plan.frames_per_sweep:
            self._unplaced += 1
            return
        segment, prefix, index = place
        slot = (*index, info.index)
        segment.write(f"{prefix}projections", slot, frame.pixels)
        segment.write(f"{prefix}mdd/frames/held_out", slot, info.held_out)
        segment.write(f"{prefix}mdd/frames/camera_time_s", slot, info.camera_time_s)
        segment.write(f"{prefix}mdd/frames/seq", slot, info.seq)
        # Last: a position that is not NaN says that the frame is there.
        segment.write(f"{prefix}mdd/frames/z_um", slot, info.z_um)
        progress = self._progress.setdefault(key, _Progress())
        progress.count = max(progress.count, info.count)
        progress.seen.add(info.index)
        segment.write(f"{prefix}mdd/frames_received", index, len(progress.seen))
        if progress.status is not Status.EMPTY:  # it came after all
            self._write_missing(place, progress)

    def _write_volume(self, key: _Key, result: Reconstruction, acquired_s: float, received_s: float) -> None:
        place = self._place(key)
        if place is None or self._progress.setdefault(key, _Progress()).status is Status.WRITTEN:
            return
        voxels = _to_pixels(result.volume, self._plan.header.dtype)
        if voxels is None:
            self._settle(key, Status.FAILED, "the volume held values that are not finite")
            return
        segment, prefix, index = place
        segment.write(f"{prefix}volume", index, voxels)
        for name, value in _figures(result).items():
            segment.write(f"{prefix}mdd/{name}", index, value)
        segment.write(f"{prefix}mdd/acquired_s", index, acquired_s)
        if self._config.durable:
            segment.force()
        self._settle(key, Status.WRITTEN, "")
        if self._config.durable:
            segment.force()
        latency_s = time.monotonic() - received_s
        segment.write(f"{prefix}mdd/latency_s", index, latency_s)
        self._on_written(Written(*key, latency_s))

    def _settle(self, key: _Key, status: Status, reason: str) -> None:
        """Give a time point its status: reason and counts first."""
        place = self._place(key)
        if place is None:
            return
        segment, prefix, index = place
        progress = self._progress.setdefault(key, _Progress())
        if progress.status is Status.WRITTEN:
            return
        text = reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
        segment.write(f"{prefix}mdd/reason", index, np.array(text, dtype=f"S{REASON_BYTES}"))
        self._write_missing(place, progress)
        segment.write(f"{prefix}mdd/status", index, status)
        if progress.status is not Status.EMPTY:
            self._counts[progress.status] -= 1
        self._counts[status] += 1
        progress.status = status

    def _write_missing(self, place: tuple[Segment, str, tuple[int, ...]], progress: _Progress) -> None:
        segment, prefix, index = place
        segment.write(f"{prefix}mdd/frames_missing", index, max(progress.count - len(progress.seen), 0))

    def _write_ledger(self, ledger: Ledger) -> None:
        self._ledger = replace(ledger, unplaced=self._unplaced)
        self._segments[-1].write("mdd/ledger", (), self._ledger.array())

    def _place(self, key: _Key) -> tuple[Segment, str, tuple[int, ...]] | None:
        """Return file, group and index of a time point; None where the run has no place for it."""
        sweep, channel, position = key
        header, room = self._plan.header, self._plan.time_points
        number = sweep // room
        if (
            sweep < 0
            or (header.sweeps is not None and sweep >= header.sweeps)
            or not 0 <= channel < len(header.channels)
            or not 0 <= position < len(header.positions)
            or number - len(self._segments) >= _MOST_SEGMENTS_AHEAD
        ):
            return None
        while len(self._segments) <= number:
            self._add_segment()
        index = (sweep % room,) if len(header.channels) == 1 else (sweep % room, channel)
        return self._segments[number], position_prefix(position), index

    def _add_segment(self) -> None:
        number = len(self._segments)
        plan = replace(self._plan, segment=number, first_time_point=number * self._plan.time_points)
        self._segments.append(Segment.create(segment_path(self._path, number), plan))

    def _finish(self) -> None:
        """Give every time point its status, close the files, trim the last one to what was used."""
        self._settle_the_rest()
        self._write_ledger(self._ledger)
        for segment in self._segments:
            segment.write("mdd/closed", (), 1)
            if self._config.durable:
                segment.force()
        last = max((sweep for sweep, _, _ in self._progress), default=0)
        used = last - (len(self._segments) - 1) * self._plan.time_points + 1
        self._segments[-1].trim(max(used, 1), most_bytes=_TRIM_MOST_BYTES)

    def _settle_the_rest(self) -> None:
        """Mark as lost what was begun and never finished, and gaps in a session that went on."""
        last: dict[tuple[int, int], int] = {}
        for sweep, *session in self._progress:
            channel, position = session
            last[channel, position] = max(last.get((channel, position), 0), sweep)
        for (channel, position), end in last.items():
            for sweep in range(end + 1):
                key = (sweep, channel, position)
                if key not in self._progress:
                    self._settle(key, Status.LOST, "no frame of this sweep came")
                elif self._progress[key].status is Status.EMPTY:
                    self._settle(key, Status.LOST, "the run ended before this sweep was reconstructed")


def _to_pixels(volume: NDArray[np.float32], dtype: str) -> NDArray[Any] | None:
    """Return the volume rounded and clipped to the file's type; None where it is not finite."""
    # One sum finds NaN and infinity without a second array; float64, so that it cannot overflow.
    if not np.isfinite(np.sum(volume, dtype=np.float64)):
        return None
    if dtype == "float32":
        return volume
    return np.clip(np.rint(volume), 0, 65535).astype(np.uint16)


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
