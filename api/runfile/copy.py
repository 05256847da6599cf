"""A consistent copy of a run, also during the run (`mdd snapshot`), and compressed (`mdd repack`).

Owns the order of reading that makes the copy consistent: statuses and the frames' `seq` first, since what
they announce was written before; then figures, then images, and only those that are announced. What arrives
meanwhile is not part of the copy. All files of the run become one. Every byte of the copy is checked before
it gets its name. Functions hold no state; any thread.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError, MddError, NoRoomError
from microdiffusion.files import refuse_existing, staged
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.files import RunParts
from microdiffusion.runfile.layout import SNAPSHOT, Chunks, chunk_shape, create_run_file
from microdiffusion.runfile.schema import (
    Closed,
    RunPlan,
    Status,
    datasets,
    file_bytes,
    position_prefix,
    segment_path,
)
from microdiffusion.runfile.verify import Report, verify_run

_ATTEMPTS = 100
_RUN_DATA = (
    "mdd/senders",
    "mdd/engine",
    "mdd/recipes",
    "mdd/unplaced_seq",
    "mdd/events/count",
    "mdd/events/time_s",
    "mdd/events/kind",
    "mdd/events/text",
)
_MARGIN_BYTES = 16 << 20  # left free: HDF5 must not meet a full disk in the middle of its tables
_MOST_CHUNK_BYTES = 1 << 30  # HDF5 takes less than 4 GiB, and a reader holds a whole one


def snapshot_run(
    run: Path,
    output: Path,
    *,
    compression: str = "none",
    chunks: Chunks | None = None,
    mark: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Copy what a run holds now into one file, and return the report of `verify_run` on the copy.

    Parameters
    ----------
    run
        The run's first file.
    output
        The copy, which must not exist.
    compression
        Of its images: "none", "gzip" or "lz4".
    chunks : (planes, rows, columns)
        Of its images, where they are compressed; None: whole planes, 1 MiB at most.
    mark
        Whether to note in the provenance that it is a copy, so that no daemon resumes the run in it unasked.
    progress
        Called with the time points that are done, and how many there are.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such run, the copy exists, the run is damaged, or the chunks are impossible.
    NoRoomError, DiskError
        The disk is full, or cannot be written.
    DependencyError
        The compression needs a package that is missing.
    """
    if chunks and compression == "none":
        raise InputFileError("Without compression there are no chunks: leave them out.")
    _check_name(run, output)
    parts = RunParts(run)
    try:
        plan = parts.plan
        parts.require_all()
        if plan.segment:
            raise InputFileError(f"{run} is a further file of a run: give the run's first file.")
        closed = int(parts.all()[-1].view("mdd/closed")[()]) == Closed.CLOSED
        sessions = [_CopiedSession.read(parts, number) for number in range(len(plan.header.positions))]
        used = max(1, *(session.used for session in sessions))
        marks = {SNAPSHOT: datetime.now(UTC).isoformat(timespec="seconds")} if mark else {}
        copied = replace(
            plan,
            time_points=used,
            live=plan.live and closed,
            provenance=dict(plan.provenance) | marks,
            # A growing file of layout 1.0 plans more room than a static file can reserve.
            planned_time_points=plan.planned if plan.compression == "none" else used,
            compression=compression,
        )
        _check_chunks(copied, chunks)
        # How much compression saves is unknown: such a copy checks the free space as it grows.
        needed = file_bytes(copied) if compression == "none" else 0
        with staged(output, needed_bytes=needed) as (path,):
            with _open_target(path, copied, chunks) as target:
                done = chain.from_iterable(_copy_session(parts, one, copied, target) for one in sessions)
                for number, _ in enumerate(done, 1):
                    progress(number, used * len(sessions))
                _copy_run_data(parts, sessions, copied, target, closed=closed)
            report = verify_run(path)
            if not report.sound:
                raise InputFileError(
                    f"{run} cannot be copied, {report.faults[0]}: see `mdd verify`, nothing was left behind."
                )
    finally:
        parts.close()
    report.path = str(output)
    return report


def _check_name(run: Path, output: Path) -> None:
    """Refuse a name by which one of the two would look like a further file of the other."""
    refuse_existing(segment_path(output, 1))
    number = output.stem.removeprefix(f"{run.stem}_s")
    beside = output.absolute().parent == run.absolute().parent and output.suffix == run.suffix
    if beside and number != output.stem and number.isdecimal():
        raise InputFileError(
            f"{output.name} is what a further file of {run.name} is called: choose another name."
        )


@dataclass(slots=True)
class _CopiedSession:
    """Statuses (T[, C]) and seqs (T, [C,] M) of a position when the copy began."""

    prefix: str
    status: NDArray[np.uint8]
    seq: NDArray[np.int64]
    used: int

    @classmethod
    def read(cls, parts: RunParts, position: int) -> _CopiedSession:
        prefix = position_prefix(position)
        status = _whole(parts, f"{prefix}mdd/status")
        seq = _whole(parts, f"{prefix}mdd/frames/seq")[: len(status)]
        lead = status.reshape(len(status), -1).any(axis=1) | (seq >= 0).reshape(len(status), -1).any(axis=1)
        used = int(np.flatnonzero(lead)[-1]) + 1 if lead.any() else 0
        return cls(prefix, status, seq, used)


def _whole(parts: RunParts, name: str) -> NDArray[Any]:
    """Return a dataset with time as axis 0, over all of the run's files; a copy."""
    return np.concatenate([np.array(part.view(name)[()]) for part in parts.all()])


def _copy_session(parts: RunParts, session: _CopiedSession, plan: RunPlan, target: _Target) -> Iterator[int]:
    """Copy the announced part of a position; yield each time point when it is done."""
    prefix, used = session.prefix, plan.time_points
    status, seq = _resized(session.status, used, 0), _resized(session.seq, used, -1)

    def figure(name: str, empty: Any) -> NDArray[Any]:
        """Return a dataset, where nothing was announced with its initial content."""
        values = _resized(_whole(parts, prefix + name), used, empty)
        values[~(seq >= 0 if name.startswith("mdd/frames/") else status != Status.EMPTY)] = empty
        return values

    wanted = [
        replace(one, path=one.path[len(prefix) :])
        for one in datasets(plan)
        if one.timed and (one.path.startswith(prefix) if prefix else not one.path.startswith("position_"))
    ]
    values = {one.path: figure(one.path, one.empty) for one in wanted if not one.image}
    values["mdd/reason"] = _reasons(parts, prefix, status, values["mdd/reason"])
    received = np.count_nonzero(seq >= 0, axis=-1)
    expected = _resized(_whole(parts, f"{prefix}mdd/frames_expected"), used, 0)
    missing = np.maximum(expected.astype(np.int64) - received, 0)
    values |= {
        "mdd/status": status,
        "mdd/frames/seq": seq,
        "mdd/frames_received": received,
        "mdd/frames_expected": expected,
        "mdd/frames_missing": np.where(status != Status.EMPTY, missing, 0),
    }
    for name, value in values.items():
        target.write(prefix + name, value)
    volumes = [one.path for one in wanted if one.image == 3]
    flags = {"uncertainty": values.get("mdd/has_uncertainty")}
    for t in range(used):
        for index in np.argwhere(np.atleast_1d(status[t]) == Status.WRITTEN).tolist():
            place = (t, *index) if status.ndim > 1 else (t,)
            for name in volumes:
                flag = flags.get(name)
                if flag is None or flag[place]:
                    target.write(prefix + name, _item(parts, prefix + name, place), place)
        for slot in np.argwhere(seq[t] >= 0).tolist():
            name, place = f"{prefix}projections", (t, *slot)
            target.write(name, _item(parts, name, place), place)
        yield t


def _resized(values: NDArray[Any], used: int, empty: Any) -> NDArray[Any]:
    """Return the first `used` rows, with empty ones where the files have no room for them yet."""
    rows = np.full((used, *values.shape[1:]), empty, values.dtype)
    some = min(used, len(values))
    rows[:some] = values[:some]
    return rows


def _reasons(parts: RunParts, prefix: str, status: NDArray[Any], reasons: NDArray[Any]) -> NDArray[Any]:
    """Return the reasons; one that is just being removed, as a late volume is written, is read again."""
    for _ in range(_ATTEMPTS):
        torn = (status > Status.WRITTEN) & (reasons == b"")
        if not torn.any():
            break
        time.sleep(0.01)
        now = _resized(_whole(parts, f"{prefix}mdd/reason"), len(status), b"")
        reasons = np.where(torn, now, reasons)
    reasons[(status > Status.WRITTEN) & (reasons == b"")] = b"its volume was just being written"
    reasons[status <= Status.WRITTEN] = b""
    return reasons


def _item(parts: RunParts, name: str, place: tuple[int, ...]) -> Any:
    """Return one volume or frame, from the file that has it."""
    t, *rest = place
    for part in parts.all():
        if t < part.plan.time_points:
            return part.view(name)[(t, *rest)]
        t -= part.plan.time_points
    raise IndexError(place)


def _copy_run_data(
    parts: RunParts, sessions: list[_CopiedSession], plan: RunPlan, target: _Target, *, closed: bool
) -> None:
    """Copy what the run has once; the ledger counts the frames of the copy."""
    first = parts.first()
    # Rolling volumes of a closed run no longer change. Of events the count first: those rows are complete.
    live = (one.path for one in datasets(plan) if "live" in one.path.split("/"))
    for name in (*_RUN_DATA, *live):
        target.write(name, first.view(name)[()])
    ledger = Ledger.of(first.view("mdd/ledger")[()])
    unplaced = max(ledger.unplaced, int(np.count_nonzero(np.array(first.view("mdd/unplaced_seq")[()]) >= 0)))
    placed = sum(int(np.count_nonzero(session.seq >= 0)) for session in sessions)
    target.write("mdd/ledger", ledger.settled(received=placed + unplaced, unplaced=unplaced).array())
    target.write("mdd/closed", Closed.CLOSED if closed else Closed.OPEN)


@contextlib.contextmanager
def _open_target(path: Path, plan: RunPlan, chunks: Chunks | None) -> Iterator[_Target]:
    """Create the copy and yield it; it is complete and closed when the block ends."""
    try:
        create_run_file(path, plan, chunks)
        # Chunks are written whole and once: no cache. Nobody else knows of the file: no lock.
        with h5py.File(path, "r+", rdcc_nbytes=0, locking=False) as file:
            yield _Target(path, file, plan)
    except RuntimeError as error:  # so h5py calls what happens while it closes a file
        if isinstance(error, MddError):
            raise
        raise OSError(str(error)) from error


class _Target:
    """The copy, as it is filled."""

    def __init__(self, path: Path, file: h5py.File, plan: RunPlan) -> None:
        self._path = path
        self._datasets: dict[str, h5py.Dataset] = {one.path: file[one.path] for one in datasets(plan)}

    def write(self, name: str, value: Any, index: tuple[int, ...] = ()) -> None:
        """Write what `index` selects of the dataset `name`; `value` has its shape."""
        dataset = self._datasets[name]
        content = np.asarray(value)
        if content.shape != dataset.shape[len(index) :]:
            raise ValueError(f"/{name}{list(index)} is {dataset.shape[len(index) :]}, not {content.shape}")
        if dataset.chunks:
            free = shutil.disk_usage(self._path.parent).free
            if free < content.nbytes + _MARGIN_BYTES:
                raise NoRoomError(
                    f"The copy needs {(content.nbytes + _MARGIN_BYTES) / 1e6:.0f} MB more, "
                    f"{free / 1e6:.0f} MB are free: make room, or choose another folder; nothing was left "
                    "behind."
                )
        # HDF5 converts text only from a type that says that it is UTF-8.
        dataset[index] = content.astype(dataset.dtype) if content.dtype.kind == "S" else content


def _check_chunks(plan: RunPlan, chunks: Chunks | None) -> None:
    for dataset in datasets(plan) if chunks else ():
        if not dataset.image:
            continue
        size = int(np.prod(chunk_shape(dataset, chunks), dtype=np.int64)) * np.dtype(dataset.dtype).itemsize
        if size > _MOST_CHUNK_BYTES:
            raise InputFileError(
                f"A chunk of {size / 1e9:.1f} GB is more than readers can hold (/{dataset.path}): "
                "give --chunks of fewer planes or rows, such as 16,128,128."
            )
