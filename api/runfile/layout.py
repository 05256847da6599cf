"""The run file on the disk: creating it, and finding where each dataset's bytes lie.

Owns the way between `run_schema` and HDF5, for the recorder that fills a run file and the reader that reads
it. The layout is *static*: HDF5 creates every dataset at its final size, contiguous and uncompressed, and
closes the file; from then on nothing but the bytes inside of datasets changes. So no HDF5 library is needed
to fill it, its metadata cannot be torn by a crash, and every HDF5 reader can open it at any moment.

Invariant: a layout that `read_layout` returned is safe to write through: each region lies inside of the
file and none overlaps another, whatever the file held. Functions hold no state; any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.ledger import LEDGER_COLUMNS, Ledger
from microdiffusion.runfile.attributes import (
    attribute_of,
    read_plan,
    set_attributes,
    write_attributes,
    write_plots,
)
from microdiffusion.runfile.schema import (
    CANDIDATES,
    EFFORTS,
    EVENT_ROOM,
    LAYOUT_VERSION,
    REASON_BYTES,
    RUNTIMES,
    SERVED,
    STAGES,
    Closed,
    Dataset,
    RunPlan,
    Status,
    datasets,
    position_prefix,
    runtime_code,
    segment_path,
)
from microdiffusion.runfile.swmr_file import open_hdf5

__all__ = [
    "CANDIDATES",
    "EFFORTS",
    "EVENT_ROOM",
    "LAYOUT_VERSION",
    "LEDGER_COLUMNS",
    "REASON_BYTES",
    "RUNTIMES",
    "SERVED",
    "SNAPSHOT",
    "STAGES",
    "Closed",
    "Ledger",
    "Region",
    "RunLayout",
    "RunPlan",
    "Status",
    "create_run_file",
    "parse_configuration",
    "peek",
    "position_prefix",
    "read_layout",
    "runtime_code",
    "segment_path",
]

SNAPSHOT = "snapshot_utc"
"""The entry of a copy's provenance that says when it was made (`run_copy`)."""
_VERSION = version("microdiffusion-daemon")
_DATA_ALIGNMENT = 4096  # of datasets from 64 KiB on: whole pages, for whoever maps them
_CONTENT_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Region:
    """Where a dataset's bytes lie in the file."""

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
    """A run file's plan and the place of each dataset, by its path without the leading slash."""

    plan: RunPlan
    regions: Mapping[str, Region]


def create_run_file(path: Path, plan: RunPlan) -> RunLayout:
    """Create an empty run file and return where its datasets lie.

    The file is complete and closed when this returns. Unwritten bytes read as zeros; disk blocks are not
    reserved here.

    Raises
    ------
    OSError
        The file exists or cannot be written.
    """
    # Large datasets start on whole pages; everything else, metadata included, lies before them.
    with h5py.File(
        path, "x", alignment_threshold=64 << 10, alignment_interval=_DATA_ALIGNMENT, track_order=False
    ) as file:
        write_attributes(file, plan)
        creation, links = _property_lists()
        made = [(dataset, _create_dataset(file, dataset, creation, links)) for dataset in datasets(plan)]
        write_plots(file, plan)
    # Contents go to their places without HDF5, as all that follows: a run of many positions has many.
    with path.open("r+b") as stream:
        for dataset, region in made:
            if dataset.content is not None:
                _write_content(stream, region, np.asarray(dataset.content, region.dtype))
    return RunLayout(plan, {dataset.path: region for dataset, region in made})


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
            regions = {dataset.path: _region(path, file, dataset) for dataset in datasets(plan)}
    except InputFileError:
        raise
    except Exception as error:  # damaged bytes make h5py raise nearly every kind of error
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise InputFileError(
            f"{path} cannot be read as HDF5 ({reason}): it is damaged, incomplete or another kind of file."
        ) from error
    _check_places(path, regions, stream.seek(0, os.SEEK_END))
    return RunLayout(plan, regions)


def _check_places(path: Path, regions: Mapping[str, Region], size: int) -> None:
    """Refuse datasets that lie outside of the file or over one another: damage in HDF5's own tables."""
    places = sorted((region.offset, region.offset + region.size) for region in regions.values())
    apart = all(first[1] <= second[0] for first, second in pairwise(places))
    if not apart or places[0][0] <= 0 or places[-1][1] > size:
        raise InputFileError(
            f"{path} names places for its data that it does not have: it is damaged or incomplete."
        )


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


def _property_lists() -> tuple[Any, Any]:
    """Return how datasets are created: contiguous, with bytes that exist from the start."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return creation, links


def _create_dataset(file: h5py.File, dataset: Dataset, creation: Any, links: Any) -> Region:
    """Create a dataset and return where its bytes lie."""
    space = h5py.h5s.create_simple(dataset.shape) if dataset.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    numpy_type = np.dtype(dataset.dtype)
    if numpy_type.kind == "S":
        kind = h5py.h5t.py_create(h5py.string_dtype("utf-8", numpy_type.itemsize), logical=True)
    else:
        kind = h5py.h5t.py_create(numpy_type, logical=True)
    created = h5py.h5d.create(file.id, dataset.path.encode(), kind, space, creation, lcpl=links)
    if dataset.attributes:
        set_attributes(h5py.Dataset(created), dataset.attributes)
    return Region(created.get_offset(), dataset.shape, numpy_type)


def _region(path: Path, file: h5py.File, expected: Dataset) -> Region:
    dataset = file.get(expected.path)
    same = isinstance(dataset, h5py.Dataset) and (dataset.shape, dataset.dtype) == (
        expected.shape,
        np.dtype(expected.dtype),
    )
    if not same:
        raise InputFileError(f"{path}: /{expected.path} is absent or was changed: use an untouched copy.")
    offset = dataset.id.get_offset()
    if offset is None:
        raise InputFileError(
            f"{path}: /{expected.path} was compressed or repacked, which this reader does not follow: "
            "open it with h5py, or use the original file."
        )
    return Region(offset, expected.shape, np.dtype(expected.dtype))


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


def parse_configuration(plan: RunPlan) -> dict[str, Any]:
    """Return the resolved configuration as plain dictionaries; empty where it is not JSON."""
    try:
        value = json.loads(plan.configuration)
    except (ValueError, RecursionError):  # the latter by brackets without end
        return {}
    return value if isinstance(value, dict) else {}
