"""A run as a dask or xarray array: lazy, one chunk a volume of one channel.

Owns `to_dask` and `to_xarray`, and how a scheduler's threads and processes read a block without the caller's
`Run`. A block refers to its run file, not to an open file, so that it can be pickled; each thread opens the
runs that it needs and keeps the last few.

Invariants: the arrays have the time points with a status at the time of the call, index t of them is time
point t of the run (unless gaps were dropped, on request), and a gap is never zeros.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DependencyError, GapError, InputFileError
from microdiffusion.runfile import Run, Status, TimeSeries, open_run

Gaps = Literal["raise", "nan", "drop"]
"""Treatment of time points without a volume: a `GapError` when they are computed; NaN, which makes the
array float32; or they are left out."""

_KEPT_OPEN = 8  # runs of each thread
_threads = threading.local()


@dataclass(frozen=True, slots=True)
class BlockSource:
    """Source of the blocks of an array. Picklable.

    Attributes
    ----------
    path : str
        The run's first file, absolute.
    run_id : str
        The run that the file must be of: names are reused.
    position, level : int
        Position of the stage; level of the pyramid, 0 the volume itself.
    uncertainty : bool
        The volume's uncertainty in its place; the map of it where the file has no more.
    """

    path: str
    run_id: str
    position: int = 0
    level: int = 0
    uncertainty: bool = False

    @classmethod
    def of(cls, run: Run, position: int, level: int = 0, *, uncertainty: bool = False) -> BlockSource:
        """Return the source of a run's volumes."""
        path = str(run.path.absolute())
        return cls(path, run.header.run_id, position, level, uncertainty)

    def open(self) -> Run:
        """Return the run as opened by this thread; an error where its file is gone, or another run's."""
        runs: OrderedDict[Any, Run] = _threads.__dict__.setdefault("runs", OrderedDict())
        key = (self.path, self.run_id, self.position)
        if key in runs:
            runs.move_to_end(key)
            return runs[key]
        run = open_run(Path(self.path), position=self.position, missing="ignore")
        if run.header.run_id != self.run_id:
            run.close()
            raise InputFileError(f"{self.path} is now the file of another run: open that run.")
        runs[key] = run
        if len(runs) > _KEPT_OPEN:
            runs.popitem(last=False)[1].close()
        return run

    def series(self, run: Run) -> TimeSeries:
        """Return the series of the run that this refers to."""
        if not self.uncertainty:
            return run.pyramid[self.level]
        series = run.uncertainty if run.uncertainty is not None else run.uncertainty_map
        if series is None:
            raise InputFileError(f"{self.path} has no uncertainty: it is of an mdd before layout 1.4.")
        return series

    def read(
        self, time_point: int, channel: int, index: Any = (), *, fill: float | None = None
    ) -> NDArray[Any]:
        """Return what `index` selects of a volume (Z, Y, X).

        Parameters
        ----------
        fill
            Value of gaps; None: a gap is an error.

        Raises
        ------
        GapError
            There is no such volume, and no `fill`.
        """
        run = self.open()
        series = self.series(run)
        index = index if isinstance(index, tuple) else (index,)
        try:
            if time_point >= len(series):  # never used, so the closed file has no room for it
                raise GapError(f"{self.path} has no time point {time_point}: run.written() lists all.")
            return series[(*run.place(time_point, channel), *index)]
        except GapError:
            if fill is None:
                raise
            return np.array(np.broadcast_to(np.float32(fill), series.shape[-3:])[index])


def to_dask(run: Run, level: int = 0, *, gaps: Gaps = "raise") -> Any:
    """Return the volumes of a run as a lazy dask array (T, [C,] Z, Y, X), one chunk a volume of one channel.

    It ends with the last time point that had a status at the time of the call, and works with any of dask's
    schedulers, also after `run` was closed.

    Parameters
    ----------
    run
        The run, at one position of the stage.
    level
        Of the pyramid, 0 the volume itself.
    gaps
        Treatment of time points without a volume: "raise" a `GapError` when they are computed; "nan" (the
        array is float32); "drop" leaves them out, so that index t is no longer time point t.

    Raises
    ------
    DependencyError
        dask is not installed; the message has the install line.
    """
    return _dask_of(run, level, gaps, _time_points(run, gaps))


def _dask_of(run: Run, level: int, gaps: Gaps, times: NDArray[np.intp]) -> Any:
    array = _import("dask.array", "dask", "dask")
    source = _source(run, level)
    shape = source.series(run).shape
    dtype = np.dtype(np.float32) if gaps == "nan" else source.series(run).dtype
    if not times.size:
        return array.zeros((0, *shape[1:]), dtype=dtype)
    chunks = ((1,) * times.size, *((1,) * axis for axis in shape[1:-3]), *((axis,) for axis in shape[-3:]))
    return array.map_blocks(
        _block,
        source,
        times.tolist(),
        np.nan if gaps == "nan" else None,
        dtype=dtype,
        chunks=chunks,
        meta=np.empty((0,) * len(shape), dtype),
        # Different from arrays of the same run that were made earlier, when there was less of it.
        name=f"mdd-{source.run_id[:8]}-{array.core.tokenize(source, times, gaps, run.status)}",
    )


def _block(
    source: BlockSource, times: list[int], fill: float | None, block_id: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Return one block (1, [1,] Z, Y, X)."""
    if block_id is None:  # dask infers the result
        return np.empty((0,), np.float32)
    t, channel = times[block_id[0]], block_id[1] if len(block_id) == 5 else 0
    volume = source.read(t, channel, fill=fill)
    if fill is not None:
        volume = volume.astype(np.float32, copy=False)
    return volume.reshape((1,) * (len(block_id) - 3) + volume.shape)


def to_xarray(run: Run, level: int = 0, *, gaps: Gaps = "drop") -> Any:
    """Return the volumes of a run as a lazy xarray.DataArray (t, [c,] z, y, x) in µm and s.

    Coordinates: `t` camera time of the last frame (NaN where none is known), `time_point` index in the run,
    `written`, `c` names of the channels, `z`, `y`, `x` centres of the voxels. Its `attrs` have units, voxel
    size and, in words, all gaps. For `level` and `gaps` see `to_dask`.

    Raises
    ------
    DependencyError
        xarray or dask is not installed; the message has the install line.
    """
    xarray = _import("xarray", "xarray", "xarray")
    times = _time_points(run, gaps)
    # Of the same time points, even if a volume is written meanwhile.
    data = _dask_of(run, level, gaps, times)
    header, factors = run.header, run.pyramid_factors[level]
    written = run.status[times] == Status.WRITTEN
    acquired = run.times[times]
    channels = ("c",) if data.ndim == 5 else ()
    lead = ("t", *channels)
    when = {"units": "s", "long_name": "camera time of the last frame, since the start"}
    coordinates: dict[str, Any] = {
        "t": ("t", np.fmax.reduce(acquired, axis=1) if channels else acquired, when),
        "time_point": ("t", times, {"long_name": "index of the time point in the run"}),
        "written": (lead, written, {"long_name": "whether there is a volume"}),
    }
    if channels:
        coordinates["c"] = ("c", list(header.channels), {"long_name": "channel"})
        coordinates["acquired_s"] = (lead, acquired, when)
    for axis, size, edge, factor in zip("zyx", data.shape[-3:], header.voxel_size_um, factors, strict=True):
        start = (header.z0_um if axis == "z" else 0.0) + (factor - 1) / 2 * edge
        coordinates[axis] = (axis, start + np.arange(size) * edge * factor, {"units": "µm"})
    return xarray.DataArray(
        data,
        coords=coordinates,
        dims=(*lead, "z", "y", "x"),
        name="volume",
        attrs={
            "units": "counts",
            "voxel_size_um": [
                edge * factor for edge, factor in zip(header.voxel_size_um, factors, strict=True)
            ],
            "gaps": [
                f"t={gap.time_point} {header.channels[gap.channel]}: {gap.status.name.lower()}"
                + (f", {gap.reason}" if gap.reason else "")
                for gap in run.gaps()
            ],
            "run": header.name,
            "run_id": header.run_id,
            "position": header.positions[run.position],
            "level": level,
            "path": str(run.path),
        },
    )


def _source(run: Run, level: int) -> BlockSource:
    levels = len(run.pyramid)
    if not 0 <= level < levels:
        raise InputFileError(f"{run.path} has the levels 0 to {levels - 1}, so there is no level {level}.")
    return BlockSource.of(run, run.position, level)


def _time_points(run: Run, gaps: Gaps) -> NDArray[np.intp]:
    if gaps == "drop":
        return run.written()
    if gaps not in ("raise", "nan"):
        raise ValueError(f'gaps is {gaps!r}, and must be "raise", "nan" or "drop"')
    return np.arange(run.used)


def _import(module: str, package: str, extra: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise DependencyError(
            f'This needs {package}: python -m pip install "microdiffusion-daemon[{extra}]".'
        ) from error
