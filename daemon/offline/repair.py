"""`mdd repair`: a run file that a killed daemon, or a cut-off copy, left behind, brought in order.

Mends tables that a power cut tore (`mending`) and takes away the mark that a killed writer left (SWMR
storage), says of images that lie behind the file's end that they are gone, and closes the run: every time
point that was begun gets a status, as at an orderly end. Nothing is replayed, and no image is touched.
Holds the run's lock meanwhile, so a file that a daemon writes is refused. The superblock is kept beside the
file before it is changed, and put back where HDF5 does not open the file after it. One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.recorder import Mended, RunFiles, RunWriter, SwmrSegment, mend
from microdiffusion.errors import InputFileError, MddError, MissingFileError
from microdiffusion.runfile import (
    SIGNATURE,
    Status,
    SwmrPart,
    clear_mark,
    open_run,
    read_superblock,
    segment_path,
    verify_run,
    write_superblock,
)
from microdiffusion.text import count_noun

_REASON = "the file was cut off before its end"


@dataclass(slots=True)
class Repair:
    """What was found and done.

    Attributes
    ----------
    path : str
    done : list of str
        In sentences; empty: nothing was needed.
    faults : list of str
        What is still wrong, as `mdd verify` would say; the first hundred.
    """

    path: str
    done: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong now."""
        return not self.faults


def repair_run(path: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Repair:
    """Bring a run in order, all of its files, and check it; `progress` is that of `verify_run`.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such file; it is no HDF5 file; a daemon writes it.
    DiskError
        It cannot be written.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no run file at {path}: check the path.")
    with path.open("rb") as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            raise InputFileError(f"{path} is not an HDF5 file: give the file that `mdd serve` wrote.")
    lock = RunLock(path)
    lock.acquire()
    report = Repair(str(path))
    try:
        number = 0
        while (part := segment_path(path, number)).is_file():
            _repair_file(part, report)
            number += 1
        _close(path, report)
    except MddError as error:
        report.faults.append(str(error))
    finally:
        lock.release()
    found = verify_run(path, progress=progress)
    report.faults += [fault for fault in found.faults if fault not in report.faults]
    return report


def _repair_file(path: Path, report: Repair) -> None:
    superblock = read_superblock(path)
    if superblock is None:  # static: no writer leaves a mark in it
        return
    mended = Mended()
    left_open = superblock.marked or superblock.end > path.stat().st_size
    if left_open:
        mended = mend(path)
        if mended.tables:
            report.done.append(
                f"{path.name}: {mended.tables} tables of what was being written were put right"
            )
    part = SwmrPart(path)
    try:
        part.require_whole()  # nothing more is changed in a file that HDF5 cannot read
    finally:
        part.close()
    if left_open:
        kept = path.with_name(f".{path.name}.superblock")
        kept.write_bytes(superblock.content)
        clear_mark(path)
        try:
            with h5py.File(path, "r", locking=False):
                pass
        except OSError as error:
            write_superblock(path, superblock.content)
            kept.unlink()
            raise InputFileError(
                f"{path} cannot be opened by HDF5 without its mark either ({error}): "
                "it was left as it was; use a copy."
            ) from error
        report.done.append(
            f"{path.name}: the mark of a writer that is gone was cleared; "
            f"the 48 bytes before are in {kept.name}"
        )
    if mended.gone:
        _say_gone(path, mended.gone, report)


def _say_gone(path: Path, gone: dict[str, set[tuple[int, ...]]], report: Repair) -> None:
    """Write into the file that images are not there: their status, or that a frame has none."""
    segment = SwmrSegment.open(path)
    try:
        volumes, frames = set(), set()
        for name, places in gone.items():
            prefix = name[: name.index("/") + 1] if name.startswith("position_") else ""
            for place in places:
                if name.endswith("projections"):
                    frames.add((prefix, place))
                else:
                    volumes.add((prefix, place))
        for prefix, index in sorted(volumes):
            if segment.read(f"{prefix}mdd/status", index) == Status.WRITTEN:
                segment.write(f"{prefix}mdd/reason", index, _REASON.encode())
                segment.write(f"{prefix}mdd/status", index, Status.FAILED)
        for prefix, index in sorted(frames):
            segment.write(f"{prefix}mdd/frames/seq", index, -1)
    finally:
        segment.close()
    lay = f"{count_noun(len(volumes), 'volume')} and {count_noun(len(frames), 'frame')} lay"
    report.done.append(f"{path.name}: {lay} behind the file's end and are said to be gone")


def _close(path: Path, report: Repair) -> None:
    with open_run(path) as run:
        closed = run.closed
    if closed and not any("gone" in sentence for sentence in report.done):
        return
    files = RunFiles.reopened(path, most_bytes=1 << 62)
    try:
        writer = RunWriter(files, RecorderConfig())
        before = dict(files.book.counts)
        files.go_on()
        writer.notes.write_event("repair", "closed by mdd repair")
        writer.finish()
        lost = files.book.counts[Status.LOST] - before[Status.LOST]
    finally:
        files.close()
    lacking = count_noun(lost, "time point without a volume is", "time points without a volume are")
    report.done.append(f"the run was closed; {lacking} said to be lost")
