"""Projections as dask arrays in, volumes as dask arrays out, for pipelines of one's own.

`map_sweeps` is `map_blocks` with the engine: a chunk along time is a session of its own, which may go through
some sweeps before it first. A block refers to files and settings, so that it can be pickled; each process
opens the engine once and does one block at a time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microdiffusion.config import EngineConfig
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.errors import DependencyError, GapError, GeometryError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.runfile import open_run

if TYPE_CHECKING:
    from microdiffusion.header import RunHeader
    from microdiffusion.runfile import Run

_engines: dict[str, Engine] = {}
_one_at_a_time = threading.Lock()


def map_sweeps(
    projections: Any,
    z_um: ArrayLike,
    header: RunHeader,
    config: EngineConfig | None = None,
    *,
    warm_up: int = 0,
) -> Any:
    """Return the volumes of projections as a lazy dask array (T, Z, Y, X) float32.

    Parameters
    ----------
    projections : dask.array.Array
        (T, M, Y, X), counts; each chunk along T is a session, which knows its earlier sweeps.
    z_um : (T, M) array
        Centres of the slabs, µm.
    header : RunHeader
        Geometry, beam and camera; its shape is that of the volumes.
    config : EngineConfig, optional
        The engine's settings.
    warm_up : int
        Sweeps before a chunk that its session goes through first; no more than the shortest chunk but the
        last has.

    Raises
    ------
    DependencyError
        dask is not installed.
    GeometryError
        The arrays do not fit together, or chunks are shorter than the warm-up.
    """
    array = _dask_array()
    depths = np.asarray(z_um, np.float64)
    if projections.ndim != 4 or depths.shape != projections.shape[:2]:
        raise GeometryError(
            f"map_sweeps wants projections (T, M, Y, X) and z_um (T, M), not {projections.shape} and "
            f"{depths.shape}: stack them so."
        )
    if projections.shape[2:] != header.shape[1:]:
        raise GeometryError(
            f"The projections have {projections.shape[2:]} pixels and the header {header.shape[1:]}: "
            "give the header of these projections."
        )
    whole = projections.rechunk({1: -1, 2: -1, 3: -1})
    chunks = whole.chunks[0]
    if len(chunks) > 1 and warm_up > min(chunks[:-1]):
        raise GeometryError(
            f"A warm-up of {warm_up} sweeps needs chunks of as many, and there is one of {min(chunks[:-1])}: "
            f"projections.rechunk({{0: {warm_up}}}) or more."
        )
    if warm_up and len(chunks) > 1:
        depth = {0: (warm_up, 0), 1: 0, 2: 0, 3: 0}
        whole = array.overlap.overlap(whole, depth=depth, boundary="none", allow_rechunk=False)
    return array.map_blocks(
        _block,
        whole,
        depths,
        header,
        config or EngineConfig(),
        np.cumsum((0, *chunks)),
        warm_up,
        dtype=np.float32,
        meta=np.empty((0, 0, 0, 0), np.float32),
        chunks=(chunks, *((edge,) for edge in header.shape)),
    )


def lazy_projections(run: Run, channel: int = 0) -> tuple[Any, NDArray[np.float64]]:
    """Return the projections of a run for `map_sweeps`: a lazy dask array (T, M, Y, X), and z_um (T, M).

    Without those that are held out, ascending in z, one chunk a sweep: rechunk along time before use.

    Raises
    ------
    DependencyError
        dask is not installed.
    GapError
        A sweep lacks frames; `mdd reconstruct` takes such runs.
    """
    array = _dask_array()
    layout = (-1, len(run.header.channels), run.values("frames/seq").shape[-1])
    seq, depths, held = (run.values(f"frames/{name}").reshape(layout)[:, channel] for name in _COLUMNS)
    there = (seq >= 0) & (held == 0)
    counts = there.sum(axis=1)
    used = np.flatnonzero(counts)
    if not used.size or (counts[: used[-1] + 1] != counts[0]).any():
        raise GapError(
            f"{run.path} has sweeps with fewer frames than others: `mdd reconstruct` takes such runs."
        )
    stop, count = int(used[-1]) + 1, int(counts[0])
    z_um = np.sort(depths[:stop][there[:stop]].reshape(stop, count), axis=1)
    source = _Projections(
        str(run.path.absolute()), run.position, channel, (stop, count, *run.header.shape[1:])
    )
    return array.from_array(source, chunks=(1, *source.shape[1:]), asarray=False), z_um


_COLUMNS = ("seq", "z_um", "held_out")


@dataclass(frozen=True, slots=True)
class _Projections:
    """Projections that dask slices; picklable."""

    path: str
    position: int
    channel: int
    shape: tuple[int, ...]
    dtype: ClassVar[Any] = np.dtype(np.float32)
    ndim: ClassVar[int] = 4

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[np.float32]:
        with open_run(self.path, position=self.position, missing="ignore") as run:
            sweeps = range(self.shape[0])[index[0]]
            return np.stack([run.sweep(t, self.channel).projections for t in sweeps])[
                (slice(None), *index[1:])
            ]


def _block(
    images: NDArray[Any],
    z_um: NDArray[np.float64],
    header: RunHeader,
    config: EngineConfig,
    starts: NDArray[np.int64],
    warm_up: int,
    block_id: tuple[int, ...] = (),
) -> NDArray[np.float32]:
    """Return the volumes of a chunk, whose warm-up comes first in `images`."""
    start = int(starts[block_id[0]])
    before = min(warm_up, start)
    volumes = []
    with _one_at_a_time:
        reconstructor = Reconstructor(header, config, _engine(config))
        for number, pixels in enumerate(images, start - before):
            stage = StagePositions.along_z(z_um[number])
            order = stage.order()
            sweep = Sweep(
                number,
                0,
                0,
                stage[order],
                np.asarray(pixels, np.float32)[order],
                stage[:0],
                np.empty((0, *pixels.shape[1:]), np.float32),
            )
            volume = reconstructor.reconstruct(sweep).volume
            if number >= start:
                volumes.append(volume)
    return np.stack(volumes)


def _engine(config: EngineConfig) -> Engine:
    key = config.model_dump_json()
    if key not in _engines:
        _engines.clear()
        _engines[key] = open_engine(config)
    return _engines[key]


def _dask_array() -> Any:
    try:
        import dask.array
    except ImportError as error:
        raise DependencyError("dask is not installed: pip install 'microdiffusion-daemon[dask]'.") from error
    return dask.array
