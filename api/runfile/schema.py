"""Schema of the run file: its datasets, the meaning of their codes, and the plan that fixes them.

Owns names, shapes, types and initial contents (docs/run-file.md); `layout` places the bytes.

Invariants: axis 0 of a per-time-point dataset is time, so that a time point is one contiguous range of bytes
and a file can be trimmed or lengthened by copying; a session's datasets are in the group of its position
(position 0: the root); numbers are little-endian; what belongs to the run as a whole (ledger, events, engine,
live volumes) is in its first file. Functions hold no state; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.frames import FIGURES, FRAME_FIELDS, IN_NOISE, Column, Declaration, age_shape
from microdiffusion.header import RunHeader
from microdiffusion.ledger import LEDGER_COLUMNS, Ledger
from microdiffusion.runfile.pyramid import Factors, level_shape

LAYOUT_MAJOR, LAYOUT_MINOR = 1, 4
LAYOUT_VERSION = f"{LAYOUT_MAJOR}.{LAYOUT_MINOR}"
LEVEL_ZERO: Factors = (1, 1, 1)
SERVED = ("none", "mdd", "inr", "tikhonov", "linear", "microdiffusion", "blend")
CANDIDATES = SERVED[1:]
RUNTIMES = ("none", "torch", "openvino", "tensorrt")
STAGES = ("inr", "sampler", "consistency", "other", "total")
EFFORTS = ("full", "one evaluation", "INR alone")
REASON_BYTES = 160
DECISION_BYTES = 240
EVENT_ROOM = 4096
EVENT_KIND_BYTES = 16
ENGINE_BYTES = 16384
UNPLACED_ROOM = 4096
RECIPE_ROOM = 16
RECIPE_BYTES = 4096
_RETIRED = "of layout 1.0; not written any more"
_OVERHEAD_BYTES = 4096  # of a dataset: its header, and the way to the next page
SENDER_COLUMNS = ("first_seq", "announced", "dropped", "unsent", "damaged", "ended")
SENDER_ROOM = 64
OWNER_ROOM = 16
OWNER_BYTES = 64


def runtime_code(name: str) -> int:
    """Return the code in /mdd/runtime of a runtime's name, such as "torch cuda float16"."""
    first = name.partition(" ")[0].partition("_")[0]  # tensorrt_rtx is a flavour; the provenance names it
    return RUNTIMES.index(first) if first in RUNTIMES else 0


class Status(IntEnum):
    """Status of a time point; the codes of /mdd/status."""

    EMPTY = 0
    WRITTEN = 1
    LOST = 2
    SKIPPED = 3
    FAILED = 4


class Closed(IntEnum):
    """Codes of /mdd/closed. REPLACED: a longer file has taken the name, open that."""

    OPEN = 0
    CLOSED = 1
    REPLACED = 2


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
        Versions, device ... as far as known at the start.
    created_utc : str
        ISO 8601.
    planned_time_points : int
        T as it was before the file was cut to what was used; what each further file has room for.
        0: the same as `time_points`.
    live : bool
        Whether there is room for rolling volumes.
    pyramid : tuple of (z, y, x)
        How many voxels make one of each coarser level (`pyramid.level_factors`); empty: no pyramid.
    uncertainty : bool
        Whether there is room for the uncertainty of each voxel.
    version : str
        Version of the layout, "major.minor".
    compression : str
        Of the images: "none", as everywhere where a recorder writes, "gzip" or "lz4" in a copy.
    """

    header: RunHeader
    time_points: int
    frames_per_sweep: int
    segment: int = 0
    first_time_point: int = 0
    configuration: str = "{}"
    provenance: Mapping[str, str] = field(default_factory=dict)
    created_utc: str = ""
    planned_time_points: int = 0
    live: bool = False
    pyramid: tuple[Factors, ...] = ()
    uncertainty: bool = False
    version: str = LAYOUT_VERSION
    compression: str = "none"

    @property
    def minor(self) -> int:
        """The minor version of the layout."""
        return int(self.version.partition(".")[2])

    @property
    def planned(self) -> int:
        """T of a file of this run that was not cut."""
        return self.planned_time_points or self.time_points


FRAME_COLUMNS: dict[str, Column] = {one.name: one.column for one in FRAME_FIELDS if one.column is not None}
"""The datasets below /mdd/frames that are fields of a frame, as `frames.FrameInfo` declares them."""
CHECKED = np.dtype(
    [
        *((name, FRAME_COLUMNS[name].dtype) for name in ("seq", "z_um", "camera_time_s", "held_out")),
        ("crc32", "<u4"),
    ]
)
"""The columns of a frame whose CRC-32 is /mdd/frames/check: packed, as they are in the file."""


def recorded_fields(minor: int) -> list[Declaration]:
    """Return the fields of a frame that a file of a minor version keeps."""
    return [one for one in FRAME_FIELDS if one.column is not None and one.column.since <= minor]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset to be: path without the leading slash, shape, type, first content (None: zeros).

    `timed`: axis 0 is time, so that a longer run needs more of it. `image`: the number of its last axes that
    make one image (projection or volume); 0: it holds figures. `since`: the minor version of the layout that
    brought it; a file of an older one does not have it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    content: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = False
    image: int = 0
    since: int = 0

    @property
    def empty(self) -> Any:
        """The value that stands where nothing was written."""
        if np.dtype(self.dtype).kind == "S":
            return b""
        return 0 if self.content is None else self.content


def position_prefix(position: int) -> str:
    """Return the group of a position, with its slash: "" for position 0."""
    return "" if position == 0 else f"position_{position:03d}/"


def segment_path(path: Path, segment: int) -> Path:
    """Return the path of a run's next files: run.h5, run_s001.h5, run_s002.h5 ..."""
    return path if segment == 0 else path.with_name(f"{path.stem}_s{segment:03d}{path.suffix}")


def datasets(plan: RunPlan) -> Iterator[Dataset]:
    """Yield every dataset that a run file of the plan's version has."""
    return (dataset for dataset in _all_datasets(plan) if dataset.since <= plan.minor)


def _all_datasets(plan: RunPlan) -> Iterator[Dataset]:
    header = plan.header.model_dump_json().encode()
    configuration = plan.configuration.encode()
    yield Dataset("mdd/run_header", (), f"S{len(header)}", header, {"content": "JSON"})
    yield Dataset(
        "mdd/configuration", (), f"S{max(len(configuration), 1)}", configuration, {"content": "JSON"}
    )
    closed = "0 the run goes on or was cut off, 1 closed, 2 goes on in a longer file of the same name"
    yield Dataset("mdd/closed", (), "u1", None, {"codes": closed})
    if plan.segment == 0:
        yield from _run_datasets()
    yield from _plot_axes(plan)
    for position in range(len(plan.header.positions)):
        prefix = position_prefix(position)
        for dataset in _session_datasets(plan):
            # Only position 0 has units and codes: writing them takes as long as all the rest.
            about = {} if position else dataset.attributes
            yield replace(dataset, path=prefix + dataset.path, attributes=about)


def file_bytes(plan: RunPlan) -> int:
    """Return the size of a run file, a little more rather than less."""
    header = plan.header
    once = [Dataset("", (), f"S{len(plan.configuration) + len(header.model_dump_json())}"), *_plot_axes(plan)]
    if plan.segment == 0:
        once += _run_datasets()
    session = list(_session_datasets(plan))
    positions = len(header.positions)

    def size(some: list[Dataset]) -> int:
        return sum(prod(one.shape) * np.dtype(one.dtype).itemsize + _OVERHEAD_BYTES for one in some)

    return size(once) + positions * size(session)


def _run_datasets() -> Iterator[Dataset]:
    """Yield what a run has once, however many files and positions it has."""
    yield Dataset(
        "mdd/ledger", (len(LEDGER_COLUMNS),), "<i8", Ledger().array(), {"columns": list(LEDGER_COLUMNS)}
    )
    yield Dataset(
        "mdd/senders",
        (SENDER_ROOM, len(SENDER_COLUMNS)),
        "<i8",
        -1,
        {"columns": list(SENDER_COLUMNS), "content": "what each sender said last; -1: unused"},
    )
    owners = "SHA-256 of the secrets (or keys) of those who may resume the run; none: whoever asks"
    yield Dataset("mdd/owners", (OWNER_ROOM,), f"S{OWNER_BYTES}", None, {"content": owners}, since=2)
    files = "how many files the run has; one that is just begun may not be counted"
    yield Dataset("mdd/files", (), "<u4", 1, {"content": files}, since=2)
    yield Dataset("mdd/engine", (), f"S{ENGINE_BYTES}", None, {"content": "JSON; empty: not known yet"})
    yield Dataset(
        "mdd/unplaced_seq", (UNPLACED_ROOM,), "<i8", -1, {"content": "the first frames without place"}
    )
    yield Dataset("mdd/recipes", (RECIPE_ROOM,), f"S{RECIPE_BYTES}", None, {"content": _RETIRED})
    yield Dataset("mdd/events/count", (), "<i8", None, {"content": f"event n is in row n % {EVENT_ROOM}"})
    yield Dataset("mdd/events/time_s", (EVENT_ROOM,), "<f8", None, {"units": "s", "content": "since start"})
    yield Dataset("mdd/events/kind", (EVENT_ROOM,), f"S{EVENT_KIND_BYTES}")
    yield Dataset("mdd/events/text", (EVENT_ROOM,), f"S{REASON_BYTES}")


def _session_datasets(plan: RunPlan) -> Iterator[Dataset]:
    """Yield the datasets of one position; small ones first, which keeps them together."""
    for name, number, coordinates in _axes(plan.header, LEVEL_ZERO):
        yield Dataset(name, (number,), "<f8", coordinates, {"units": "um"})
    for dataset in _figures(plan):
        yield replace(dataset, timed=True)
    channels = () if len(plan.header.channels) == 1 else (len(plan.header.channels),)
    if plan.live and plan.segment == 0:
        yield from _live_datasets(channels, plan.header.shape, _pixel(plan))
    for dataset in _images(plan, channels):
        yield replace(dataset, timed=True)


def _pixel(plan: RunPlan) -> str:
    return "<u2" if plan.header.dtype == "uint16" else "<f4"


def _axes(header: RunHeader, factors: Factors) -> Iterator[tuple[str, int, NDArray[np.float64]]]:
    """Yield name, length and coordinates (µm, of the voxels' centres) of a level's z, y and x."""
    sizes = level_shape(header.shape, factors)
    for name, number, edge, factor in zip("zyx", sizes, header.voxel_size_um, factors, strict=True):
        start = (header.z0_um if name == "z" else 0.0) + (factor - 1) / 2 * edge
        yield name, number, np.asarray(start + np.arange(number) * edge * factor, np.float64)


def _plot_axes(plan: RunPlan) -> Iterator[Dataset]:
    """Yield the axes of the coarser levels, for plots; those of the volume are beside it."""
    for number, factors in enumerate(plan.pyramid, 1):
        for name, size, coordinates in _axes(plan.header, factors):
            yield Dataset(f"entry/pyramid_{number}/{name}", (size,), "<f8", coordinates, {"units": "um"})


def _images(plan: RunPlan, channels: tuple[int, ...]) -> Iterator[Dataset]:
    """Yield the images: projections, volumes, uncertainties and coarser levels."""
    header, pixel = plan.header, _pixel(plan)
    lead = (plan.time_points, *channels)
    edges = np.array(header.voxel_size_um)

    def image(path: str, shape: tuple[int, ...], axes: int, **attributes: Any) -> Dataset:
        return Dataset(path, (*lead, *shape), pixel, None, {"units": "counts", **attributes}, image=axes)

    yield image("projections", (plan.frames_per_sweep, *header.shape[1:]), 2)
    yield image("volume", header.shape, 3, voxel_size_um=edges)
    if plan.uncertainty:
        about = "standard deviation of each voxel"
        yield image("uncertainty", header.shape, 3, voxel_size_um=edges, content=about)
    for number, factors in enumerate(plan.pyramid, 1):
        shape = level_shape(header.shape, factors)
        yield image(f"pyramid/{number}", shape, 3, voxel_size_um=edges * factors, factors=np.array(factors))


def _figures(plan: RunPlan) -> Iterator[Dataset]:
    """Yield the figures of each time point and each frame."""
    header = plan.header
    channels = () if len(header.channels) == 1 else (len(header.channels),)
    lead = (plan.time_points, *channels)
    frames = (*lead, plan.frames_per_sweep)

    def figure(name: str, dtype: str, empty: Any = None, **about: str) -> Dataset:
        return Dataset(f"mdd/{name}", lead, dtype, empty, about)

    def of_frame(name: str, dtype: str, empty: Any = None, **about: str) -> Dataset:
        return Dataset(f"mdd/frames/{name}", frames, dtype, empty, about)

    yield figure("status", "u1", codes=_codes(code.name.lower() for code in Status))
    yield figure("reason", f"S{REASON_BYTES}", content="why it was lost, skipped or failed")
    yield figure("crc32", "<u4", content="CRC-32 (as in zlib) of the volume's bytes")
    for number in range(1, len(plan.pyramid) + 1):
        yield figure(f"pyramid_crc32/{number}", "<u4", content="CRC-32 of that level")
    if plan.uncertainty:
        yield figure("has_uncertainty", "u1", codes="1 the uncertainty of this time point is there")
        yield figure("uncertainty_crc32", "<u4", content="CRC-32 of its bytes")
    yield figure("effort", "u1", codes=_codes(EFFORTS))
    yield figure("later", "u1", codes="1 reconstructed later, from the recorded frames")
    yield figure("served", "u1", codes=_codes(SERVED))
    yield figure("acquired_s", "<f8", np.nan, units="s", content="camera time of the last frame")
    yield figure("latency_s", "<f8", np.nan, units="s", content="last frame to readable volume")
    for stage in STAGES:
        yield figure(f"seconds/{stage}", "<f8", np.nan, units="s")
    for candidate in CANDIDATES:
        yield figure(f"held_out_errors/{candidate}", "<f8", np.nan, content=IN_NOISE.content)
    yield figure("runtime", "u1", codes=_codes(RUNTIMES), content="what ran the network")
    for one in FIGURES:
        if one.column is not None:
            yield _column(f"mdd/{one.name}", lead, one.column)
    about = "mean over a block of how many sweeps its voxels have kept still, in sixteenths; 0: not known"
    ages = (*lead, *age_shape(header.shape))
    yield Dataset("mdd/age", ages, "u1", None, {"content": about}, since=1)
    about = "root mean square over a block of its voxels' standard deviations; 0: not known"
    yield Dataset("mdd/uncertainty_map", ages, "<f4", None, {"content": about, "units": "counts"}, since=4)
    yield figure("frames_received", "<u4")
    yield figure("frames_missing", "<u4")
    yield figure("frames_expected", "<u4", content="as its frames say, 0: none came")
    about = "what an adaptive acquisition decided for this sweep, and why; empty: the plan as configured"
    yield Dataset("mdd/decision", lead, f"S{DECISION_BYTES}", None, {"content": about}, since=3)
    for name, dtype in (("recipe", "u1"), ("state", "<i8"), ("from_state", "<i8")):
        yield figure(name, dtype, content=_RETIRED)
    yield of_frame("used", "u1", codes="1 the volume is made of it, or judged by it")
    yield of_frame("crc32", "<u4", content="CRC-32 of the frame's bytes")
    yield of_frame("check", "<u4", content=f"CRC-32 of {', '.join(CHECKED.names or ())}")
    for name, column in FRAME_COLUMNS.items():
        yield _column(f"mdd/frames/{name}", frames, column)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"{code} {name}" for code, name in enumerate(names))


def _column(path: str, shape: tuple[int, ...], column: Column) -> Dataset:
    about = {name: getattr(column, name) for name in ("units", "content", "codes") if getattr(column, name)}
    return Dataset(path, shape, column.dtype, column.empty or None, about, since=column.since)


def _live_datasets(channels: tuple[int, ...], shape: tuple[int, ...], pixel: str) -> Iterator[Dataset]:
    """Yield the rolling volume's: two buffers, so that one is whole while the other is written."""
    pair = (2, *channels)
    yield Dataset(
        "live/counter", channels, "<i8", None, {"content": "updates so far; the newest: buffer counter % 2"}
    )
    yield Dataset("live/sweep", pair, "<i8", -1)
    yield Dataset("live/newest_seq", pair, "<i8", -1, {"content": "seq of the newest frame in it"})
    yield Dataset("live/time_s", pair, "<f8", np.nan, {"units": "s", "content": "camera time of that frame"})
    yield Dataset("live/crc32", pair, "<u4")
    yield Dataset("live/volume", (*pair, *shape), pixel, None, {"units": "counts"})
