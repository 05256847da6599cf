"""Folders: whether they can be written, have room, and are quick enough for the configured run."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microdiffusion.config import Config
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.requirements import Need, need_of
from microdiffusion.daemon.doctor.run import Check
from microdiffusion.daemon.status import size
from microdiffusion.daemon.system import disk_free_bytes
from microdiffusion.paths import journal_folder
from microdiffusion.text import count_noun

THEME = "Disk"
PASSES = 2
PASS_BYTES = 32 << 20
PASS_S = 1.5
"""A slow disk is known to be slow after this time."""
_BLOCK = 4 << 20
_MAKING = threading.Lock()
NETWORK = frozenset(("nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "afpfs", "9p", "fuse.sshfs", "lustre"))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as it was found.

    Attributes
    ----------
    path : Path
    refusal : str
        Why nothing can be written there; empty where it can.
    free : int or None
        Free bytes.
    """

    path: Path
    refusal: str = ""
    free: int | None = None


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    output = config.recorder.output
    spill = config.wire.journal or journal_folder()
    limit = int(config.wire.journal_gb * 1e9)
    return [
        Check(THEME, "recorder.output", lambda: room(look_at(output), need_of(config))),
        Check(THEME, "speed", lambda: speed(write_test(output), need_of(config))),
        Check(THEME, "file system", lambda: file_system(output, kind_of(output))),
        Check(THEME, "journal", lambda: journal(look_at(spill), limit)),
        Check(THEME, "left-over frames", lambda: left_over_frames(*undelivered(spill))),
        Check(THEME, "engine cache", lambda: cache(_cache_folder(), private_problem)),
    ]


def room(folder: Folder, need: Need | None) -> Finding:
    """Judge the folder of the run files."""
    name = "recorder.output"
    if folder.refusal:
        return failure(
            name,
            f"{folder.path} cannot be written ({folder.refusal})",
            "Choose another folder: --output or recorder.output.",
        )
    if folder.free is None:
        return warning(name, f"{folder.path} does not tell its free space", "Look at it by hand.")
    text = f"{folder.path}, {size(folder.free)} free"
    if need is None:
        return ok(name, f"{text}; the frames that come decide how much is taken")
    if need.assumed:
        wanted = f"{text}, a run file takes {size(need.file_bytes)} {need.assumed}"
    else:
        wanted = f"{text}, a run file takes {size(need.file_bytes)}"
    if folder.free < need.file_bytes:
        # What was assumed may be wrong: then it is no failure yet.
        report = warning if need.assumed else failure
        return report(name, wanted, "Free some space, choose another disk, or lower recorder.time_points.")
    return ok(name, wanted)


def speed(rates: tuple[float, ...], need: Need | None) -> Finding:
    """Judge how quickly the disk takes data (bytes a second, one for each pass)."""
    if not rates:
        return warning("write speed", "not measured: nothing can be written", "See recorder.output.")
    text = (
        f"{' and '.join(f'{size(rate)}/s' for rate in rates)} in {count_noun(len(rates), 'pass', 'passes')}"
    )
    if need is None:
        return ok("write speed", text)
    slowest, frames, volumes = min(rates), need.frames_per_s, need.volumes_per_s
    text += f", the run brings {size(frames)}/s of frames, with every volume"
    text += f" {size(frames + volumes)}/s {need.assumed}".rstrip()
    cure = "Use a local SSD, a smaller camera region, a longer exposure, or a longer sweep_interval_s."
    if slowest < frames:
        report = warning if need.assumed else failure
        return report("write speed", text, cure)
    if slowest < frames + volumes:
        return warning("write speed", text, cure)
    return ok("write speed", text)


def file_system(path: Path, kind: str) -> Finding:
    """Judge the kind of file system of the run files; empty where the system does not say."""
    if kind in NETWORK:
        return warning(
            "file system",
            f"{path} is on the network ({kind})",
            "Record to a local disk and copy afterwards: locks, speed and live reading are uncertain there.",
        )
    return ok("file system", kind or "not told by this system")


def journal(folder: Folder, limit: int) -> Finding:
    """Judge the folder where frames wait while nobody takes them."""
    if not limit:
        return warning(
            "journal",
            "off: what does not fit into the sender's memory is dropped",
            "Set wire.journal_gb to let frames wait on the disk.",
        )
    if folder.refusal:
        return failure(
            "journal",
            f"{folder.path} cannot be written ({folder.refusal})",
            "Choose another folder: wire.journal.",
        )
    text = f"{folder.path}, up to {size(limit)}"
    if folder.free is not None and folder.free < limit:
        return warning(
            "journal",
            f"{text}, but {size(folder.free)} free",
            "Free some space, or name another folder in wire.journal.",
        )
    return ok("journal", text)


def left_over_frames(count: int, nbytes: int, used: int) -> Finding:
    """Judge what interrupted acquisitions have left: journals nobody has open, their bytes, those in use."""
    name = "left-over frames"
    if count:
        return warning(
            name,
            f"{count} of interrupted runs, {size(nbytes)}, were never delivered",
            "Start the daemon and run mdd deliver (mdd deliver --list says what they are).",
        )
    return ok(name, f"none; {used} in use by running senders" if used else "none")


def cache(folder: Path, problem: Callable[[Path], str]) -> Finding:
    """Judge the folder of TensorRT's engines: they are code, so nobody else may write there."""
    if not folder.exists():
        return ok("engine cache", f"{folder}, made when it is needed")
    found = problem(folder)
    if found:
        return warning(
            "engine cache", f"{folder} {found}", "Delete the folder; engines are built again (mdd compile)."
        )
    return ok("engine cache", f"{folder}, private")


def look_at(path: Path) -> Folder:
    """Try to write a file into a folder, which is made for it and removed again where it was not there."""
    try:
        with _there(path), tempfile.TemporaryFile(dir=path) as file:
            file.write(b"mdd doctor")
    except OSError as error:
        return Folder(path, error.strerror or str(error))
    return Folder(path, free=disk_free_bytes(path))


def write_test(
    path: Path, *, passes: int = PASSES, pass_bytes: int = PASS_BYTES, limit_s: float = PASS_S
) -> tuple[float, ...]:
    """Return bytes a second of writing to the disk itself, for each pass; empty where it refuses."""
    block = os.urandom(_BLOCK)  # a disk that compresses shall not look quick
    rates = []
    try:
        with _there(path):
            for _ in range(passes):
                with tempfile.TemporaryFile(dir=path, buffering=0) as file:
                    began_s, written = time.perf_counter(), 0
                    while written < pass_bytes and time.perf_counter() - began_s < limit_s:
                        written += file.write(block)
                        os.fsync(file.fileno())
                    rates.append(written / max(time.perf_counter() - began_s, 1e-6))
    except OSError:
        return ()
    return tuple(rates)


def kind_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the kind of file system that holds a folder, empty where the system does not say."""
    path = path.absolute()
    if str(path).startswith("\\\\"):
        return "smb"
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    path = path.resolve()
    holding = [row for row in rows if len(row) > 2 and path.is_relative_to(row[1].replace("\\040", " "))]
    # Of two at the same place the later one lies on top.
    return max(enumerate(holding), key=lambda one: (len(one[1][1]), one[0]))[1][2] if holding else ""


def undelivered(folder: Path) -> tuple[int, int, int]:
    """Return number and bytes of the journals nobody has open, and the number of those in use."""
    from microdiffusion.sender import in_use, left_over

    paths = left_over(folder)
    used = sum(in_use(folder, path.name.partition("-")[0]) for path in paths)
    nbytes = sum(file.stat().st_size for path in paths for file in path.iterdir() if file.is_file())
    return len(paths) - used, nbytes, used


def private_problem(folder: Path) -> str:
    """Return what is wrong with a folder that is to be this user's alone; empty where nothing is."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"
    if sys.platform != "win32":
        if status.st_uid != os.getuid():
            return "belongs to another user"
        if status.st_mode & 0o022:
            return "can be written by others"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def _cache_folder() -> Path:
    # The module of the cache imports no torch.
    from microdiffusion.engines.runtimes import user_cache_folder

    return user_cache_folder()


@contextmanager
def _there(path: Path) -> Iterator[None]:
    """Have a folder for as long as it is looked at; what was made for that is removed again.

    One check at a time: another's must not go while it is written to.
    """
    with _MAKING:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            for folder in made:  # the deepest first
                with suppress(OSError):
                    folder.rmdir()
