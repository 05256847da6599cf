"""The run file's schema: which datasets there are, where their bytes lie, what their codes mean.

Owns the layout of docs/run-file.md, for the recorder that writes it and the reader that reads it. The
layout is *static*: HDF5 creates every dataset at its final size, contiguous and uncompressed, and closes
the file; from then on nothing but the bytes inside of datasets changes. So no HDF5 library is needed to
fill it, its metadata cannot be torn by a crash, and every HDF5 reader can open it at any moment.

Invariants: axis 0 of a per-time-point dataset is time, so that a time point is one contiguous stretch of
bytes; a session's datasets lie in its position's group (position 0: the root); numbers are little-endian.
Functions hold no state; any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from microdiffusion.errors import InputFileError
from microdiffusion.run_header import RunHeader

LAYOUT_VERSION = 1
SERVED = ("none", "mdd", "inr", "tikhonov", "linear", "microdiffusion", "blend")
CANDIDATES = SERVED[1:]
RUNTIMES = ("none", "torch", "openvino", "tensorrt")
STAGES = ("inr", "sampler", "consistency", "other", "total")
REASON_BYTES = 160

_VERSION = version("microdiffusion-daemon")
_DATA_ALIGNMENT = 4096  # of datasets from 64 KiB on: whole pages, for whoever maps them


def runtime_code(name: str) -> int:
    """Return the code in /mdd/runtime of a runtime's name, such as "torch cuda float16"."""
    first = name.partition(" ")[0].partition("_")[0]  # tensorrt_rtx is a flavour; the provenance names it
    return RUNTIMES.index(first) if first in RUNTIMES else 0


class Status(IntEnum):
    """What became of a time point; the codes of /mdd/status."""

    EMPTY = 0
    WRITTEN = 1
    LOST = 2
    SKIPPED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the frames of a run went; -1 stands for not known (yet). The columns of /mdd/ledger.

    Attributes
    ----------
    announced : int
        Frames that the sender took in, as it said at the end.
    received, duplicates, refused, missing : int
        Frames that came; came again; were malformed; never came.
    dropped_by_sender : int
        Frames that the sender had no room for.
    unplaced : int
        Frames that came and have no place in the file (beyond the planned sweeps or frames per sweep).
    """

    announced: int = -1
    received: int = 0
    duplicates: int = 0
    refused: int = 0
    missing: int = 0
    dropped_by_sender: int = -1
    unplaced: int = 0

    def array(self) -> NDArray[np.int64]:
        """Return the columns (7,) int64."""
        return np.array([getattr(self, name) for name in LEDGER_COLUMNS], dtype="<i8")


LEDGER_COLUMNS = tuple(column.name for column in fields(Ledger))


@dataclass(frozen=True, slots=True)
class Region:
    """Where a dataset's bytes lie in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

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
class RunPlan:
    """Everything that is fixed when a run file is created.

    Attributes
    ----------
    header : RunHeader
    time_points : int
        T, the number of time points that the file has room for.
    frames_per_sweep : int
        M, held-out frames included.
    segment, first_time_point : int
        Number of this file in the run, and the sweep that its time point 0 holds.
    configuration : str
        The resolved configuration, JSON.
    provenance : mapping of str to str
        Versions, checksum of the weights, device ...
    created_utc : str
        ISO 8601.
    """

    header: RunHeader
    time_points: int
    frames_per_sweep: int
    segment: int = 0
    first_time_point: int = 0
    configuration: str = "{}"
    provenance: Mapping[str, str] = field(default_factory=dict)
    created_utc: str = ""


@dataclass(frozen=True, slots=True)
class RunLayout:
    """A run file's plan and the place of each dataset, by its path without the leading slash."""

    plan: RunPlan
    regions: Mapping[str, Region]


@dataclass(frozen=True, slots=True)
class _Dataset:
    path: str
    shape: tuple[int, ...]
    dtype: str
    content: Any = None  # None: zeros
    attributes: Mapping[str, Any] = field(default_factory=dict)


def position_prefix(position: int) -> str:
    """Return the group of a position, with its slash: "" for position 0."""
    return "" if position == 0 else f"position_{position:03d}/"


def segment_path(path: Path, segment: int) -> Path:
    """Return the path of a run's next files: run.h5, run_s001.h5, run_s002.h5 ..."""
    return path if segment == 0 else path.with_name(f"{path.stem}_s{segment:03d}{path.suffix}")


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
        for dataset in _datasets(plan):
            _create_dataset(file, dataset)
    with path.open("rb") as stream:
        return read_layout(path, stream)


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
            regions = {dataset.path: _region(path, file, dataset) for dataset in _datasets(plan)}
    except OSError as error:
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise InputFileError(
            f"{path} cannot be read as HDF5 ({reason}): it is damaged, incomplete or another kind of file."
        ) from error
    return RunLayout(plan, regions)


def _datasets(plan: RunPlan) -> Iterator[_Dataset]:
    """Yield every dataset of a run file."""
    header = plan.header.model_dump_json().encode()
    configuration = plan.configuration.encode()
    yield _Dataset("mdd/run_header", (), f"S{len(header)}", header, {"content": "JSON"})
    yield _Dataset(
        "mdd/configuration", (), f"S{max(len(configuration), 1)}", configuration, {"content": "JSON"}
    )
    yield _Dataset("mdd/closed", (), "u1", None, {"codes": "0 the run goes on or was cut off, 1 closed"})
    yield _Dataset(
        "mdd/ledger", (len(LEDGER_COLUMNS),), "<i8", Ledger().array(), {"columns": list(LEDGER_COLUMNS)}
    )
    for position in range(len(plan.header.positions)):
        prefix = position_prefix(position)
        for dataset in _session_datasets(plan):
            yield _Dataset(
                prefix + dataset.path, dataset.shape, dataset.dtype, dataset.content, dataset.attributes
            )


def _session_datasets(plan: RunPlan) -> Iterator[_Dataset]:
    """Yield the datasets of one position; small ones first, so that they lie together."""
    header = plan.header
    channels = () if len(header.channels) == 1 else (len(header.channels),)
    lead = (plan.time_points, *channels)
    frames = (*lead, plan.frames_per_sweep)
    nan = np.nan

    for name, number, edge in zip("zyx", header.shape, header.voxel_size_um, strict=True):
        start = header.z0_um if name == "z" else 0.0
        yield _Dataset(name, (number,), "<f8", start + np.arange(number) * edge, {"units": "um"})

    status = ", ".join(f"{code.value} {code.name.lower()}" for code in Status)
    served = ", ".join(f"{code} {name}" for code, name in enumerate(SERVED))
    yield _Dataset("mdd/status", lead, "u1", None, {"codes": status})
    yield _Dataset(
        "mdd/reason", lead, f"S{REASON_BYTES}", None, {"content": "why it was lost, skipped or failed"}
    )
    yield _Dataset("mdd/served", lead, "u1", None, {"codes": served})
    yield _Dataset(
        "mdd/acquired_s", lead, "<f8", nan, {"units": "s", "content": "camera time of the last frame"}
    )
    yield _Dataset(
        "mdd/latency_s", lead, "<f8", nan, {"units": "s", "content": "last frame to readable volume"}
    )
    for stage in STAGES:
        yield _Dataset(f"mdd/seconds/{stage}", lead, "<f8", nan, {"units": "s"})
    noise = {"content": "root mean square of reprojection minus projection, in units of the noise"}
    yield _Dataset("mdd/residual", lead, "<f8", nan, noise)
    yield _Dataset("mdd/held_out_error", lead, "<f8", nan, noise)
    for candidate in CANDIDATES:
        yield _Dataset(f"mdd/held_out_errors/{candidate}", lead, "<f8", nan, noise)
    weight = {"content": "share of the network's answer in what was served"}
    yield _Dataset("mdd/network_weight", lead, "<f8", nan, weight)
    yield _Dataset(
        "mdd/merged", lead, "u1", None, {"codes": "1 the sweep before was used as well, as nothing had moved"}
    )
    runtimes = ", ".join(f"{code} {name}" for code, name in enumerate(RUNTIMES))
    yield _Dataset("mdd/runtime", lead, "u1", None, {"codes": runtimes, "content": "what ran the network"})
    yield _Dataset("mdd/inr_iterations", lead, "<i4")
    yield _Dataset("mdd/frames_received", lead, "<u4")
    yield _Dataset("mdd/frames_missing", lead, "<u4")
    yield _Dataset(
        "mdd/frames/z_um", frames, "<f8", nan, {"units": "um", "content": "slab's centre, NaN: absent"}
    )
    yield _Dataset("mdd/frames/held_out", frames, "u1")
    yield _Dataset("mdd/frames/camera_time_s", frames, "<f8", nan, {"units": "s"})
    yield _Dataset("mdd/frames/seq", frames, "<i8", -1)

    pixel = "<u2" if header.dtype == "uint16" else "<f4"
    unit = {"units": "counts", "voxel_size_um": np.array(header.voxel_size_um)}
    yield _Dataset("projections", (*frames, *header.shape[1:]), pixel, None, {"units": "counts"})
    yield _Dataset("volume", (*lead, *header.shape), pixel, None, unit)


def _write_attributes(file: h5py.File, plan: RunPlan) -> None:
    header = plan.header
    file.attrs.update(
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
            "voxel_size_um": np.array(header.voxel_size_um),
            "z0_um": header.z0_um,
        }
    )
    leading = ["."] if len(header.channels) == 1 else [".", "."]
    for position, name in enumerate(header.positions):
        group = file.require_group(position_prefix(position) or "/")
        # NeXus: h5web, silx and nexpy plot the volume by default.
        group.attrs.update(
            {"NX_class": "NXdata", "signal": "volume", "axes": [*leading, "z", "y", "x"], "position": name}
        )
    provenance = file.create_group("mdd/provenance")
    for key, value in plan.provenance.items():
        provenance.attrs[key] = value


def _create_dataset(file: h5py.File, dataset: _Dataset) -> None:
    """Create a contiguous dataset whose bytes exist from the start."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(dataset.shape) if dataset.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    numpy_type = np.dtype(dataset.dtype)
    if numpy_type.kind == "S":
        numpy_type = h5py.string_dtype("utf-8", numpy_type.itemsize)
    kind = h5py.h5t.py_create(numpy_type, logical=True)
    created = h5py.Dataset(h5py.h5d.create(file.id, dataset.path.encode(), kind, space, creation, lcpl=links))
    created.attrs.update(dataset.attributes)
    if dataset.content is not None:
        created[...] = np.asarray(dataset.content, dtype=created.dtype)


def _read_plan(path: Path, file: h5py.File) -> RunPlan:
    layout = file.attrs.get("mdd_layout")
    if layout is None:
        raise InputFileError(f"{path} is not a run file of mdd: give the file that `mdd serve` wrote.")
    if layout != LAYOUT_VERSION:
        raise InputFileError(
            f"{path} has run file layout {layout} and this mdd ({_VERSION}) reads "
            f"layout {LAYOUT_VERSION}: open it with the mdd that wrote it "
            f"({file.attrs.get('mdd_version', 'unknown')})."
        )
    try:
        return RunPlan(
            header=RunHeader.model_validate_json(bytes(file["mdd/run_header"][()])),
            time_points=int(file.attrs["time_points"]),
            frames_per_sweep=int(file.attrs["frames_per_sweep"]),
            segment=int(file.attrs["segment"]),
            first_time_point=int(file.attrs["first_time_point"]),
            configuration=bytes(file["mdd/configuration"][()]).decode(),
            provenance={key: str(value) for key, value in file["mdd/provenance"].attrs.items()},
            created_utc=str(file.attrs["created_utc"]),
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise InputFileError(
            f"{path} lacks a part of a run file ({type(error).__name__}): "
            "it was changed or damaged; use an untouched copy."
        ) from error


def _region(path: Path, file: h5py.File, expected: _Dataset) -> Region:
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


def parse_configuration(plan: RunPlan) -> dict[str, Any]:
    """Return the resolved configuration as plain dictionaries; empty where it is not JSON."""
    try:
        value = json.loads(plan.configuration)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
