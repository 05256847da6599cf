"""The file that a copy of a run goes into, in either storage.

Owns how a value gets to its place in a file that nobody else has open: plain writes where the storage is
static; through HDF5, each image once and whole, where it is chunked. Such a file is closed in order at its
end, so every HDF5 from 1.10 on opens it like any other. One thread.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import numpy as np

from microdiffusion.errors import InputFileError, MddError, NoRoomError
from microdiffusion.runfile.layout import RunLayout, RunPlan, create_run_file
from microdiffusion.runfile.schema import datasets
from microdiffusion.runfile.swmr_file import (
    LIBVER,
    Chunks,
    chunk_shape,
    create_swmr_file,
    is_image,
    stored_shape,
)

_MARGIN_BYTES = 16 << 20  # left free: HDF5 must not meet a full disk in the middle of its tables
_MOST_CHUNK_BYTES = 1 << 30  # HDF5 takes less than 4 GiB, and a reader holds a whole one


class Target(Protocol):
    """A file that is being filled."""

    def write(self, name: str, value: Any, index: tuple[int, ...] = ()) -> None:
        """Write what `index` selects of the dataset `name`; `value` has its shape."""
        ...


@contextlib.contextmanager
def open_target(path: Path, plan: RunPlan, chunks: Chunks | None = None) -> Iterator[Target]:
    """Create a run file as its plan says and yield it; it is complete and closed when the block ends.

    Parameters
    ----------
    path
        Where it is made; nothing is there yet.
    plan
        Of storage "static" or "swmr".
    chunks
        Planes, rows and columns of an image's chunks; None: as the recorder chooses them. Static: not used.

    Raises
    ------
    OSError
        It cannot be written; NoRoomError where the disk is full.
    InputFileError
        Such chunks cannot be.
    DependencyError
        The compression needs a package that is missing.
    """
    if plan.storage == "static":
        layout = create_run_file(path, plan)
        with path.open("r+b") as stream:
            yield _Static(stream, layout)
        return
    _check(plan, chunks)
    try:
        create_swmr_file(path, plan, chunks)
        # Chunks are written whole and once: no cache. Nobody else knows of the file: no lock.
        with h5py.File(path, "r+", libver=LIBVER, rdcc_nbytes=0, locking=False) as file:
            yield _Chunked(file, path, plan)
    except RuntimeError as error:  # so h5py calls what happens while it closes a file
        if isinstance(error, MddError):
            raise
        raise OSError(str(error)) from error


class _Static:
    """A file whose datasets have their places."""

    def __init__(self, stream: BinaryIO, layout: RunLayout) -> None:
        self._stream, self._layout = stream, layout

    def write(self, name: str, value: Any, index: tuple[int, ...] = ()) -> None:
        region = self._layout.regions[name]
        offset, size = region.locate(index)
        content = np.ascontiguousarray(value, region.dtype)
        if content.nbytes != size:
            raise ValueError(f"/{name}{list(index)} takes {size} bytes, not {content.nbytes}")
        self._stream.seek(offset)
        self._stream.write(content.reshape(-1).view(np.uint8).data)


class _Chunked:
    """A file whose chunks HDF5 packs and places."""

    def __init__(self, file: h5py.File, path: Path, plan: RunPlan) -> None:
        self._file, self._path = file, path
        self._schema = {one.path: one for one in datasets(plan)}
        self._open: dict[str, h5py.Dataset] = {}

    def write(self, name: str, value: Any, index: tuple[int, ...] = ()) -> None:
        schema = self._schema[name]
        if name not in self._open:
            self._open[name] = self._file[name]
        dataset = self._open[name]
        content = np.asarray(value, schema.dtype)
        shape = stored_shape(schema)[len(index) :]
        if content.shape != schema.shape[len(index) :]:
            raise ValueError(f"/{name}{list(index)} has the shape {shape}, not {content.shape}")
        if is_image(schema):
            self._need(content.nbytes)
        if content.dtype.kind == "S":  # HDF5 does not take it for UTF-8 unless its type says so
            content = content.astype(dataset.dtype)
        dataset[index] = content.reshape(shape)

    def _need(self, size: int) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free < size + _MARGIN_BYTES:
            raise NoRoomError(
                f"The copy needs {(size + _MARGIN_BYTES) / 1e6:.0f} MB more, {free / 1e6:.0f} MB are free: "
                "make room, or choose another folder; nothing was left behind."
            )


def _check(plan: RunPlan, chunks: Chunks | None) -> None:
    for dataset in datasets(plan) if chunks else ():
        shape = chunk_shape(dataset, chunks)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dataset.dtype).itemsize
        if is_image(dataset) and size > _MOST_CHUNK_BYTES:
            raise InputFileError(
                f"A chunk of {size / 1e9:.1f} GB is more than readers can hold (/{dataset.path}): "
                "give --chunks of fewer planes or rows, such as 16,128,128."
            )
