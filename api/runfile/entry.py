"""One run in a catalogue: what `mdd info` says of it, read in a few milliseconds.

Owns `RunEntry` and `read_entry`, which opens each file of a run once and reads its figures, never an image.
Whatever is wrong with a file is a state of the entry, not an error. Functions hold no state; any thread.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.attributes import attribute_of, read_plan
from microdiffusion.runfile.layout import SNAPSHOT, open_hdf5
from microdiffusion.runfile.schema import (
    LAYOUT_MAJOR,
    SERVED,
    Closed,
    RunPlan,
    Status,
    position_prefix,
    segment_path,
)
from microdiffusion.text import count_noun, encodable

RunState = Literal["closed", "running", "interrupted", "incomplete", "damaged", "unreadable"]
"""closed: it ended and is whole. running: somebody writes it now. interrupted: nobody does, and it was not
closed. incomplete: some of its files are not there. damaged: its file cannot be made sense of. unreadable: it
may not be read, or is of another version."""

_COUNTS_FILES = 2  # the minor version of the layout that does
_FARTHEST = 1e100  # of a damaged file the figures may be anything
_FIGURES = ("status", "latency_s", "held_out_error", "served", "frames/seq", "frames/camera_time_s")


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run in a catalogue. What is not known is None, 0 or empty.

    Attributes
    ----------
    path : str
        Its first file; of what may not be looked into, the folder.
    state : RunState
    problem : str
        What is wrong with it, and what to do; empty where nothing is.
    bytes, files : int
        Size and number of its files.
    missing_files : tuple of str
    name, run_id, source, created_utc : str
        As in the run's header; ISO 8601.
    copy : bool
        Made by `mdd snapshot` or `mdd repack` of a run that went on.
    duration_s : float or None
        From the first to the last frame, by the camera's clock.
    shape : (Z, Y, X) or None
    voxel_size_um : (z, y, x) or None
    dtype, compression, layout : str
    channels, positions : tuple of str
    sweeps : int or None
        As planned; None: an open end.
    time_points : int
        Up to the last one with a status, of all files.
    written, lost, skipped, failed : int
        Over all channels and positions.
    frames_announced, frames_received, frames_missing : int
    latency_s, held_out_error : float or None
        Medians; the latter in units of the noise.
    served : str
        Which answers, how often: "mdd 8, inr 2".
    device, weights : str
        What reconstructed it.
    """

    path: str
    state: RunState
    problem: str = ""
    bytes: int = 0
    files: int = 1
    missing_files: tuple[str, ...] = ()
    name: str = ""
    run_id: str = ""
    source: str = ""
    created_utc: str = ""
    copy: bool = False
    duration_s: float | None = None
    shape: tuple[int, int, int] | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    dtype: str = ""
    compression: str = ""
    layout: str = ""
    channels: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    sweeps: int | None = None
    time_points: int = 0
    written: int = 0
    lost: int = 0
    skipped: int = 0
    failed: int = 0
    frames_announced: int = 0
    frames_received: int = 0
    frames_missing: int = 0
    latency_s: float | None = None
    held_out_error: float | None = None
    served: str = ""
    device: str = ""
    weights: str = ""


@dataclass(slots=True)
class _Figures:
    """Figures of all files of a run: arrays by their name, each flat, of every position."""

    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    time_points: int = 0

    def add(self, file: h5py.File, plan: RunPlan) -> None:
        used = 0
        for position in range(len(plan.header.positions)):
            prefix = f"{position_prefix(position)}mdd/"
            for name in _FIGURES:
                values = _values(file, prefix + name)
                self.arrays.setdefault(name, []).append(values.ravel())
                if name == "status":
                    known = np.flatnonzero(values.reshape(len(values), -1).any(axis=1))
                    used = max(used, int(known[-1]) + 1 if known.size else 0)
        if used:
            self.time_points = plan.first_time_point + used

    def all(self, name: str) -> NDArray[Any]:
        return np.concatenate(self.arrays[name])


def lock_path(run: Path) -> Path:
    """Return the file that whoever writes a run keeps locked."""
    return run.with_name(f".{run.name}.lock")


def is_locked(path: Path) -> bool:
    """Return whether a process has locked a file as `filelock` does; nothing is created or changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # Windows: of a locked file; elsewhere its owner alone may look
        return True
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # else: there are no locks here
    finally:
        os.close(descriptor)
    return False


def read_entry(path: Path, further: Sequence[Path] = ()) -> tuple[RunEntry | None, int]:
    """Return a run's entry, and how many of the files named like further ones are its own.

    Parameters
    ----------
    path
        A file that may be a run's first one. Of another kind of file, and of one that is gone, the entry is
        None.
    further
        Files beside it that are named like its further ones, in their order, from 1 on without a gap.
    """
    figures = _Figures()
    sizes: list[int] = []
    plan: RunPlan | None = None
    about: dict[str, Any] = {}
    try:
        for number, part in enumerate((path, *further)):
            with open_hdf5(part) as file:
                version = attribute_of(part, file["/"], "mdd_layout")
                if number == 0 and version is None:
                    return None, 0
                if number == 0 and not _is_of_this_version(version):
                    problem = f"it has run file layout {version!s:.20}: open it with the mdd that wrote it."
                    return _wrong(path, "unreadable", problem), 0
                own = read_plan(part, file)
                if number == 0:
                    plan, about = own, _about_run(file, own)
                elif plan is None or not _follows(own, plan, number):
                    break
                figures.add(file, own)
                about["closed"] = int(_values(file, "mdd/closed").ravel()[0]) == Closed.CLOSED
                sizes.append(part.stat().st_size)
    except FileNotFoundError:
        return None, 0
    except InputFileError as error:
        return _wrong(path, "damaged", str(error).removeprefix(str(path)).lstrip(": ")), len(further)
    except Exception as error:  # damaged bytes make h5py raise nearly every kind of error
        return _unopened(path, error), len(further)
    if plan is None or plan.segment:
        first = f"it is file {plan.segment + 1} of a run whose first file is not there" if plan else ""
        problem = f"{first}: copy all files of the run into one folder."
        return _wrong(path, "incomplete", problem), 0
    return _entry(path, plan, figures, sizes, about), len(sizes) - 1


def _is_of_this_version(version: Any) -> bool:
    return isinstance(version, str) and version.partition(".")[0] == str(LAYOUT_MAJOR)


def _follows(part: RunPlan, first: RunPlan, number: int) -> bool:
    """Return whether a file is a further one of the run, and not one that only has such a name."""
    return (part.header.run_id, part.segment) == (first.header.run_id, number)


def _about_run(file: h5py.File, plan: RunPlan) -> dict[str, Any]:
    """Return what only the first file says; nothing of a further one."""
    if plan.segment:
        return {}
    files = int(_values(file, "mdd/files").ravel()[0]) if plan.minor >= _COUNTS_FILES else 0
    try:
        engine = json.loads(bytes(_values(file, "mdd/engine").ravel()[0]))
    except ValueError:  # there was none, or the file is damaged
        engine = {}
    provenance = dict(plan.provenance) | (engine if isinstance(engine, dict) else {})
    return {"files": files, "ledger": Ledger.of(_values(file, "mdd/ledger")), "provenance": provenance}


def _entry(
    path: Path, plan: RunPlan, figures: _Figures, sizes: Sequence[int], about: dict[str, Any]
) -> RunEntry:
    missing = [segment_path(path, number) for number in range(len(sizes), about["files"])]
    names = tuple(each.name for each in missing if not each.is_file() or each == missing[0])[:1000]
    state: RunState = "closed"
    problem = ""
    if not about["closed"]:
        state = "running" if is_locked(lock_path(path)) else "interrupted"
    if names and state != "running":
        state = "incomplete"
        problem = f"{count_noun(len(names), 'file')} of the run missing, {names[0]} first: copy all of them."
    elif state == "interrupted":
        problem = "nobody writes it, and it was not closed: see `mdd repair`."
    status = figures.all("status")
    written = status == Status.WRITTEN
    there = figures.all("frames/seq") >= 0
    times = _sane(figures.all("frames/camera_time_s")[there])
    header, ledger, provenance = plan.header, about["ledger"], about["provenance"]
    return RunEntry(
        path=str(path),
        state=state,
        problem=problem,
        bytes=sum(sizes),
        files=len(sizes),
        missing_files=names,
        name=header.name,
        run_id=header.run_id,
        source=header.source,
        created_utc=plan.created_utc,
        copy=SNAPSHOT in plan.provenance,
        duration_s=float(times.max() - times.min()) if times.size > 1 else None,
        shape=header.shape,
        voxel_size_um=header.voxel_size_um,
        dtype=header.dtype,
        compression=plan.compression,
        layout=plan.version,
        channels=header.channels,
        positions=header.positions,
        sweeps=header.sweeps,
        time_points=figures.time_points,
        **{code.name.lower(): int(np.count_nonzero(status == code)) for code in Status if code},
        frames_announced=ledger.announced,
        frames_received=ledger.received,
        frames_missing=ledger.missing,
        latency_s=_median(figures.all("latency_s")[written]),
        held_out_error=_median(figures.all("held_out_error")[written]),
        served=_answers(figures.all("served")[written]),
        device=str(provenance.get("device", "")),
        weights=str(provenance.get("weights", "")),
    )


def _values(file: h5py.File, name: str) -> NDArray[Any]:
    """Return a dataset of figures; h5py's own objects would take three times as long."""
    dataset = h5py.h5d.open(file.id, name.encode())
    if prod(dataset.shape) * dataset.dtype.itemsize > _size_of(file):
        raise InputFileError(f"/{name} is larger than the file: it is damaged; use an untouched copy.")
    values: NDArray[Any] = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _size_of(file: h5py.File) -> int:
    return int(file.id.get_filesize())


def _sane(values: NDArray[Any]) -> NDArray[np.float64]:
    sane: NDArray[np.float64] = values[np.abs(values) < _FARTHEST].astype(np.float64)
    return sane


def _median(values: NDArray[Any]) -> float | None:
    values = _sane(values)
    return float(np.median(values)) if values.size else None


def _answers(codes: NDArray[Any]) -> str:
    word: Callable[[int], str] = lambda code: SERVED[code] if code < len(SERVED) else f"code {code}"  # noqa: E731
    counts = Counter(codes.tolist())
    return ", ".join(f"{word(code)} {count}" for code, count in sorted(counts.items())) if any(counts) else ""


def _unopened(path: Path, error: Exception) -> RunEntry:
    """Return the entry of a file that cannot be opened."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return _wrong(path, "unreadable", "it may not be read: check its rights.")
    if number is not None:  # HDF5's own errors have none
        return _wrong(path, "unreadable", f"it cannot be read ({os.strerror(number)}): check the disk.")
    reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
    problem = f"it cannot be read as HDF5 ({reason}): it is damaged, incomplete or another kind of file."
    return _wrong(path, "damaged", problem)


def _wrong(path: Path, state: RunState, problem: str) -> RunEntry:
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return RunEntry(str(path), state, encodable(problem), bytes=size)
