"""Reading a run file, while the run goes on and ever after.

Owns `open_run`. The layout is read once with HDF5; the data are then read straight from the file's bytes
through a memory map, so what the recorder writes is seen at once, no HDF5 lock or cache lies between,
and any number of readers can look on. What is handed out is a copy and never changes. A run that outgrew
its first file goes on in further files, which appear here as one; where a longer file takes the name of one
that is open here, that is opened instead. A `Run` may be used on any one thread.

>>> with microdiffusion.open_run("run.h5") as run:               # doctest: +SKIP
...     for t, volume in run.follow(timeout_s=60):
...         show(volume)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.recorded_sweep import FrameRows, assemble
from microdiffusion.run_file import (
    LEDGER_COLUMNS,
    Closed,
    Ledger,
    RunLayout,
    Status,
    parse_configuration,
    position_prefix,
    read_layout,
    segment_path,
)
from microdiffusion.run_header import RunHeader
from microdiffusion.sweep import Sweep
from microdiffusion.time_series import TimeSeries

_LIVE_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during the run: seconds since its start, a kind, a sentence."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class LiveVolume:
    """A rolling volume, from the newest frame and those before it, a sweep's worth.

    Attributes
    ----------
    number : int
        Counts the updates, from 1.
    sweep, newest_seq : int
        The sweep of the newest frame in it, and that frame's `seq`.
    time_s : float
        Camera time of that frame, s since the start.
    volume : (Z, Y, X) uint16 or float32
    """

    number: int
    sweep: int
    newest_seq: int
    time_s: float
    volume: NDArray[Any]


class Run:
    """An open run. Made by `open_run`; a context manager.

    Attributes
    ----------
    path : Path
    header : RunHeader
    config : dict
        The resolved configuration of the run.
    volume, projections : TimeSeries
        (T, [C,] Z, Y, X) and (T, [C,] M, Y, X), uint16 or float32, read on demand: `run.volume[t]`.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        self._files = [_File(path)]
        plan = self._files[0].layout.plan
        if not 0 <= position < len(plan.header.positions):
            raise InputFileError(
                f"{path} has {len(plan.header.positions)} position(s), so there is no position {position}: "
                "give a smaller number."
            )
        self._position = position
        self._prefix = position_prefix(position)
        self.header: RunHeader = plan.header
        self.config: dict[str, Any] = parse_configuration(plan)
        self.volume = TimeSeries(lambda: self._parts("volume"))
        self.projections = TimeSeries(lambda: self._parts("projections"))

    def __len__(self) -> int:
        """Return T, the number of time points that there is room for."""
        return len(self.volume)

    @property
    def voxel_size_um(self) -> tuple[float, float, float]:
        """Size of a voxel (z, y, x), µm."""
        return self.header.voxel_size_um

    @property
    def status(self) -> NDArray[np.uint8]:
        """What became of each time point, (T[, C]) uint8: the codes of `run_file.Status`, as of now."""
        return self.values("status")

    @property
    def times(self) -> NDArray[np.float64]:
        """Camera time of each time point's last frame, (T[, C]) float64, s since the start; NaN: none."""
        return self.values("acquired_s")

    @property
    def provenance(self) -> dict[str, str]:
        """Versions, checksum of the weights, device ...; the engine's part as soon as it is known."""
        first = self._first()
        plan = first.layout.plan
        if plan.segment:
            return dict(plan.provenance)
        try:
            engine = json.loads(bytes(first.view("mdd/engine")[()]) or b"{}")
        except ValueError:
            engine = {}
        more = engine if isinstance(engine, dict) else {}
        return dict(plan.provenance) | {key: str(value) for key, value in more.items()}

    @property
    def closed(self) -> bool:
        """Whether the run ended and its file was closed in order."""
        self._look_for_more()
        return int(self._files[-1].view("mdd/closed")) == Closed.CLOSED

    @property
    def ledger(self) -> Ledger:
        """Where the frames went, as far as known; all zero in a further file that is opened alone."""
        first = self._first()
        if first.layout.plan.segment:
            return Ledger()
        return Ledger(**dict(zip(LEDGER_COLUMNS, first.view("mdd/ledger").tolist(), strict=True)))

    @property
    def events(self) -> list[Event]:
        """What happened during the run, oldest first; the last 4096."""
        first = self._first()
        if first.layout.plan.segment:
            return []
        count = max(int(first.view("mdd/events/count")), 0)
        times, kinds, texts = (first.view(f"mdd/events/{name}") for name in ("time_s", "kind", "text"))
        rows = (number % len(times) for number in range(max(count - len(times), 0), count))
        return [
            Event(
                float(times[row]),
                bytes(kinds[row]).decode(errors="replace"),
                bytes(texts[row]).decode(errors="replace"),
            )
            for row in rows
        ]

    def values(self, name: str) -> NDArray[Any]:
        """Return what the file keeps of every time point under /mdd, such as "residual" or "seconds/total".

        Raises
        ------
        KeyError
            There is no such dataset.
        """
        return np.concatenate(list(self._parts(f"mdd/{name}")))

    def sweep(self, time_point: int, channel: int = 0) -> Sweep:
        """Return the recorded projections of a time point, ascending in z, the held-out ones apart."""
        place = (time_point,) if len(self.header.channels) == 1 else (time_point, channel)

        def read(name: str) -> NDArray[Any]:
            return TimeSeries(lambda: self._parts(name))[place]

        rows = FrameRows(
            # What has its seq is whole; so that is read first.
            seq=read("mdd/frames/seq"),
            z_um=read("mdd/frames/z_um"),
            time_s=read("mdd/frames/camera_time_s"),
            held_out=read("mdd/frames/held_out") != 0,
            pixels=read("projections"),
            expected=int(read("mdd/frames_expected")),
        )
        number = time_point % len(self) + self._files[0].layout.plan.first_time_point
        return assemble(rows, number, channel, self._position)

    def live(self, channel: int = 0) -> LiveVolume | None:
        """Return the newest rolling volume; None where there is none (`engine.update` = "projection").

        Raises
        ------
        InputFileError
            Its checksum is wrong, again and again: the file is damaged.
        """
        first = self._first()
        plan = first.layout.plan
        if not plan.live or plan.segment:
            return None
        place = () if len(self.header.channels) == 1 else (channel,)

        def view(name: str) -> NDArray[Any]:
            return first.view(f"{self._prefix}live/{name}")

        # The writer fills the buffer that the counter does not name, then counts on. So a copy is whole
        # where the counter stood still meanwhile; the checksum holds wherever bytes arrive in any order.
        for _ in range(_LIVE_ATTEMPTS):
            number = int(view("counter")[place])
            if number <= 0:
                return None
            index = (number % 2, *place)
            volume = np.array(view("volume")[index])
            found = LiveVolume(
                number,
                int(view("sweep")[index]),
                int(view("newest_seq")[index]),
                float(view("time_s")[index]),
                volume,
            )
            expected = int(view("crc32")[index])
            whole = crc32(volume.reshape(-1).view(np.uint8).data) == expected
            if whole and number == int(view("counter")[place]):
                return found
            time.sleep(0.001)
        raise InputFileError(f"{self.path}: no rolling volume comes whole: the file is damaged.")

    def follow_live(
        self, channel: int = 0, timeout_s: float | None = None, *, poll_s: float = 0.01
    ) -> Iterator[LiveVolume]:
        """Yield the newest rolling volume each time there is another; what came between is left out.

        Ends when the run is closed, or when nothing came for `timeout_s` seconds (None: waits for ever).
        """
        told = 0
        heard_s = time.monotonic()
        while True:
            closed = self.closed  # before looking, so that the last one is not missed
            newest = self.live(channel)
            if newest is not None and newest.number != told:
                told = newest.number
                yield newest
                heard_s = time.monotonic()
                continue
            if closed or (timeout_s is not None and time.monotonic() - heard_s > timeout_s):
                return
            time.sleep(poll_s)

    def follow(
        self, timeout_s: float | None = None, *, poll_s: float = 0.05
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (t, volume) for every written time point: those that are there, then each as it comes.

        With several channels a time point comes when each of its channels is settled. Ends when the run
        is closed, or when nothing came for `timeout_s` seconds (None: waits for ever).
        """
        told: set[int] = set()
        heard_s = time.monotonic()
        while True:
            closed = self.closed  # before looking, so that nothing written before the close is missed
            status = self.status
            status = status.reshape(status.shape[0], -1)
            ready = np.all(status != Status.EMPTY, axis=1) & np.any(status == Status.WRITTEN, axis=1)
            new = [int(t) for t in np.flatnonzero(ready) if t not in told]
            for t in new:
                told.add(t)
                yield t, self.volume[t]
                heard_s = time.monotonic()
            if new:
                continue
            if closed or (timeout_s is not None and time.monotonic() - heard_s > timeout_s):
                return
            time.sleep(poll_s)

    def close(self) -> None:
        """Let go of the file. What was read stays valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first(self) -> _File:
        self._look_for_more()
        return self._files[0]

    def _parts(self, name: str) -> Iterator[NDArray[Any]]:
        self._look_for_more()
        return (file.view(self._prefix + name) for file in self._files)

    def _look_for_more(self) -> None:
        """Take in a longer file of the same name, and the files that the run went on in.

        Those are complete as soon as they have their name.
        """
        first = self._files[0].layout.plan
        last = self._files[-1]
        if int(last.view("mdd/closed")) == Closed.REPLACED:
            self._files[-1] = _File(last.path)
            last.close()
        while first.segment == 0:
            path = segment_path(self.path, len(self._files))
            if not path.is_file():
                return
            file = _File(path)
            if file.layout.plan.header.run_id != first.header.run_id:
                file.close()
                return
            self._files.append(file)


def open_run(path: str | Path, *, position: int = 0) -> Run:
    """Open a run file for reading, also while it is being written.

    Parameters
    ----------
    path
        The run's (first) file.
    position
        Which of the stage's positions.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is no run file, damaged, of another layout version, or has no such position.
    """
    return Run(Path(path), position)


class _File:
    """One file of a run: its layout and its bytes."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"There is no run file at {path}: check the path.")
        self.path = path
        # Opened once: at the end of a run a trimmed copy takes the file's name, and layout and bytes must
        # be of the same file.
        with path.open("rb") as stream:
            self.layout: RunLayout = read_layout(path, stream)
            self._bytes: NDArray[np.uint8] | None = np.memmap(stream, dtype=np.uint8, mode="r")

    def view(self, name: str) -> NDArray[Any]:
        """Return a dataset as a view of the file's bytes: read-only, and as new as they are."""
        if self._bytes is None:
            raise ValueError("The run was closed: open it again with open_run.")
        region = self.layout.regions[name]
        return (
            self._bytes[region.offset : region.offset + region.size].view(region.dtype).reshape(region.shape)
        )

    def close(self) -> None:
        self._bytes = None
