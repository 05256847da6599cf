"""Run files that are compressed or open-ended: HDF5's SWMR storage, how it is created and how it is read.

Owns the form in which `run_schema`'s datasets lie in such a file, and `SwmrPart`, a reader's view of it. All
datasets are chunked, and of types of a fixed size; all exist before the first volume. *Images* (volumes,
projections, coarser copies) are stored chunk by chunk, compressed or not, each chunk once. Everything else is
*figures*: not compressed, their chunks set aside as soon as the file has room for the time points, so that a
figure has its place and is written there. What the schema calls a scalar is an array of one element. Time
grows: `/mdd/status` is lengthened last, and its length is the file's T.

A reader opens the file through `unmarked.Unmarked`, in the same way while it is written, after a kill, and
when it is closed; what HDF5 was just writing is read once more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DamagedError, DependencyError, InputFileError, MddError, MissingFileError
from microdiffusion.runfile.attributes import read_plan, set_attributes, write_attributes, write_plots
from microdiffusion.runfile.schema import Dataset, RunPlan, datasets
from microdiffusion.runfile.superblock import read_superblock
from microdiffusion.runfile.unmarked import Unmarked

COMPRESSIONS = ("none", "gzip", "lz4")
LIBVER = ("v110", "v110")  # read by HDF5 1.10 and everything after it
_CHUNK_BYTES = 1 << 20  # most of an image's chunk
_FIGURE_ELEMENTS = 1024  # least of a figure's chunk
_BITSHUFFLE = 32008
_BITSHUFFLE_OPTIONS = (0, 2)  # its own block size; LZ4
_LEVEL = 1
_ATTEMPTS = 20
_REST_S = 0.01
_T = TypeVar("_T")
Chunks = tuple[int, int, int]
"""Planes, rows and columns of an image's chunk, where somebody chose them."""


def is_image(dataset: Dataset) -> bool:
    """Return whether a dataset is written in chunks of its own, compressed where that is asked for."""
    *group, name = dataset.path.split("/")
    return dataset.timed and (name in ("volume", "projections", "uncertainty") or group[-1:] == ["pyramid"])


def item_axes(dataset: Dataset) -> int:
    """Return how many axes name one image of a dataset: time, then channel and frame where there are such."""
    return len(dataset.shape) - (2 if dataset.path.endswith("projections") else 3)


def stored_shape(dataset: Dataset) -> tuple[int, ...]:
    """Return a dataset's shape in the file: a scalar is an array of one."""
    return dataset.shape or (1,)


def chunk_shape(dataset: Dataset, chosen: Chunks | None = None) -> tuple[int, ...]:
    """Return the shape of a dataset's chunks; each is one stretch of the bytes of what it belongs to.

    `chosen` are those of images, which are then as they were asked for, and not larger than an image.
    """
    shape = stored_shape(dataset)
    if not is_image(dataset):
        if not dataset.timed:
            return (1, *shape[1:]) if dataset.path.endswith("live/volume") else shape
        return (ceil(_FIGURE_ELEMENTS / prod(shape[1:])), *shape[1:])
    lead = item_axes(dataset)
    if chosen:
        image = shape[lead:]
        return (*(1 for _ in range(lead)), *map(min, chosen[-len(image) :], image))
    room = _CHUNK_BYTES // np.dtype(dataset.dtype).itemsize
    *planes, height, width = shape[lead:]
    rows = min(height, max(room // width, 1))
    inner = [rows, width]
    if planes:
        inner.insert(0, min(planes[0], max(room // (height * width), 1)) if rows == height else 1)
    return (*(1 for _ in range(lead)), *inner)


def require_compression(compression: str) -> None:
    """Make sure that a compression can be used here.

    Raises
    ------
    DependencyError
        A package is missing.
    """
    if compression != "lz4":
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # makes the filter known to HDF5
    if not h5py.h5z.filter_avail(_BITSHUFFLE):
        raise DependencyError(
            "LZ4 compression (HDF5 filter 32008, bitshuffle) needs hdf5plugin: "
            'run pip install "microdiffusion-daemon[compression]".'
        )


def create_swmr_file(path: Path, plan: RunPlan, chunks: Chunks | None = None) -> None:
    """Create an empty run file with room for `plan.time_points`; complete and closed when this returns.

    `chunks` are chosen for its images in place of those that the recorder writes: it does not go on in them.

    Raises
    ------
    OSError
        The file exists or cannot be written.
    DependencyError
        Its compression needs a package that is missing.
    """
    require_compression(plan.compression)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    with h5py.File(path, "x", libver=LIBVER, rdcc_nbytes=0, track_order=False, locking=False) as file:
        write_attributes(file, plan)
        for dataset in datasets(plan):
            _create(file, dataset, plan.compression, links, chunks)
        write_plots(file, plan)


def _create(
    file: h5py.File, dataset: Dataset, compression: str, links: Any, chunks: Chunks | None = None
) -> None:
    shape = stored_shape(dataset)
    numpy_type = np.dtype(dataset.dtype)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk(chunk_shape(dataset, chunks))
    creation.set_obj_track_times(False)
    if is_image(dataset):
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_INCR)
        if compression == "gzip":
            creation.set_shuffle()
            creation.set_deflate(_LEVEL)
        elif compression == "lz4":
            creation.set_filter(_BITSHUFFLE, h5py.h5z.FLAG_MANDATORY, _BITSHUFFLE_OPTIONS)
    else:
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    content = None if dataset.content is None else np.asarray(dataset.content, numpy_type)
    if content is not None and content.ndim == 0 and numpy_type.kind != "S":
        creation.set_fill_value(content)
        content = None
    most = (h5py.h5s.UNLIMITED, *shape[1:]) if dataset.timed else shape
    kind = h5py.string_dtype("utf-8", numpy_type.itemsize) if numpy_type.kind == "S" else numpy_type
    created = h5py.h5d.create(
        file.id,
        dataset.path.encode(),
        h5py.h5t.py_create(kind, logical=True),
        h5py.h5s.create_simple(shape, most),
        creation,
        lcpl=links,
    )
    if content is not None:
        h5py.Dataset(created)[...] = content.astype(kind).reshape(shape)
    if dataset.attributes:
        set_attributes(h5py.Dataset(created), dataset.attributes)


def is_swmr_file(path: Path) -> bool:
    """Return whether a file has the superblock that SWMR needs; static run files have an older one.

    Raises
    ------
    OSError
        It cannot be read.
    """
    return read_superblock(path) is not None


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading, without a lock: also one that is being written, or was cut off.

    Raises
    ------
    OSError
        It is none, or damaged.
    """
    if is_swmr_file(path):
        with Unmarked(path) as stream, h5py.File(stream, "r") as file:
            yield file
    else:
        # Through a stream HDF5 takes no lock.
        with path.open("rb") as plain, h5py.File(plain, "r") as file:
            yield file


class _Image:
    """A dataset of images that is read when it is indexed."""

    def __init__(
        self, path: Path, name: str, dataset: h5py.Dataset, time_points: int, read: Callable[[Any], Any]
    ) -> None:
        self._path, self._name, self._read = path, name, read
        self.shape: tuple[int, ...] = (time_points, *dataset.shape[1:])
        self.dtype: np.dtype[Any] = dataset.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        plain = all(
            isinstance(part, int | np.integer) or (isinstance(part, slice) and (part.step or 1) > 0)
            for part in parts
        )
        try:
            if plain:
                return self._read(parts)
            # What HDF5 cannot select is selected from the whole image.
            whole = sum(1 for _ in self._lead(parts))
            return np.asarray(self._read(parts[:whole]))[parts[whole:]]
        except (OSError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise DamagedError(
                f"{self._path}: /{self._name} cannot be read at {parts[:2]} ({reason}): "
                "the file is damaged or incomplete; `mdd verify` tells what else is."
            ) from error

    @staticmethod
    def _lead(parts: tuple[Any, ...]) -> Iterator[int]:
        for part in parts:
            if not isinstance(part, int | np.integer):
                return
            yield int(part)


class SwmrPart:
    """One file of a run in the SWMR storage, open for reading; see `files.Part`. Any one thread."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"There is no run file at {path}: check the path.")
        self.path = path
        self._open: dict[str, h5py.Dataset] = {}
        self._patient = False
        self._file: h5py.File | None = None
        self._stream: Unmarked | None = None
        try:
            found = read_superblock(path)
            self._patient = (
                found is not None and found.marked
            )  # a writer may be at work on what cannot be read
            self._stream = Unmarked(path)
            self._file, self._plan = self._begin()
            self.schema = {dataset.path: dataset for dataset in datasets(self._plan)}
            require_compression(self._plan.compression)
        except (InputFileError, DependencyError):
            self.close()
            raise
        except Exception as error:  # damaged bytes make h5py raise nearly every kind of error
            self.close()
            reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
            raise InputFileError(
                f"{path} cannot be read as HDF5 ({reason}): "
                "it is damaged, incomplete or another kind of file."
            ) from error

    @property
    def plan(self) -> RunPlan:
        """The plan, with the time points that the file has grown to."""
        time_points = self._time_points()
        if time_points != self._plan.time_points:
            self._plan = replace(self._plan, time_points=time_points)
        return self._plan

    def view(self, name: str) -> Any:
        """Return a dataset, as new as the file is: figures as an array, images as what is read when indexed.

        Raises
        ------
        InputFileError
            It is absent, changed, or cannot be read.
        """
        schema = self.schema[name]
        time_points = self._time_points() if schema.timed else 0
        dataset = self._dataset(name)
        if is_image(schema):
            return _Image(
                self.path, name, dataset, time_points, lambda parts: self._read(name, dataset, parts)
            )
        try:
            content = self._read(name, dataset, ())
        except (OSError, KeyError, RuntimeError) as error:
            raise self._damaged(name, error) from error
        return content[:time_points] if schema.timed else content.reshape(schema.shape)

    def as_recorded(self) -> bool:
        """Return whether the chunks of images are those that a recorder writes."""
        images = [one for one in self.schema.values() if is_image(one)]
        return all(self._dataset(one.path).chunks == chunk_shape(one) for one in images)

    def require_whole(self) -> None:
        """Make sure that HDF5 can read all of the tables, before it is asked to write.

        Where it writes in SWMR mode it waits for a damaged table, for ever.

        Raises
        ------
        InputFileError
            It cannot.
        """
        for name, schema in self.schema.items():
            self.view(name)
            if is_image(schema):
                try:
                    self._patiently(partial(self._count_chunks, name))
                except (OSError, KeyError, RuntimeError) as error:
                    raise self._damaged(name, error) from error

    def _count_chunks(self, name: str) -> int:
        return int(self._opened(name).id.get_num_chunks())

    def is_timed(self, name: str) -> bool:
        """Return whether a dataset's first axis is time."""
        return self.schema[name].timed

    def close(self) -> None:
        """Let go of the file."""
        self._open.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _begin(self) -> tuple[h5py.File, RunPlan]:
        def begin() -> tuple[h5py.File, RunPlan]:
            file = h5py.File(self._stream, "r", rdcc_nbytes=0)
            try:
                return file, read_plan(self.path, file)
            except BaseException:
                file.close()
                raise

        return self._patiently(begin)

    def _time_points(self) -> int:
        return int(self._dataset("mdd/status").shape[0])

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset, refreshed."""
        if self._file is None:
            raise ValueError("The run was closed: open it again with open_run.")
        try:
            return self._patiently(lambda: self._opened(name))
        except MddError:
            raise
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _read(self, name: str, dataset: h5py.Dataset, parts: Any) -> Any:
        """Read from a dataset; once more from what it is then, where it cannot be read."""
        first = [dataset]
        return self._patiently(lambda: (first.pop() if first else self._opened(name))[parts])

    def _opened(self, name: str) -> h5py.Dataset:
        """Return a dataset as it is in the file at this moment."""
        known = self._open.pop(name, None)
        if known is not None:
            try:
                known.refresh()
            except (OSError, RuntimeError, ValueError):
                pass  # HDF5 has let go of it: it is opened anew
            else:
                self._open[name] = known
                return self._fitting(name, known)
        dataset = self._file[name] if self._file is not None else None
        schema = self.schema[name]
        shape, expected = getattr(dataset, "shape", None), stored_shape(schema)
        same = (
            isinstance(dataset, h5py.Dataset)
            and shape is not None
            and len(shape) == len(expected)
            and shape[schema.timed :] == expected[schema.timed :]
            and dataset.dtype == np.dtype(schema.dtype)
        )
        if not same:
            raise InputFileError(f"{self.path}: /{name} is absent or was changed: use an untouched copy.")
        self._open[name] = self._fitting(name, dataset)
        return dataset

    def _patiently(self, read: Callable[[], _T]) -> _T:
        """Read what a writer may be changing: a table that is half new is whole a moment later.

        Once something did not become whole, the file is taken for damaged: to wait each time would take long.
        """
        attempts = _ATTEMPTS if self._patient else 2
        for number in range(1, attempts + 1):
            try:
                found = read()
            except (OSError, KeyError, RuntimeError):
                if number == attempts:
                    self._patient = False
                    raise
                time.sleep(_REST_S)
            else:
                self._patient = self._patient or number > 1
                break
        return found

    def _fitting(self, name: str, dataset: h5py.Dataset) -> h5py.Dataset:
        """Refuse figures that claim more bytes than the file has: theirs are there, and not compressed."""
        if not is_image(self.schema[name]) and dataset.nbytes > self.path.stat().st_size:
            raise DamagedError(
                f"{self.path}: /{name} claims to be larger than its file: it is damaged or was changed; "
                "use an untouched copy."
            )
        return dataset

    def _damaged(self, name: str, error: Exception) -> InputFileError:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        return DamagedError(
            f"{self.path}: /{name} cannot be read ({reason}): it is damaged or incomplete; "
            "`mdd repair` tells what can be done."
        )


def read_all(part: SwmrPart, name: str, index: tuple[int, ...] = ()) -> NDArray[Any]:
    """Return what `index` selects of a dataset, read into memory."""
    return np.asarray(part.view(name)[index])
