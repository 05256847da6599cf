"""`mdd repair`: close a run that a killed daemon left behind.

Every time point that was begun gets a status, as at a clean shutdown. Nothing is replayed, and no image is
touched. Holds the run's lock meanwhile, so a file that a daemon writes is refused. One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.recorder import RunFiles, RunWriter
from microdiffusion.errors import InputFileError, MddError
from microdiffusion.runfile import Status, open_run, require_run_file, verify_run
from microdiffusion.text import count_noun

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(slots=True)
class Repair:
    """The outcome of a repair.

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
        """True where nothing is wrong now."""
        return not self.faults


def repair_run(path: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Repair:
    """Close a run, all of its files, and check it; `progress` is that of `verify_run`.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such file; it is no HDF5 file; a daemon writes it.
    DiskError
        It cannot be written.
    """
    require_run_file(path)
    with path.open("rb") as stream:
        if stream.read(len(_SIGNATURE)) != _SIGNATURE:
            raise InputFileError(f"{path} is not an HDF5 file: give the file that `mdd serve` wrote.")
    lock = RunLock(path)
    lock.acquire()
    report = Repair(str(path))
    try:
        _close(path, report)
    except MddError as error:
        report.faults.append(str(error))
    finally:
        lock.release()
    found = verify_run(path, progress=progress)
    report.faults += [fault for fault in found.faults if fault not in report.faults]
    return report


def _close(path: Path, report: Repair) -> None:
    with open_run(path, missing="refuse") as run:
        if run.closed:
            return
    files = RunFiles.open(path, most_bytes=1 << 62)
    try:
        writer = RunWriter(files, RecorderConfig())
        before = dict(files.index.counts)
        files.resume()
        writer.data.write_event("repair", "closed by mdd repair")
        writer.finish()
        lost = files.index.counts[Status.LOST] - before[Status.LOST]
    finally:
        files.close()
    lacking = count_noun(lost, "time point without a volume is", "time points without a volume are")
    report.done.append(f"the run was closed; {lacking} said to be lost")
