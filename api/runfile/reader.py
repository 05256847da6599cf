"""Reading a run file, while the run goes on and ever after.

Owns `open_run`. The layout is read once with HDF5; the data are then read straight from the file's bytes
through a memory map (`files`), so what the recorder writes is seen at once, no HDF5 lock or cache lies
between, and any number of readers can look on. What is handed out is a copy and never changes; it was written
whole, and has its checksum (`series`). A `Run` may be used on any one thread.

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

from microdiffusion.errors import InputFileError
from microdiffusion.frames import Frame, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.runfile.files import RunFile, RunParts
from microdiffusion.runfile.layout import (
    LEDGER_COLUMNS,
    Closed,
    Ledger,
    Status,
    parse_configuration,
    position_prefix,
)
from microdiffusion.runfile.pyramid import Factors
from microdiffusion.runfile.schema import LEVEL_ZERO
from microdiffusion.runfile.series import Item, Piece, TimeSeries
from microdiffusion.runfile.sweeps import FrameTable, assemble
from microdiffusion.text import count_noun

_LIVE_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during the run: seconds since its start, a kind, a sentence."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A time point that has no volume.

    Attributes
    ----------
    time_point, channel : int
    status : Status
        LOST, SKIPPED or FAILED; EMPTY: not reconstructed, or not yet.
    reason : str
        Why, in a sentence.
    """

    time_point: int
    channel: int
    status: Status
    reason: str


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
        (T, [C,] Z, Y, X) and (T, [C,] M, Y, X), uint16 or float32, read on demand: `run.volume[t]`. What is
        not there raises a `GapError` that says why, and what is damaged a `DamagedError`.
    pyramid : tuple of TimeSeries
        The volume, then its coarser copies (T, [C,] z, y, x).
    pyramid_factors : tuple of (z, y, x)
        How many voxels of the volume make one of each level; the first is (1, 1, 1).
    uncertainty : TimeSeries or None
        (T, [C,] Z, Y, X), standard deviation of each voxel, in units of the volume; None where it was off.
    """

    def __init__(self, path: Path, position: int = 0, *, check: bool = True) -> None:
        self.path = path
        self._parts = RunParts(path)
        self._check = check
        plan = self._parts.plan
        if not 0 <= position < len(plan.header.positions):
            self._parts.close()
            raise InputFileError(
                f"{path} has {count_noun(len(plan.header.positions), 'position')}, so there is no position "
                f"{position}: give a smaller number."
            )
        self._position = position
        self._prefix = position_prefix(position)
        self.header: RunHeader = plan.header
        self.config: dict[str, Any] = parse_configuration(plan)
        self.volume = self._images("volume", "crc32", "volume")
        self.projections = self._frames()
        self.pyramid: tuple[TimeSeries, ...] = (
            self.volume,
            *(
                self._images(f"pyramid/{level}", f"pyramid_crc32/{level}", f"volume of level {level}")
                for level in range(1, len(plan.pyramid) + 1)
            ),
        )
        self.pyramid_factors: tuple[Factors, ...] = (LEVEL_ZERO, *plan.pyramid)
        self.uncertainty: TimeSeries | None = None
        if plan.uncertainty:
            self.uncertainty = self._images(
                "uncertainty", "uncertainty_crc32", "uncertainty", flag="has_uncertainty"
            )

    def __len__(self) -> int:
        """Return T, the number of time points that there is room for."""
        return len(self.volume)

    @property
    def voxel_size_um(self) -> tuple[float, float, float]:
        """Size of a voxel (z, y, x), µm."""
        return self.header.voxel_size_um

    @property
    def position(self) -> int:
        """Which of the stage's positions this reads."""
        return self._position

    @property
    def status(self) -> NDArray[np.uint8]:
        """What became of each time point, (T[, C]) uint8: the codes of `geometry.Status`, as of now."""
        return self.values("status")

    @property
    def times(self) -> NDArray[np.float64]:
        """Camera time of each time point's last frame, (T[, C]) float64, s since the start; NaN: none."""
        return self.values("acquired_s")

    @property
    def provenance(self) -> dict[str, str]:
        """Versions, checksum of the weights, device ...; the engine's part as soon as it is known."""
        first = self._first()
        plan = first.plan
        if plan.segment:
            return dict(plan.provenance)
        try:
            engine = json.loads(bytes(first.view("mdd/engine")[()]) or b"{}")
        except (ValueError, RecursionError):
            engine = {}
        more = engine if isinstance(engine, dict) else {}
        return dict(plan.provenance) | {key: str(value) for key, value in more.items()}

    @property
    def created_utc(self) -> str:
        """When the run file was made, ISO 8601; the times of the frames count from the run's start."""
        return self._parts.plan.created_utc

    @property
    def paths(self) -> list[Path]:
        """The run's files by now, in their order."""
        return [part.path for part in self._parts.all()]

    @property
    def closed(self) -> bool:
        """Whether the run ended and its file was closed in order."""
        return int(self._parts.all()[-1].view("mdd/closed")[()]) == Closed.CLOSED

    @property
    def ledger(self) -> Ledger:
        """Where the frames went, as far as known; all zero in a further file that is opened alone."""
        first = self._first()
        if first.plan.segment:
            return Ledger()
        return Ledger(**dict(zip(LEDGER_COLUMNS, first.view("mdd/ledger")[()].tolist(), strict=True)))

    @property
    def events(self) -> list[Event]:
        """What happened during the run, oldest first; the last 4096."""
        first = self._first()
        if first.plan.segment:
            return []
        count = max(int(first.view("mdd/events/count")[()]), 0)
        times, kinds, texts = (first.view(f"mdd/events/{name}")[()] for name in ("time_s", "kind", "text"))
        rows = (number % len(times) for number in range(max(count - len(times), 0), count))
        return [
            Event(
                float(times[row]),
                bytes(kinds[row]).decode(errors="replace"),
                bytes(texts[row]).decode(errors="replace"),
            )
            for row in rows
        ]

    def written(self, channel: int | None = None) -> NDArray[np.intp]:
        """Return the time points that have a volume, of one channel or of all of them; ascending."""
        status = self.status.reshape(-1, len(self.header.channels))
        wanted = status if channel is None else status[:, [channel]]
        return np.flatnonzero(np.all(wanted == Status.WRITTEN, axis=1))

    def gaps(self) -> list[Gap]:
        """Return what has no volume, and why: up to the last time point that anything became of."""
        status = self.status.reshape(-1, len(self.header.channels))
        reasons = self.values("reason").reshape(-1, len(self.header.channels))
        # Between the two the run may have got room for more time points, or have been cut to what it used.
        status = status[: len(reasons)]
        known = np.flatnonzero(np.any(status != Status.EMPTY, axis=1))
        stop = int(known[-1]) + 1 if known.size else 0
        return [
            Gap(t, channel, *_settled(status[t, channel], reasons[t, channel]))
            for t, channel in np.argwhere(status[:stop] != Status.WRITTEN).tolist()
        ]

    def values(self, name: str) -> NDArray[Any]:
        """Return what the file keeps of every time point under /mdd, such as "residual" or "seconds/total".

        Raises
        ------
        KeyError
            There is no such dataset.
        """
        return np.asarray(np.concatenate([piece.data[()] for piece in self._pieces(f"mdd/{name}")]))

    def sweep(self, time_point: int, channel: int = 0) -> Sweep:
        """Return the recorded projections of a time point, ascending in z, the held-out ones apart."""
        return assemble(self._rows(time_point, channel), self._number(time_point), channel, self._position)

    def frames(self, time_point: int, channel: int = 0) -> list[Frame]:
        """Return the recorded frames of a time point, in the order of their places in the sweep."""
        return self._rows(time_point, channel).frames(self._number(time_point), channel, self._position)

    def _rows(self, time_point: int, channel: int) -> FrameTable:
        place = (time_point,) if len(self.header.channels) == 1 else (time_point, channel)

        def read(name: str) -> NDArray[Any]:
            if name == "projections":
                return self.projections.filled(0)[place]
            return TimeSeries(lambda: self._pieces(name))[place]

        return FrameTable.read(read, self._parts.plan.minor)

    def _number(self, time_point: int) -> int:
        return time_point % len(self) + self._parts.plan.first_time_point

    def live(self, channel: int = 0) -> LiveVolume | None:
        """Return the newest rolling volume; None where there is none (`engine.update` = "projection").

        Raises
        ------
        InputFileError
            Its checksum is wrong, again and again: the file is damaged.
        """
        first = self._first()
        plan = first.plan
        if not plan.live or plan.segment:
            return None
        place = () if len(self.header.channels) == 1 else (channel,)

        def view(name: str) -> Any:
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
        self, timeout_s: float | None = None, *, channel: int | None = None, poll_s: float = 0.05
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (t, volume) for every written time point: those that are there, then each as it comes.

        Gaps are passed over (`gaps` lists them). With several channels a time point comes when all of them
        are written; name one, and its volumes (Z, Y, X) come alone. Ends when the run is closed, or when
        nothing came for `timeout_s` seconds (None: waits for ever).
        """
        told: set[int] = set()
        heard_s = time.monotonic()
        while True:
            closed = self.closed  # before looking, so that nothing written before the close is missed
            new = [t for t in self.written(channel).tolist() if t not in told]
            for t in new:
                told.add(t)
                yield (
                    t,
                    self.volume[t]
                    if channel is None or len(self.header.channels) == 1
                    else self.volume[t, channel],
                )
                heard_s = time.monotonic()
            if new:
                continue
            if closed or (timeout_s is not None and time.monotonic() - heard_s > timeout_s):
                return
            time.sleep(poll_s)

    def close(self) -> None:
        """Let go of the file. What was read stays valid."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first(self) -> RunFile:
        return self._parts.first()

    def _pieces(self, name: str) -> Iterator[Piece]:
        return (Piece(part.view(self._prefix + name)) for part in self._parts.all())

    def _images(self, name: str, checksum: str, what: str, flag: str = "") -> TimeSeries:
        """Return a series of volumes: there where the status says so, and `flag` where one is named."""

        def piece(part: RunFile) -> Piece:
            status = part.view(f"{self._prefix}mdd/status")
            flags = part.view(f"{self._prefix}mdd/{flag}") if flag else None
            sums = part.view(f"{self._prefix}mdd/{checksum}")

            def there(item: Item) -> bool:
                return bool(status[item] == Status.WRITTEN and (flags is None or flags[item] == 1))

            def checksum_of(item: Item) -> int:
                return int(sums[item])

            return Piece(part.view(self._prefix + name), there, checksum_of if self._check else None)

        def why(item: Item) -> str:
            if flag and self.status[item] == Status.WRITTEN:
                return "its volume was reconstructed without; the other time points are read one by one."
            return f"{self._why(item)}; run.gaps() lists all gaps, .filled(value) puts a value there."

        leading = 1 if len(self.header.channels) == 1 else 2
        return TimeSeries(
            lambda: (piece(part) for part in self._parts.all()), name=what, leading=leading, why=why
        )

    def _frames(self) -> TimeSeries:
        """Return the series of frames: there where they have their `seq`."""

        def piece(part: RunFile) -> Piece:
            seq = part.view(f"{self._prefix}mdd/frames/seq")
            sums = part.view(f"{self._prefix}mdd/frames/crc32")
            data = part.view(f"{self._prefix}projections")
            checksum = (lambda item: int(sums[item])) if self._check else None
            return Piece(data, lambda item: bool(seq[item] >= 0), checksum)

        def why(item: Item) -> str:
            return "it did not come; run.sweep() holds those that did, .filled(value) puts a value there."

        leading = 2 if len(self.header.channels) == 1 else 3
        return TimeSeries(
            lambda: (piece(part) for part in self._parts.all()), name="frame", leading=leading, why=why
        )

    def _why(self, item: Item) -> str:
        status, reason = _settled(self.status[item], self.values("reason")[item])
        return f"it is {status.name.lower()}, {reason}" if status else reason


def _settled(status: Any, reason: Any) -> tuple[Status, str]:
    """Return what became of a time point, and why; a code that nobody wrote is a failure."""
    code = int(status)
    if code == Status.EMPTY:
        return Status.EMPTY, "it was not reconstructed, or not yet"
    text = bytes(reason).decode(errors="replace")
    return Status(code) if code in set(Status) else Status.FAILED, text or "no reason is given"


def open_run(path: str | Path, *, position: int = 0, check: bool = True) -> Run:
    """Open a run file for reading, also while it is being written.

    Parameters
    ----------
    path
        The run's (first) file.
    position
        Which of the stage's positions.
    check
        Whether volumes and frames that are read whole are compared with their checksums.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is no run file, damaged, of another layout version, or has no such position.
    """
    return Run(Path(path), position, check=check)
