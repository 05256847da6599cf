"""The run file on disk: creating it, and locating the bytes of each dataset.

Translates `schema` to HDF5. A recorder fills a *static* file: HDF5 creates every dataset at its final size,
contiguous and uncompressed, and closes the file; from then on only the bytes inside the datasets change. So
no HDF5 library is needed to fill it, a crash cannot tear its metadata, and every HDF5 reader can open it at
any moment. In a compressed copy the images are chunked, and only HDF5 reads them.

Invariant: a layout returned by `read_layout` is safe to write through: each region is inside the file and
none overlaps another, whatever the file held. Functions hold no state; any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DependencyError, InputFileError
from microdiffusion.runfile.attributes import (
    attribute_of,
    read_plan,
    set_attributes,
    write_attributes,
    write_plots,
)
from microdiffusion.runfile.schema import Dataset, RunPlan, datasets

SNAPSHOT = "snapshot_utc"
"""Provenance entry of a copy: when it was made (`copy`)."""
_DATA_ALIGNMENT = 4096  # of datasets from 64 KiB on: whole pages, for memory maps
_CONTENT_ELEMENTS = 1 << 16
_CHUNK_BYTES = 1 << 20  # most of an image's chunk
_BITSHUFFLE = 32008
_BITSHUFFLE_OPTIONS = (0, 2)  # its own block size; LZ4
_GZIP_LEVEL = 1

Chunks = tuple[int, int, int]
"""Planes, rows and columns of an image's chunk, where they were chosen."""


@dataclass(frozen=True, slots=True)
class Region:
    """Position of a dataset's bytes in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def locate(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return offset and number of bytes of what `index` selects along the leading axes.

        Raises
        ------
        IndexError
            The index is outside of the dataset.
        """
        if len(index) > len(self.shape) or not all(
            0 <= i < n for i, n in zip(index, self.shape, strict=False)
        ):
            raise IndexError(f"index {index} is outside of shape {self.shape}")
        offset, size = 0, prod(self.shape) * self.dtype.itemsize
        for i, n in zip(index, self.shape, strict=False):
            size //= n
            offset += i * size
        return self.offset + offset, size


@dataclass(frozen=True, slots=True)
class RunLayout:
    """A run file's plan and the place of each dataset, by its path without the leading slash.

    `packed`: datasets that are stored in chunks, compressed or not; they have no region.
    """

    plan: RunPlan
    regions: Mapping[str, Region]
    packed: Mapping[str, Dataset] = field(default_factory=dict)


def create_run_file(path: Path, plan: RunPlan, chunks: Chunks | None = None) -> RunLayout:
    """Create an empty run file and return its layout.

    The file is complete and closed when this returns. Unwritten bytes read as zeros; disk blocks are not
    reserved here.

    Parameters
    ----------
    chunks
        Shape of the images' chunks, where they are compressed; None: whole planes, 1 MiB at most.

    Raises
    ------
    OSError
        The file exists or cannot be written.
    DependencyError
        Its compression needs a package that is missing.
    """
    require_compression(plan.compression)
    # Large datasets start on whole pages; everything else, metadata included, precedes them.
    with h5py.File(
        path, "x", alignment_threshold=64 << 10, alignment_interval=_DATA_ALIGNMENT, track_order=False
    ) as file:
        write_attributes(file, plan)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        made = [
            (dataset, _create_dataset(file, dataset, _storage(plan, dataset, chunks), links))
            for dataset in datasets(plan)
        ]
        write_plots(file, plan)
    # Contents are written without HDF5, as everything later: a run of many positions has many datasets.
    with path.open("r+b") as stream:
        for dataset, region in made:
            if dataset.content is not None and region is not None:
                _write_content(stream, region, np.asarray(dataset.content, region.dtype))
    regions = {dataset.path: region for dataset, region in made if region is not None}
    return RunLayout(plan, regions, {dataset.path: dataset for dataset, region in made if region is None})


def read_layout(path: Path, stream: BinaryIO) -> RunLayout:
    """Return the plan and layout of an open run file, also while it is being written.

    Parameters
    ----------
    path
        Its name, for messages.
    stream
        The file, open for reading. HDF5 reads through it and takes no lock.

    Raises
    ------
    InputFileError
        It is damaged, not a run file, of another layout version, or was rearranged.
    """
    try:
        with h5py.File(stream, "r") as file:
            plan = read_plan(path, file)
            found = [(dataset, _region(path, file, dataset)) for dataset in datasets(plan)]
    except InputFileError:
        raise
    except Exception as error:  # damaged bytes make h5py raise nearly every kind of error
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise InputFileError(
            f"{path} cannot be read as HDF5 ({reason}): it is damaged, incomplete or another kind of file."
        ) from error
    regions = {dataset.path: region for dataset, region in found if region is not None}
    packed = {dataset.path: dataset for dataset, region in found if region is None}
    layout = RunLayout(plan, regions, packed)
    _check_places(path, layout, stream.seek(0, os.SEEK_END))
    return layout


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading, without a lock.

    Raises
    ------
    OSError
        It is none, or damaged; a pipe, say, which would never answer.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    # Through a stream HDF5 takes no lock.
    with path.open("rb") as stream, h5py.File(stream, "r") as file:
        yield file


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


def _check_places(path: Path, layout: RunLayout, size: int) -> None:
    """Refuse datasets outside of the file or on top of one another: HDF5's own tables are damaged."""
    places = sorted((region.offset, region.offset + region.size) for region in layout.regions.values())
    apart = all(first[1] <= second[0] for first, second in pairwise(places))
    inside = not places or (places[0][0] > 0 and places[-1][1] <= size)
    figures = (one for one in layout.packed.values() if not one.image)  # read as a whole
    packed = sum(prod(one.shape) * np.dtype(one.dtype).itemsize for one in figures)
    if not apart or not inside or packed > size:
        raise InputFileError(f"{path} refers to data that it does not have: it is damaged or incomplete.")


def _write_content(stream: BinaryIO, region: Region, content: NDArray[Any]) -> None:
    """Write a dataset's first content: an array of its shape, or one value for all elements."""
    stream.seek(region.offset)
    if content.shape == region.shape:
        stream.write(content.tobytes())
        return
    left = prod(region.shape)
    block = np.full(min(left, _CONTENT_ELEMENTS), content)
    while left:
        stream.write(block[:left].tobytes())
        left -= min(left, block.size)


def _storage(plan: RunPlan, dataset: Dataset, chunks: Chunks | None) -> h5py.h5p.PropDCID:
    """Return how to store a dataset: contiguous and allocated at once, or compressed."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)
    if not dataset.image or plan.compression == "none":
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        return creation
    creation.set_chunk(chunk_shape(dataset, chunks))
    if plan.compression == "gzip":
        creation.set_shuffle()
        creation.set_deflate(_GZIP_LEVEL)
    else:
        creation.set_filter(_BITSHUFFLE, h5py.h5z.FLAG_MANDATORY, _BITSHUFFLE_OPTIONS)
    return creation


def chunk_shape(dataset: Dataset, chosen: Chunks | None = None) -> tuple[int, ...]:
    """Return the shape of chunks, each of one image: `chosen`, or whole planes of 1 MiB at most."""
    *lead, height, width = dataset.shape
    planes = [lead.pop()] if dataset.image == 3 else []
    single = [1] * len(lead)
    if chosen:
        image = (*planes, height, width)
        return (*single, *(min(pair) for pair in zip(chosen[-len(image) :], image, strict=True)))
    room = _CHUNK_BYTES // np.dtype(dataset.dtype).itemsize
    rows = min(height, max(room // width, 1))
    if planes:
        planes = [min(planes[0], max(room // (height * width), 1))]
    return (*single, *planes, rows, width)


def _create_dataset(
    file: h5py.File, dataset: Dataset, creation: h5py.h5p.PropDCID, links: Any
) -> Region | None:
    """Create a dataset and return its region; None where it is chunked."""
    space = h5py.h5s.create_simple(dataset.shape) if dataset.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    numpy_type = np.dtype(dataset.dtype)
    if numpy_type.kind == "S":
        kind = h5py.h5t.py_create(h5py.string_dtype("utf-8", numpy_type.itemsize), logical=True)
    else:
        kind = h5py.h5t.py_create(numpy_type, logical=True)
    created = h5py.h5d.create(file.id, dataset.path.encode(), kind, space, creation, lcpl=links)
    if dataset.attributes:
        set_attributes(h5py.Dataset(created), dataset.attributes)
    offset = created.get_offset()
    return None if offset is None else Region(offset, dataset.shape, numpy_type)


def _region(path: Path, file: h5py.File, expected: Dataset) -> Region | None:
    """Return the region of a dataset; None where it is chunked."""
    dataset = file.get(expected.path)
    same = (
        isinstance(dataset, h5py.Dataset)
        # In the chunked files of 1.0 a scalar is an array of one.
        and (
            dataset.shape == expected.shape
            or (dataset.chunks and dataset.shape == (1,) and not expected.shape)
        )
        and dataset.dtype == np.dtype(expected.dtype)
    )
    if not same:
        raise InputFileError(f"{path}: /{expected.path} is absent or was changed: use an untouched copy.")
    offset = dataset.id.get_offset()
    if offset is None and dataset.chunks is None:
        raise InputFileError(f"{path}: /{expected.path} has no bytes: use an untouched copy.")
    return None if offset is None else Region(offset, expected.shape, np.dtype(expected.dtype))


def peek(path: Path) -> tuple[str, str]:
    """Return run_id and time of creation (UTC, ISO 8601) of a run's first file.

    Both are empty where it is another kind of file, a further one of a run, or a copy.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with open_hdf5(path) as file:
        try:
            if attribute_of(path, file, "segment") != 0 or SNAPSHOT in file["mdd/provenance"].attrs:
                return "", ""
            run_id, created = (
                str(attribute_of(path, file, name) or "") for name in ("run_id", "created_utc")
            )
        except (InputFileError, KeyError):
            return "", ""
    return run_id, created
