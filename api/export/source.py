"""Volumes to export: those of one position at one moment, for any format.

Owns the selection (time points, channels, positions, level) and what every format needs of it: one volume at
a time, positions in µm and times in s, names, and the gaps with their reasons. The statuses are read once,
when a picture is made: what a run writes afterwards is not part of it. A picture belongs to the thread that
opened it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.runfile import (
    Factors,
    Run,
    Status,
    TimeSeries,
    coarser,
    level_factors,
    level_shape,
    open_positions,
    settled,
)
from microdiffusion.text import count_noun

Kind = Literal["volume", "uncertainty"]


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a run to export.

    Attributes
    ----------
    first, last : int or None
        Time points, both included; None: from the start, to the last one with a status.
    channels : tuple of str
        Names; empty: all.
    positions : tuple of str
        Names or numbers; empty: all.
    level : int
        The finest level of the pyramid to export; 0: full resolution.
    """

    first: int | None = None
    last: int | None = None
    channels: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    level: int = 0


@dataclass(frozen=True, slots=True)
class ExportGap:
    """A time point of a channel that has no volume, and why."""

    time_point: int
    position: str
    channel: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExportLevel:
    """A level of the pyramid: how many voxels of the run make one of it, and its shape; both (z, y, x)."""

    factors: Factors
    shape: tuple[int, int, int]


class Picture:
    """The volumes of one position, or their uncertainties; made by `open_pictures`.

    Attributes
    ----------
    run : Run
    kind : "volume" or "uncertainty"
    position : int
    name : str
        The position's.
    channels : tuple of str
        Names of those to export.
    time_points : range
        Of the run; index t of the export is `time_points[t]`.
    written : (T, C) bool
        Whether there is a volume.
    times_s : (T, C) float64
        Camera time of each, s since the start of the run; NaN: none.
    levels : tuple of ExportLevel
        The finest first; never empty.
    dtype : numpy.dtype
    """

    def __init__(self, run: Run, kind: Kind, scope: Scope, time_points: range) -> None:
        self.run = run
        self.kind: Kind = kind
        self.position = run.position
        self.name = run.header.positions[run.position]
        self.time_points = time_points
        self._numbers = _channel_numbers(run, scope.channels)
        self.channels = tuple(run.header.channels[number] for number in self._numbers)
        chosen = (slice(time_points.start, time_points.stop), list(self._numbers))
        self._status = self._figures("status")[chosen]
        self._reason = self._figures("reason")[chosen]
        self.written: NDArray[np.bool_] = self._status == Status.WRITTEN
        self.times_s: NDArray[np.float64] = np.where(
            self.written, self._figures("acquired_s")[chosen], np.nan
        )
        if kind == "uncertainty":
            self.written &= self._figures("has_uncertainty")[chosen] != 0
        self._stored, self._factors = _levels(run, kind)
        self._finest = scope.level
        if not 0 <= scope.level < len(self._factors):
            raise InputFileError(
                f"{run.path} has {count_noun(len(self._factors), 'level')}, no level {scope.level}: "
                f"give 0 to {len(self._factors) - 1}."
            )
        self.levels = tuple(
            ExportLevel(factors, level_shape(run.header.shape, factors))
            for factors in self._factors[scope.level :]
        )
        self.dtype = self._stored[0].dtype

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(T, C, Z, Y, X)."""
        return (len(self.time_points), len(self.channels), *self.levels[0].shape)

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume of the finest level that is exported."""
        return prod(self.levels[0].shape) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all volumes at all levels."""
        voxels = sum(prod(level.shape) for level in self.levels)
        return int(np.count_nonzero(self.written)) * voxels * self.dtype.itemsize

    def voxel_size_um(self, level: int = 0) -> tuple[float, float, float]:
        """Return a voxel's size (z, y, x) at a level of the export, µm."""
        z, y, x = (
            edge * factor
            for edge, factor in zip(self.run.voxel_size_um, self.levels[level].factors, strict=True)
        )
        return z, y, x

    def origin_um(self, level: int = 0) -> tuple[float, float, float]:
        """Return the centre of the first voxel (z, y, x) at a level, µm, in the run's coordinates."""
        start = (self.run.header.z0_um, 0.0, 0.0)
        z, y, x = (
            at + 0.5 * edge * (factor - 1)
            for at, edge, factor in zip(
                start, self.run.voxel_size_um, self.levels[level].factors, strict=True
            )
        )
        return z, y, x

    @property
    def interval_s(self) -> float:
        """Time from one time point to the next, s: the median; 0 where there are fewer than two."""
        times = np.full(len(self.time_points), np.nan)
        some = np.isfinite(self.times_s).any(axis=1)
        times[some] = np.nanmin(self.times_s[some], axis=1)
        at = np.flatnonzero(some)
        return float(np.median(np.diff(times[at]) / np.diff(at))) if at.size > 1 else 0.0

    def read(self, t: int, channel: int) -> NDArray[Any]:
        """Return a volume (Z, Y, X) of the finest level: index `t` and `channel` of the export."""
        return self._levels(t, channel, slice(self._finest, self._finest + 1))[0]

    def read_levels(self, t: int, channel: int) -> list[NDArray[Any]]:
        """Return a volume at every level of the export, the finest first.

        Levels that the file does not hold are computed from the volume, by the rule that fills the others.
        """
        return self._levels(t, channel, slice(self._finest, None))

    def _levels(self, t: int, channel: int, wanted: slice) -> list[NDArray[Any]]:
        place = self.run.place(self.time_points[t], self._numbers[channel])
        if len(self._stored) == len(self._factors):
            return [np.asarray(series[place]) for series in self._stored[wanted]]
        volume = np.asarray(self._stored[0][place])
        *_, last = range(len(self._factors))[wanted]
        return [volume, *coarser(volume, self._factors[1 : last + 1])][wanted]

    def all_written(self) -> list[tuple[int, int]]:
        """Return (t, channel) of each volume, in the order of time."""
        return [(t, channel) for t, channel in np.argwhere(self.written).tolist()]

    def gaps(self) -> list[ExportGap]:
        """Return the gaps, in the order of time."""
        found = []
        for t, channel in np.argwhere(~self.written).tolist():
            status, reason = settled(self._status[t, channel], self._reason[t, channel])
            found.append(
                ExportGap(self.time_points[t], self.name, self.channels[channel], status.name.lower(), reason)
            )
        return found

    def _figures(self, name: str) -> NDArray[Any]:
        """Return a dataset of the time points as (T, C)."""
        values = self.run.values(name)
        return values.reshape(values.shape[0], -1)


def _channel_numbers(run: Run, wanted: Sequence[str]) -> tuple[int, ...]:
    names = run.header.channels
    for name in wanted:
        if name not in names:
            raise InputFileError(f"{run.path} has no channel {name}: it has {', '.join(names)}.")
    return tuple(number for number, name in enumerate(names) if not wanted or name in wanted)


def _levels(run: Run, kind: Kind) -> tuple[list[TimeSeries], tuple[Factors, ...]]:
    """Return the stored levels, the volume first, and the factors of all possible levels."""
    if kind == "uncertainty":
        if run.uncertainty is None:
            raise InputFileError(f"{run.path} has no uncertainties.")
        stored = [run.uncertainty]
    else:
        stored = list(run.pyramid)
    if len(stored) > 1:
        return stored, tuple(run.pyramid_factors)
    return stored, ((1, 1, 1), *level_factors(run.header.shape, run.voxel_size_um))


def positions_of(run: Run, wanted: Sequence[str]) -> list[int]:
    """Return the numbers of the positions given by name or number; all where none is given."""
    names = run.header.positions
    if not wanted:
        return list(range(len(names)))
    found = []
    for text in wanted:
        if text in names:  # several may be called alike: characters that cannot be printed become "_"
            found += [number for number, name in enumerate(names) if name == text]
        elif text.isdecimal() and int(text) < len(names):
            found.append(int(text))
        else:
            some = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            raise InputFileError(f"{run.path} has no position {text}: it has {some}.")
    return sorted(set(found))


@contextlib.contextmanager
def open_pictures(path: Path, scope: Scope) -> Iterator[list[Picture]]:
    """Yield the pictures to export: for each position its volumes, then their uncertainties if recorded.

    Parameters
    ----------
    path
        The run's first file; the run may still be going on.
    """
    with open_positions(path) as every:
        runs = [every[number] for number in positions_of(every[0], scope.positions)]
        time_points = _time_points(path, runs, scope)
        pictures = [Picture(run, kind, scope, time_points) for run in runs for kind in _kinds(run)]
        if not any(picture.written.any() for picture in pictures):
            raise InputFileError(f"{path} has no volume to export (yet): see `mdd info`.")
        yield pictures


def _kinds(run: Run) -> tuple[Kind, ...]:
    return ("volume", "uncertainty") if run.uncertainty is not None else ("volume",)


def _time_points(path: Path, runs: Sequence[Run], scope: Scope) -> range:
    """Return the chosen time points, of those with a status in any position."""
    known = max(run.used for run in runs)
    first = scope.first or 0
    last = known - 1 if scope.last is None else scope.last
    if known == 0:
        raise InputFileError(f"{path} has no volume to export (yet): see `mdd info`.")
    if not 0 <= first <= last < known:
        raise InputFileError(
            f"{path} has the time points 0-{known - 1}, not {first}-{last}: choose of those."
        )
    return range(first, last + 1)
