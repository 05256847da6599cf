"""Compression of closed runs in place.

Owns the order in which a compressed copy replaces a run: it is made beside the run, every byte of it is
checked, it gets the run's name, and only then the run's further files are removed. An interruption leaves the
run as it was; at each moment the file with the run's name contains all of the run.

`Compressor` does so for the daemon at the end of each run, in a separate process at low priority, which
outlives the daemon. Used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

from microdiffusion.daemon.lock import RunLock
from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import Chunks, Report, open_run, segment_path, snapshot_run
from microdiffusion.text import count_noun

_Level = Literal["info", "warning"]

_BESIDE = ".packed"
_NICENESS = 10
# In its own session: neither Ctrl-C at the daemon's terminal nor its closing ends it.
_IN_THE_BACKGROUND: dict[str, Any] = (
    {"creationflags": 0x0000_4000 | 0x0000_0008}  # BELOW_NORMAL_PRIORITY_CLASS, DETACHED_PROCESS
    if sys.platform == "win32"
    else {"start_new_session": True}
)


def compress_in_place(
    run: Path,
    *,
    compression: str = "gzip",
    chunks: Chunks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Replace a closed run by a checked, compressed copy, and return the report of `verify_run` on that.

    Parameters
    ----------
    run
        The run's first file. All of its files become this one.
    compression, chunks, progress
        As of `snapshot_run`.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such run, it is not closed, or is damaged; another process writes it.
    NoRoomError, DiskError
        The disk is full, or cannot be written; a reader on Windows keeps the file.
    DependencyError
        The compression needs a package that is missing.
    """
    from microdiffusion.export import renew_link

    beside = run.with_name(f".{run.name}{_BESIDE}")
    with open_run(run, missing="refuse") as opened:
        run_id = opened.header.run_id
        if not opened.closed:
            raise InputFileError(f"{run} is not closed: close it with `mdd repair`, or make a copy.")
    lock = RunLock(run)
    lock.acquire()
    try:
        _remove(beside)
        report = snapshot_run(
            run, beside, compression=compression, chunks=chunks, mark=False, progress=progress
        )
        further = list(_further(run, run_id))
        try:
            with beside.open("r+b") as stream:  # on the disk itself, before the original goes
                os.fsync(stream.fileno())
            os.replace(beside, run)
            _sync_folder(run.parent)
        except OSError as error:
            _remove(beside)
            raise DiskError(
                f"{run} cannot be replaced ({error.strerror or error}): close what reads it; it is as it was."
            ) from error
        for path in reversed(further):  # the run is whole without them now
            path.unlink()
        renew_link(run)
    finally:
        lock.release()
    report.path = str(run)
    return report


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; Windows has no call for it."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _further(run: Path, run_id: str) -> Iterator[Path]:
    """Yield the further files of a run."""
    for number in count(1):
        path = segment_path(run, number)
        if not path.is_file():
            return
        with open_run(path, missing="ignore") as opened:
            if opened.header.run_id != run_id:
                return
        yield path


def _remove(beside: Path) -> None:
    """Remove what a killed compression left: the copy, and the folder in which it was made."""
    beside.unlink(missing_ok=True)
    for folder in beside.parent.glob(f".{beside.name}.part-*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed compressions left in a folder of runs, except of those that are running."""
    names = {path.name.partition(f"{_BESIDE}.part-")[0][2:] for path in folder.glob(f"..*{_BESIDE}.part-*")}
    names |= {path.name.removesuffix(_BESIDE)[1:] for path in folder.glob(f".*{_BESIDE}")}
    for name in names:
        lock = RunLock(folder / name)
        with contextlib.suppress(InputFileError, OSError):
            lock.acquire()
            _remove(folder / f".{name}{_BESIDE}")
            lock.release()


class Compressor:
    """Compresses closed runs, each in a separate process, which outlives this one.

    Parameters
    ----------
    compression : str
        "gzip" or "lz4"; "off": nothing is done.
    note : callable
        Takes a sentence, and "info" or "warning".
    """

    def __init__(self, compression: str, note: Callable[[str, _Level], None]) -> None:
        self._compression = compression
        self._note = note
        self._running: dict[Path, subprocess.Popen[str]] = {}

    def start(self, run: Path, ledger: Ledger) -> None:
        """Start compressing a closed run, unless more frames may be delivered to it."""
        if self._compression == "off":
            return
        if ledger.unsent:
            self._note(
                f"{run.name} is not compressed: its sender may still deliver "
                f"{count_noun(ledger.unsent, 'frame')}; `mdd repack --in-place` does it later",
                "warning",
            )
            return
        arguments = ["repack", str(run), "--in-place", "--compression", self._compression, "--quiet"]
        self._running[run] = subprocess.Popen(  # noqa: S603  # this program itself
            [sys.executable, "-m", "microdiffusion.daemon.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **_IN_THE_BACKGROUND,
        )
        if sys.platform != "win32":
            os.setpriority(os.PRIO_PROCESS, self._running[run].pid, _NICENESS)
        self._note(f"compressing {run.name} ({self._compression}) in a separate process", "info")

    def look(self) -> None:
        """Report those that have ended."""
        for text, level in self._ended():
            self._note(text, level)

    def left(self) -> list[str]:
        """Return a sentence for each that outlives the daemon, and for each that has just failed."""
        failed = [text for text, level in self._ended() if level == "warning"]
        return failed + [
            f"{run} is being compressed by process {process.pid}; it stays as it is until the copy is checked"
            for run, process in self._running.items()
        ]

    def _ended(self) -> Iterator[tuple[str, _Level]]:
        for run, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[run]
            _, complaint = process.communicate()
            if process.returncode:
                reason = complaint.strip() or f"exit code {process.returncode}"
                yield f"{run.name} was not compressed: {reason}", "warning"
            else:
                yield f"{run.name} is compressed", "info"
