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
from pydantic import ValidationError

from microdiffusion.errors import InputFileError
from microdiffusion.ledger import LEDGER_COLUMNS, Ledger
from microdiffusion.run_header import RunHeader
from microdiffusion.run_schema import (
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

__all__ = [
    "CANDIDATES",
    "EFFORTS",
    "EVENT_ROOM",
    "LAYOUT_VERSION",
    "LEDGER_COLUMNS",
    "REASON_BYTES",
    "RUNTIMES",
    "SERVED",
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
        _write_attributes(file, plan)
        creation, links = _property_lists()
        made = [(dataset, _create_dataset(file, dataset, creation, links)) for dataset in datasets(plan)]
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
            plan = _read_plan(path, file)
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


def _write_attributes(file: h5py.File, plan: RunPlan) -> None:
    header = plan.header
    _set_attributes(
        file,
        {
            "mdd_layout": LAYOUT_VERSION,
            "mdd_version": _VERSION,
            "run_id": header.run_id,
            "name": header.name,
            "created_utc": plan.created_utc,
            "time_points": plan.time_points,
            "frames_per_sweep": plan.frames_per_sweep,
            "segment": plan.segment,
            "first_time_point": plan.first_time_point,
            "planned_time_points": plan.planned,
            "live": int(plan.live),
            "voxel_size_um": np.array(header.voxel_size_um),
            "z0_um": header.z0_um,
        },
    )
    leading = ["."] if len(header.channels) == 1 else [".", "."]
    for position, name in enumerate(header.positions):
        group = file.require_group(position_prefix(position) or "/")
        # NeXus: h5web, silx and nexpy plot the volume by default.
        _set_attributes(
            group,
            {"NX_class": "NXdata", "signal": "volume", "axes": [*leading, "z", "y", "x"], "position": name},
        )
    _set_attributes(file.create_group("mdd/provenance"), plan.provenance)


def _set_attributes(where: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Set attributes; text at a fixed length: MATLAB's rule, and a damaged file cannot lead HDF5 astray.

    Text of variable length lies in HDF5's global heap, whose reader loops for ever on some damaged files.
    """
    for name, value in attributes.items():
        is_text = isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str))
        if not is_text:
            where.attrs[name] = value
            continue
        encoded = np.char.encode(np.array(value, dtype=str), "utf-8")
        kind = h5py.string_dtype("utf-8", max(encoded.dtype.itemsize, 1))
        where.attrs.create(name, encoded.astype(f"S{max(encoded.dtype.itemsize, 1)}"), dtype=kind)


def _attribute(path: Path, where: h5py.Group, name: str) -> Any:
    """Return an attribute, None where it is absent.

    Raises
    ------
    InputFileError
        It is text of variable length, which mdd does not write.
    """
    if name not in where.attrs:
        return None
    kind = where.attrs.get_id(name).get_type()
    if isinstance(kind, h5py.h5t.TypeVlenID) or (
        isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    ):
        raise InputFileError(f"{path}: the attribute {name} was changed: use an untouched copy.")
    value = where.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


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
        _set_attributes(h5py.Dataset(created), dataset.attributes)
    return Region(created.get_offset(), dataset.shape, numpy_type)


def _read_plan(path: Path, file: h5py.File) -> RunPlan:
    def attribute(name: str) -> Any:
        value = _attribute(path, file, name)
        if value is None:
            raise KeyError(name)
        return value

    layout = _attribute(path, file, "mdd_layout")
    if layout is None:
        raise InputFileError(f"{path} is not a run file of mdd: give the file that `mdd serve` wrote.")
    if layout != LAYOUT_VERSION:
        raise InputFileError(
            f"{path} has run file layout {layout} and this mdd ({_VERSION}) reads "
            f"layout {LAYOUT_VERSION}: open it with the mdd that wrote it."
        )
    try:
        provenance = file["mdd/provenance"]
        return RunPlan(
            header=RunHeader.model_validate_json(bytes(file["mdd/run_header"][()])),
            time_points=int(attribute("time_points")),
            frames_per_sweep=int(attribute("frames_per_sweep")),
            segment=int(attribute("segment")),
            first_time_point=int(attribute("first_time_point")),
            configuration=bytes(file["mdd/configuration"][()]).decode(),
            provenance={key: str(_attribute(path, provenance, key)) for key in provenance.attrs},
            created_utc=str(attribute("created_utc")),
            planned_time_points=int(attribute("planned_time_points")),
            live=bool(attribute("live")),
        )
    except InputFileError:
        raise
    except (KeyError, ValueError, ValidationError) as error:
        raise InputFileError(
            f"{path} lacks a part of a run file ({type(error).__name__}): "
            "it was changed or damaged; use an untouched copy."
        ) from error


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

    Both are empty where it is another kind of file, or a further one of a run.

    Raises
    ------
    OSError
        It cannot be read.
    """
    # Through a stream HDF5 takes no lock, so a file that is being written can be asked too.
    with path.open("rb") as stream, h5py.File(stream, "r") as file:
        try:
            if _attribute(path, file, "segment") != 0:
                return "", ""
            run_id, created = (str(_attribute(path, file, name) or "") for name in ("run_id", "created_utc"))
        except InputFileError:
            return "", ""
    return run_id, created


def parse_configuration(plan: RunPlan) -> dict[str, Any]:
    """Return the resolved configuration as plain dictionaries; empty where it is not JSON."""
    try:
        value = json.loads(plan.configuration)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
