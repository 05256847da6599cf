"""Verification of a run file: the ledger to the frame, every checksum, every status.

Owns `verify_run`. It reads everything once, with plain reads of the bytes that the layout names, and trusts
nothing: a damaged file gives a report with faults, never another error. Of a run that is open or was cut off,
only what holds at any moment is checked. Any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import DamagedError, InputFileError
from microdiffusion.ledger import LEDGER_COLUMNS, Ledger
from microdiffusion.runfile.files import RunFile, missing_files, require_run_file
from microdiffusion.runfile.pyramid import coarser
from microdiffusion.runfile.schema import (
    CHECKED,
    EFFORTS,
    RUNTIMES,
    SERVED,
    Closed,
    RunPlan,
    Status,
    position_prefix,
    recorded_fields,
    segment_path,
)

_MOST_FAULTS = 100
_LEDGER_ATTEMPTS = 5


@dataclass(slots=True)
class Report:
    """Findings of `verify_run`.

    Attributes
    ----------
    path : str
    run_id : str
        Empty where the file could not be read.
    files, frames, volumes, time_points : int
        Files of the run; frames and written volumes whose checksums were computed; time points with a status.
    closed : bool
        Whether the run was closed; if not, it is open or was cut off.
    ledger : Ledger or None
    faults : list of str
        One sentence for each thing that is wrong; the first hundred.
    faults_in_all : int
    """

    path: str
    run_id: str = ""
    files: int = 0
    frames: int = 0
    volumes: int = 0
    time_points: int = 0
    closed: bool = False
    ledger: Ledger | None = None
    faults: list[str] = field(default_factory=list)
    faults_in_all: int = 0

    @property
    def sound(self) -> bool:
        """True where nothing is wrong."""
        return self.faults_in_all == 0

    def add(self, fault: str) -> None:
        """Note something that is wrong."""
        self.faults_in_all += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(fault)


def verify_run(
    path: str | Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Check a run: its ledger, checksums and statuses, over all of its files.

    Parameters
    ----------
    path
        The run's first file.
    progress
        Called with the planes that were read, and how many there are: one a frame, Z a volume.

    Raises
    ------
    MissingFileError
        There is no such file.
    """
    path = Path(path)
    require_run_file(path)
    report = Report(str(path))
    files: list[RunFile] = []
    try:
        files.extend(_parts(path, report))
        if files:
            for lacking in missing_files(files, RunFile.read):
                report.add(f"{lacking.name} is missing: copy all files of the run into one folder")
            _verify(files, report, progress)
    except DamagedError as error:
        report.add(str(error))
    except OSError as error:
        report.add(f"{path.name} cannot be read to its end ({error.strerror or error})")
    finally:
        for part in files:
            part.close()
    return report


def _parts(path: Path, report: Report) -> Iterator[RunFile]:
    """Open the run's files, as long as they belong together."""
    first: RunPlan | None = None
    following = 0
    for number in range(1_000_000):
        part = segment_path(path, number)
        if not part.is_file():
            break
        try:
            file = RunFile(part)
        except InputFileError as error:
            report.add(str(error))
            return
        plan = file.plan
        first = first or plan
        if plan.segment != number or plan.header != first.header:
            file.close()
            report.add(f"{part.name} is not part {number} of this run: give the run's first file")
            return
        if first.compression != "none" and plan.first_time_point < following:
            file.close()  # it was compressed with the rest, and is on its way to be removed
            return
        if plan.first_time_point != following:
            report.add(f"{part.name} begins with sweep {plan.first_time_point} instead of {following}")
        following = plan.first_time_point + plan.time_points
        report.files += 1
        report.run_id = plan.header.run_id
        yield file


def _verify(files: list[RunFile], report: Report, progress: Callable[[int, int], None]) -> None:
    report.closed = int(files[-1].read("mdd/closed")) == Closed.CLOSED
    for part in files:
        code = int(part.read("mdd/closed"))
        if report.closed and code != Closed.CLOSED:
            report.add(f"{part.path.name} is not closed (/mdd/closed is {code}), and the run's last file is")
    ledger = _ledger(files[0], report)
    positions = [
        [
            _CheckedPart(part, position, name if position else "", report, closed=report.closed)
            for part in files
        ]
        for position, name in enumerate(files[0].plan.header.positions)
    ]
    total = sum(session.planes for sessions in positions for session in sessions)
    planes = _PlanesChecked(progress, total)
    seqs: list[NDArray[np.int64]] = []
    for sessions in positions:
        seqs.extend(session.verify(planes) for session in sessions)
        if report.closed:
            _every_time_point_is_settled(sessions, report)
    _numbers(np.concatenate(seqs), ledger, report)
    _run_texts(files[0], report)


def _ledger(first: RunFile, report: Report) -> Ledger:
    """Check that the ledger adds up; that of an open run may be read in the middle of a write."""
    for _ in range(_LEDGER_ATTEMPTS):
        ledger = Ledger(**dict(zip(LEDGER_COLUMNS, first.read("mdd/ledger").tolist(), strict=True)))
        if not (complaint := ledger.complaint()):
            break
    report.ledger = ledger
    if complaint:
        report.add(complaint)
    if ledger.announced_known not in (0, 1):
        report.add(f"the ledger's announced_known is {ledger.announced_known} instead of 0 or 1")
    return ledger


def _numbers(seqs: NDArray[np.int64], ledger: Ledger, report: Report) -> None:
    """Check that no frame is there twice, and that the number of frames matches the ledger."""
    numbers, counts = np.unique(seqs, return_counts=True)
    for seq in numbers[counts > 1][:_MOST_FAULTS].tolist():
        report.add(f"frame seq {seq} is in the file more than once")
    placed = ledger.received - ledger.unplaced
    if report.closed and seqs.size != placed:
        report.add(
            f"the ledger says that {placed} frames are in the file "
            f"({ledger.received} received, {ledger.unplaced} of them without a place), and {seqs.size} are"
        )


def _run_texts(first: RunFile, report: Report) -> None:
    if int(first.read("mdd/events/count")) < 0:
        report.add("the number of events is negative")
    text = bytes(first.read("mdd/engine")[()])
    try:
        if not isinstance(json.loads(text or b"{}"), dict):
            report.add("/mdd/engine is not a JSON object")
    except (ValueError, RecursionError):
        report.add("/mdd/engine is not JSON")


def _every_time_point_is_settled(sessions: list[_CheckedPart], report: Report) -> None:
    """Check that every time point up to the last one of each channel has a status."""
    status = np.concatenate([session.status for session in sessions])
    received = np.concatenate([session.received for session in sessions])
    for channel in range(status.shape[1]):
        used = np.flatnonzero((status[:, channel] != 0) | (received[:, channel] > 0))
        last = int(used[-1]) if used.size else -1
        for t in np.flatnonzero(status[: last + 1, channel] == Status.EMPTY).tolist():
            report.add(f"{sessions[0].where(t, channel)} has no status, and the run is closed")


class _PlanesChecked:
    """Progress in planes, over all files and positions."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, planes: int) -> None:
        self._done += planes
        self._progress(self._done, self._total)


class _CheckedPart:
    """One position in one file; arrays are (T, C) or (T, C, M)."""

    def __init__(
        self,
        part: RunFile,
        position: int,
        name: str,
        report: Report,
        *,
        closed: bool,
    ) -> None:
        plan = part.plan
        self._part, self._report, self._closed = part, report, closed
        self._prefix, self._name = position_prefix(position), name
        self._channels, self._depth = plan.header.channels, plan.header.shape[0]
        self._lead = (plan.time_points, len(self._channels))
        # Statuses and seqs first: what they announce was written before them.
        self.status = self._values("status")
        self._seq = self._frame_values("seq")
        self._recorded = [field.name for field in recorded_fields(plan.minor)]
        self.received = np.count_nonzero(self._seq >= 0, axis=-1)

    def where(self, t: int, channel: int) -> str:
        """Return a time point's name."""
        text = f"sweep {self._part.plan.first_time_point + t}"
        text += f" of channel {self._channels[channel]}" if len(self._channels) > 1 else ""
        return text + (f" of position {self._name}" if self._name else "")

    @property
    def planes(self) -> int:
        """Amount to read: one plane for each frame, Z for each volume."""
        written = int(np.count_nonzero(self.status == Status.WRITTEN))
        return int(self.received.sum()) + written * self._depth

    def verify(self, progress: _PlanesChecked) -> NDArray[np.int64]:
        """Check everything of this position and return the seqs of its frames."""
        self._report.time_points += int(np.count_nonzero(self.status))
        self._codes()
        self._frames(progress)
        self._volumes(progress)
        if self._closed:
            self._counts()
            self._live()
        return self._seq[self._seq >= 0]

    def _codes(self) -> None:
        sizes = {
            "status": len(Status),
            "effort": len(EFFORTS),
            "later": 2,
            "merged": 2,
            "served": len(SERVED),
            "runtime": len(RUNTIMES),
        }
        for name, size in sizes.items():
            values = self._values(name)
            for t, channel in np.argwhere(values >= size)[:_MOST_FAULTS].tolist():
                code = int(values[t, channel])
                self._report.add(f"{self.where(t, channel)} has the unknown code {code} in /mdd/{name}")

    def _frames(self, progress: _PlanesChecked) -> None:
        columns = {name: self._frame_values(name) for name in (*self._recorded, "crc32")}
        rows = np.empty(self._seq.shape, CHECKED)
        for name in CHECKED.names or ():
            rows[name] = columns[name]
        sums, checks = columns["crc32"], self._frame_values("check")
        lacking = {name: ~np.isfinite(columns[name]) for name in self._recorded}
        images = f"{self._prefix}projections"
        for t, channel, slot in np.argwhere(self._seq >= 0).tolist():
            what = f"frame {slot} (seq {self._seq[t, channel, slot]}) of {self.where(t, channel)}"
            for name, absent in lacking.items():
                if absent[t, channel, slot]:
                    self._report.add(f"{what} has no {name}")
            if crc32(rows[t, channel, slot].tobytes()) != checks[t, channel, slot]:
                self._report.add(f"{what} was changed: its number, place, time or checksum")
            if self._sum(images, (*self._index(t, channel), slot)) != sums[t, channel, slot]:
                self._report.add(f"{what} has the wrong checksum")
            self._report.frames += 1
            progress.add(1)

    def _volumes(self, progress: _PlanesChecked) -> None:
        sums, acquired_s = self._values("crc32"), self._values("acquired_s")
        served, reasons = self._values("served"), self._values("reason")
        volumes = f"{self._prefix}volume"
        beside = self._sums_beside()
        for t, channel in np.argwhere(self.status == Status.WRITTEN).tolist():
            what = f"the volume of {self.where(t, channel)}"
            content = self._item(volumes, self._index(t, channel))
            if content is None or _crc32(content) != sums[t, channel]:
                self._report.add(f"{what} has the wrong checksum")
            self._beside(t, channel, what, content, beside)
            if not np.isfinite(acquired_s[t, channel]):
                self._report.add(f"{what} has no time")
            if served[t, channel] == 0:
                self._report.add(f"{what} does not say which answer it is")
            if reasons[t, channel]:
                self._report.add(f"{what} is written, and has a reason why it should not be")
            self._report.volumes += 1
            progress.add(self._depth)
        for t, channel in np.argwhere((self.status > Status.WRITTEN) & (reasons == b"")).tolist():
            self._report.add(f"{self.where(t, channel)} has no volume, and no reason for it")

    def _sums_beside(self) -> dict[str, NDArray[Any]]:
        """Return the checksums of levels and uncertainty, once for all volumes."""
        plan = self._part.plan
        names = [f"pyramid_crc32/{level}" for level in range(1, len(plan.pyramid) + 1)]
        if plan.uncertainty:
            names += ["has_uncertainty", "uncertainty_crc32"]
        return {name: self._values(name) for name in names}

    def _beside(
        self, t: int, channel: int, what: str, volume: NDArray[Any] | None, sums: dict[str, NDArray[Any]]
    ) -> None:
        """Check the coarser levels of a volume, and its uncertainty."""
        plan, index = self._part.plan, self._index(t, channel)
        if volume is None:  # of the volume it is known already
            return
        with np.errstate(all="ignore"):  # damaged voxels may be anything
            levels = coarser(volume, plan.pyramid)
        for level, content in enumerate(levels, 1):
            found = self._sum(f"{self._prefix}pyramid/{level}", index)
            if found != sums[f"pyramid_crc32/{level}"][t, channel]:
                self._report.add(f"level {level} of {what} has the wrong checksum")
            elif found != _crc32(content):
                self._report.add(f"level {level} of {what} is not made of its voxels")
        if plan.uncertainty and sums["has_uncertainty"][t, channel]:
            found = self._sum(f"{self._prefix}uncertainty", index)
            if found != sums["uncertainty_crc32"][t, channel]:
                self._report.add(f"the uncertainty of {what} has the wrong checksum")

    def _counts(self) -> None:
        expected = self._values("frames_expected").astype(np.int64)
        missing = np.where(self.status != 0, np.maximum(expected - self.received, 0), 0)
        for name, truth in (("received", self.received), ("missing", missing)):
            values = self._values(f"frames_{name}")
            for t, channel in np.argwhere(values != truth)[:_MOST_FAULTS].tolist():
                self._report.add(
                    f"{self.where(t, channel)} says that {values[t, channel]} frames are {name}, "
                    f"and {truth[t, channel]} are"
                )

    def _live(self) -> None:
        plan = self._part.plan
        if not plan.live or plan.segment:
            return
        counters = self._part.read(f"{self._prefix}live/counter").reshape(-1)
        sums = self._part.read(f"{self._prefix}live/crc32").reshape(2, -1)
        volumes = f"{self._prefix}live/volume"
        for channel in np.flatnonzero(counters > 0).tolist():
            newest = int(counters[channel] % 2)
            index = (newest,) if len(self._channels) == 1 else (newest, channel)
            if self._sum(volumes, index) != sums[newest, channel]:
                of = self.where(0, channel).partition(" of ")[2]
                self._report.add(f"the rolling volume{of and ' of ' + of} has the wrong checksum")

    def _item(self, name: str, index: tuple[int, ...]) -> NDArray[Any] | None:
        """Return an image, None where HDF5 cannot unpack it."""
        try:
            return self._part.read(name, index)
        except DamagedError:
            return None

    def _sum(self, name: str, index: tuple[int, ...]) -> int:
        """Return the CRC-32 of an image; -1 where HDF5 cannot unpack it."""
        content = self._item(name, index)
        return -1 if content is None else _crc32(content)

    def _frame_values(self, name: str) -> NDArray[Any]:
        frames = self._part.plan.frames_per_sweep
        return self._part.read(f"{self._prefix}mdd/frames/{name}").reshape(*self._lead, frames)

    def _values(self, name: str) -> NDArray[Any]:
        return self._part.read(f"{self._prefix}mdd/{name}").reshape(self._lead)

    def _index(self, t: int, channel: int) -> tuple[int, ...]:
        return (t,) if len(self._channels) == 1 else (t, channel)


def _crc32(content: NDArray[Any]) -> int:
    return int(crc32(content.reshape(-1).view(np.uint8).data))
