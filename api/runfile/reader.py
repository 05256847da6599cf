"""Reading a run file, during the run and afterwards.

Owns `open_run`. The layout is read once with HDF5; the data are then read straight from the file's bytes
through a memory map (`files`), so what the recorder writes is seen at once, without HDF5's locks and caches,
by any number of readers. Every array returned is a copy of data that was written completely and matches its
checksum (`series`). A `Run` may be used on any one thread.

>>> with microdiffusion.open_run("run.h5") as run:               # doctest: +SKIP
...     for t, volume in run.follow(timeout_s=60):
...         show(volume)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.frames import Frame, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.files import RunFile, RunParts, lacking_sentence
from microdiffusion.runfile.follow import LiveVolume, follow, follow_live, read_live
from microdiffusion.runfile.pyramid import Factors
from microdiffusion.runfile.records import Event, Gap, json_object, settled, text_of
from microdiffusion.runfile.schema import LEVEL_ZERO, Closed, Status, position_prefix
from microdiffusion.runfile.series import Item, Piece, TimeSeries
from microdiffusion.runfile.summary import summary_lines
from microdiffusion.runfile.sweeps import FrameTable, assemble
from microdiffusion.runfile.traces import RoiTraces, run_traces
from microdiffusion.text import count_noun

_NO_FRAME = "it never arrived; run.sweep() holds those that did, .filled(value) puts a value there."
_NO_UNCERTAINTY = "its volume was reconstructed without; the other time points are read one by one."


class Run:
    """An open run. Made by `open_run`; a context manager.

    Attributes
    ----------
    path : Path
    position : int
        Which of the stage's positions this reads.
    header : RunHeader
    config : dict
        The resolved configuration of the run.
    volume, projections : TimeSeries
        (T, [C,] Z, Y, X) and (T, [C,] M, Y, X), uint16 or float32, read on demand: `run.volume[t]`. A gap
        raises a `GapError` with its reason, damaged data a `DamagedError`.
    pyramid : tuple of TimeSeries
        The volume, then its coarser copies (T, [C,] z, y, x).
    pyramid_factors : tuple of (z, y, x)
        How many voxels of the volume make one of each level; the first is (1, 1, 1).
    uncertainty : TimeSeries or None
        (T, [C,] Z, Y, X), standard deviation of each voxel, in units of the volume; None where it was off.
    uncertainty_map : TimeSeries or None
        (T, [C,] z, y, x), its root mean square over at most 32 blocks along each edge; since layout 1.4.
    """

    def __init__(
        self, path: Path, position: int = 0, *, check: bool = True, parts: RunParts | None = None
    ) -> None:
        self.path = path
        self.position = position
        self._parts = parts or RunParts(path)
        self._check = check
        plan = self._parts.plan
        if not 0 <= position < len(plan.header.positions):
            self._parts.close()
            raise InputFileError(
                f"{path} has {count_noun(len(plan.header.positions), 'position')}, so there is no position "
                f"{position}: give a smaller number."
            )
        self._prefix = position_prefix(position)
        self.header: RunHeader = plan.header
        self.config: dict[str, Any] = json_object(plan.configuration)
        self.volume = self._images("volume", "crc32", "volume")
        self.projections = self._frames()
        coarser = (
            self._images(f"pyramid/{level}", f"pyramid_crc32/{level}", f"volume of level {level}")
            for level in range(1, len(plan.pyramid) + 1)
        )
        self.pyramid: tuple[TimeSeries, ...] = (self.volume, *coarser)
        self.pyramid_factors: tuple[Factors, ...] = (LEVEL_ZERO, *plan.pyramid)
        self.uncertainty: TimeSeries | None = None
        if plan.uncertainty:
            sums, flag = "uncertainty_crc32", "has_uncertainty"
            self.uncertainty = self._images("uncertainty", sums, "uncertainty", flag)
        self.uncertainty_map: TimeSeries | None = None
        if plan.minor > 3:
            self.uncertainty_map = self._images("mdd/uncertainty_map", "", "uncertainty")

    def __str__(self) -> str:
        """Return the run in five lines, as `mdd info` says it at greater length."""
        lines = [f"  {name:<12} {text}" for name, text in summary_lines(self).items()]
        return "\n".join([f"{self.path}: {self.state}", *lines])

    def __len__(self) -> int:
        """Return T, the number of time points that there is room for."""
        return len(self.volume)

    @property
    def voxel_size_um(self) -> tuple[float, float, float]:
        """Size of a voxel (z, y, x), µm."""
        return self.header.voxel_size_um

    @property
    def status(self) -> NDArray[np.uint8]:
        """The fate of each time point, (T[, C]) uint8: the codes of `Status`, as of now."""
        return self.values("status")

    @property
    def times(self) -> NDArray[np.float64]:
        """Camera time of each time point's last frame, (T[, C]) float64, s since the start; NaN: none."""
        return self.values("acquired_s")

    @property
    def provenance(self) -> dict[str, str]:
        """Versions, checksum of the weights, device ...; the engine's part as soon as it is known."""
        first = self._parts.first()
        engine = {} if first.plan.segment else json_object(bytes(first.view("mdd/engine")[()]))
        return dict(first.plan.provenance) | {key: str(value) for key, value in engine.items()}

    @property
    def created_utc(self) -> str:
        """The time of the file's creation, ISO 8601; the times of the frames count from the run's start."""
        return self._parts.plan.created_utc

    @property
    def paths(self) -> list[Path]:
        """The run's files by now, in their order."""
        return [part.path for part in self._parts.all()]

    @property
    def missing_files(self) -> list[Path]:
        """The files of the run that are not there; its time points end before the first of them."""
        return self._parts.missing()

    @property
    def closed(self) -> bool:
        """True once the run ended and its file was closed."""
        return int(self._parts.all()[-1].view("mdd/closed")[()]) == Closed.CLOSED

    @property
    def state(self) -> str:
        """The words for `closed`."""
        return "closed" if self.closed else "still running, or interrupted"

    @property
    def ledger(self) -> Ledger:
        """The fate of the frames, as far as known; all zero in a further file that is opened alone."""
        first = self._parts.first()
        if first.plan.segment:
            return Ledger()
        return Ledger.of(first.view("mdd/ledger")[()])

    @property
    def events(self) -> list[Event]:
        """The events of the run, oldest first; the last 4096."""
        first = self._parts.first()
        if first.plan.segment:
            return []
        count = max(int(first.view("mdd/events/count")[()]), 0)
        times, kinds, texts = (first.view(f"mdd/events/{name}")[()] for name in ("time_s", "kind", "text"))
        rows = (number % len(times) for number in range(max(count - len(times), 0), count))
        return [Event(float(times[row]), text_of(kinds[row]), text_of(texts[row])) for row in rows]

    @property
    def nbytes(self) -> int:
        """Size of the run's files by now."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def used(self) -> int:
        """Number of time points up to the last one with a status."""
        known = np.flatnonzero(self.status.reshape(-1, len(self.header.channels)).any(axis=1))
        return int(known[-1]) + 1 if known.size else 0

    def written(self, channel: int | None = None) -> NDArray[np.intp]:
        """Return the time points that have a volume, of one channel or of all of them; ascending."""
        status = self.status.reshape(-1, len(self.header.channels))
        wanted = status if channel is None else status[:, [channel]]
        return np.flatnonzero(np.all(wanted == Status.WRITTEN, axis=1))

    def gaps(self) -> list[Gap]:
        """Return the time points without a volume, and why, up to the last one with a status."""
        used = self.used  # first: of what is written later, the statuses may not know
        status = self.status.reshape(-1, len(self.header.channels))
        reasons = self.values("reason").reshape(-1, len(self.header.channels))
        # Meanwhile the run may have got room for more time points, or have been trimmed.
        status = status[: min(used, len(reasons))]
        return [
            Gap(t, channel, *settled(status[t, channel], reasons[t, channel]))
            for t, channel in np.argwhere(status != Status.WRITTEN).tolist()
        ]

    def values(self, name: str) -> NDArray[Any]:
        """Return a dataset below /mdd for every time point, such as "residual" or "seconds/total".

        Raises
        ------
        KeyError
            There is no such dataset.
        """
        return np.asarray(np.concatenate([piece.data[()] for piece in self._pieces(f"mdd/{name}")]))

    def decisions(self, channel: int = 0) -> list[str]:
        """Return what an adaptive acquisition decided for each time point, and why; "" where it did not."""
        if self._parts.plan.minor < 3:
            return [""] * len(self)
        texts = self.values("decision").reshape(-1, len(self.header.channels))
        return [text_of(text) for text in texts[:, channel]]

    def place(self, time_point: int, channel: int = 0) -> tuple[int, ...]:
        """Return the index of a time point of a channel: (t,), or (t, channel) where there are several."""
        return (time_point,) if len(self.header.channels) == 1 else (time_point, channel)

    def sweep(self, time_point: int, channel: int = 0) -> Sweep:
        """Return the recorded projections of a time point, ascending in z, the held-out ones apart."""
        return assemble(self._rows(time_point, channel), self._number(time_point), channel, self.position)

    def frames(self, time_point: int, channel: int = 0) -> list[Frame]:
        """Return the recorded frames of a time point, in the order of their places in the sweep."""
        return self._rows(time_point, channel).frames(self._number(time_point), channel, self.position)

    def traces(
        self, rois: ArrayLike, channel: int = 0, *, baseline: slice | Sequence[int] | None = None
    ) -> RoiTraces:
        """Return ΔF/F of regions over time, with its standard deviation and the share of it that is data.

        `rois` is a label image (Z, Y, X), 0 is background, or balls (N, 4): z, y, x and radius, voxels; F0 is
        the median over the time points `baseline`, by default all. Anything else is an `InputFileError`.
        """
        return run_traces(self, rois, channel, baseline)

    def frame_numbers(self) -> NDArray[np.int64]:
        """Return `seq` of every recorded frame, of all positions; (N,) ascending."""
        positions = range(len(self.header.positions))
        names = [f"{position_prefix(position)}mdd/frames/seq" for position in positions]
        seqs = [np.ravel(part.view(name)[()]) for part in self._parts.all() for name in names]
        every: NDArray[np.int64] = np.sort(np.concatenate(seqs))
        return every[every >= 0]

    def live(self, channel: int = 0) -> LiveVolume | None:
        """Return the newest rolling volume; None where there is none (`engine.update` = "projection").

        Raises
        ------
        InputFileError
            Its checksum is wrong, again and again: the file is damaged.
        """
        first = self._parts.first()
        if not first.plan.live or first.plan.segment:
            return None
        return read_live(first, self._prefix, () if len(self.header.channels) == 1 else (channel,))

    def follow_live(
        self, channel: int = 0, timeout_s: float | None = None, *, poll_s: float = 0.01
    ) -> Iterator[LiveVolume]:
        """Yield the newest rolling volume each time there is another; what came between is left out.

        Ends when the run is closed, or when nothing came for `timeout_s` seconds (None: waits for ever).
        """
        return follow_live(self, channel, timeout_s, poll_s)

    def follow(
        self, timeout_s: float | None = None, *, channel: int | None = None, poll_s: float = 0.05
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (t, volume) for every written time point: those that are there, then each as it comes.

        Gaps are passed over (`gaps` lists them). With several channels a time point comes when all of them
        are written; name one, and its volumes (Z, Y, X) come alone. Ends when the run is closed, or when
        nothing came for `timeout_s` seconds (None: waits for ever).
        """
        return follow(self, channel, timeout_s, poll_s)

    def at(self, position: int) -> Run:
        """Return the run at another of its positions, in the same open files: they are closed with either."""
        return Run(self.path, position, check=self._check, parts=self._parts)

    def close(self) -> None:
        """Close the file. What was read stays valid."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number(self, time_point: int) -> int:
        """Return the sweep that a time point holds."""
        return time_point % len(self) + self._parts.plan.first_time_point

    def _rows(self, time_point: int, channel: int) -> FrameTable:
        place = self.place(time_point, channel)

        def read(name: str) -> NDArray[Any]:
            if name == "projections":
                return self.projections.filled(0)[place]
            return TimeSeries(lambda: self._pieces(name))[place]

        return FrameTable.read(read, self._parts.plan.minor)

    def _pieces(self, name: str) -> Iterator[Piece]:
        return (Piece(part.view(self._prefix + name)) for part in self._parts.all())

    def _images(self, name: str, checksum: str, what: str, flag: str = "") -> TimeSeries:
        """Return a series of volumes, present where the status (and `flag`, if given) says so."""

        def is_there(part: RunFile) -> Callable[[Item], bool]:
            status = part.view(f"{self._prefix}mdd/status")
            flags = part.view(f"{self._prefix}mdd/{flag}") if flag else None
            return lambda item: bool(status[item] == Status.WRITTEN and (flags is None or flags[item] == 1))

        def why(item: Item) -> str:
            status, reason = settled(self.status[item], self.values("reason")[item])
            if flag and status is Status.WRITTEN:
                return _NO_UNCERTAINTY
            reason = f"it is {status.name.lower()}, {reason}" if status else reason
            return f"{reason}; run.gaps() lists all gaps, .filled(value) puts a value there."

        return self._series(name, checksum, what, is_there, why)

    def _frames(self) -> TimeSeries:
        """Return the series of frames, present where they have a `seq`."""

        def is_there(part: RunFile) -> Callable[[Item], bool]:
            seq = part.view(f"{self._prefix}mdd/frames/seq")
            return lambda item: bool(seq[item] >= 0)

        return self._series("projections", "frames/crc32", "frame", is_there, lambda item: _NO_FRAME)

    def _series(
        self,
        name: str,
        checksum: str,
        what: str,
        is_there: Callable[[RunFile], Callable[[Item], bool]],
        why: Callable[[Item], str],
    ) -> TimeSeries:
        def pieces() -> Iterator[Piece]:
            for part in self._parts.all():
                sums = part.view(f"{self._prefix}mdd/{checksum}") if self._check and checksum else None
                yield Piece(part.view(self._prefix + name), is_there(part), sums)

        leading = len(self.place(0, 0)) + (name == "projections")
        return TimeSeries(pieces, name=what, leading=leading, why=why)


def open_run(
    path: str | Path,
    *,
    position: int = 0,
    check: bool = True,
    missing: Literal["warn", "refuse", "ignore"] = "warn",
) -> Run:
    """Open a run file for reading, also while it is being written.

    Parameters
    ----------
    path
        The run's (first) file.
    position
        Which of the stage's positions.
    check
        Whether to compare volumes and frames that are read completely with their checksums.
    missing
        What to do where some of the run's files are not there (`Run.missing_files`): warn, and read it up to
        the first of them; refuse it; or only read it.

    Raises
    ------
    MissingFileError
        There is no such file, or the run is refused.
    InputFileError
        It is not a run file, is damaged, of another layout version, or has no such position.
    """
    run = Run(Path(path), position, check=check)
    if missing != "ignore" and (lacking := run.missing_files):
        text = lacking_sentence(run.path, lacking)
        if missing == "refuse":
            run.close()
            raise MissingFileError(text)
        warnings.warn(text, stacklevel=2)
    return run


@contextlib.contextmanager
def open_positions(path: Path) -> Iterator[list[Run]]:
    """Open a run at each of its positions; raises as `open_run` does where a file is missing."""
    with open_run(path, missing="refuse") as first:
        yield [first, *(first.at(position) for position in range(1, len(first.header.positions)))]
