"""Verification of a run file: the ledger to the frame, every checksum, every status.

Owns `verify_run`. It reads everything once, with plain reads of the bytes that the layout names, and trusts
nothing: a damaged file gives a report with faults, never another error. Of a run that is open or was cut off,
only what holds at any moment is checked. Any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DamagedError, InputFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.files import RunFile, missing_files, require_run_file
from microdiffusion.runfile.position_check import MOST_FAULTS, PositionCheck
from microdiffusion.runfile.schema import Closed, RunPlan, Status, segment_path

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
        if len(self.faults) < MOST_FAULTS:
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
            _tell_missing(files, report)
            _verify(files, report, progress)
    except DamagedError as error:
        report.add(str(error))
    except OSError as error:
        report.add(f"{path.name} cannot be read to its end ({error.strerror or error})")
    finally:
        for part in files:
            part.close()
    return report


def _tell_missing(files: Sequence[RunFile], report: Report) -> None:
    try:
        for lacking in missing_files(files, RunFile.read):
            report.add(f"{lacking.name} is missing: copy all files of the run into one folder")
    except InputFileError as error:  # of a further file's first one
        report.add(str(error))


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
            if not number:
                _tell_missing([file], report)
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
        [PositionCheck(part, position, report.add, closed=report.closed) for part in files]
        for position in range(len(files[0].plan.header.positions))
    ]
    done, total = 0, sum(check.planes for checks in positions for check in checks)
    seqs: list[NDArray[np.int64]] = []
    for checks in positions:
        for check in checks:
            for planes in check.verify():
                done += planes
                progress(done, total)
            report.time_points += int(np.count_nonzero(check.status))
            report.frames += check.frames
            report.volumes += check.volumes
            seqs.append(check.seqs)
        if report.closed:
            _every_time_point_is_settled(checks, report)
    _numbers(np.concatenate(seqs), ledger, report)
    _run_texts(files[0], report)


def _ledger(first: RunFile, report: Report) -> Ledger:
    """Check that the ledger adds up; that of an open run may be read in the middle of a write."""
    for _ in range(_LEDGER_ATTEMPTS):
        ledger = Ledger.of(first.read("mdd/ledger"))
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
    for seq in numbers[counts > 1][:MOST_FAULTS].tolist():
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


def _every_time_point_is_settled(checks: list[PositionCheck], report: Report) -> None:
    """Check that every time point up to the last one of each channel has a status."""
    status = np.concatenate([check.status for check in checks])
    received = np.concatenate([check.received for check in checks])
    for channel in range(status.shape[1]):
        used = np.flatnonzero((status[:, channel] != 0) | (received[:, channel] > 0))
        last = int(used[-1]) if used.size else -1
        for t in np.flatnonzero(status[: last + 1, channel] == Status.EMPTY).tolist():
            report.add(f"{checks[0].where(t, channel)} has no status, and the run is closed")
