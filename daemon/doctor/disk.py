"""Folders: writable, with enough space, and fast enough for the configured run."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from microdiffusion.config import Config
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.engine import Requirements, requirements_of
from microdiffusion.daemon.status import size
from microdiffusion.daemon.system import disk_free_bytes
from microdiffusion.files import leftovers
from microdiffusion.paths import journal_folder

THEME = "Disk"
PASSES = 2
PASS_BYTES = 32 << 20
PASS_S = 1.5
"""Time after which a slow disk is known to be slow."""
NETWORK = frozenset(("nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "afpfs", "9p", "fuse.sshfs", "lustre"))
_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, why nothing can be written there (empty where it can), and its free bytes."""

    path: Path
    refusal: str = ""
    free: int | None = None


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    output = config.recorder.output
    spill = config.wire.journal or journal_folder()
    limit = int(config.wire.journal_gb * 1e9)
    return [
        Check(THEME, "recorder.output", lambda: space(look_at(output), requirements_of(config))),
        Check(THEME, "write speed", lambda: speed(write_test(output), requirements_of(config))),
        Check(THEME, "file system", lambda: file_system(output, kind_of(output))),
        Check(THEME, "leftovers", lambda: remains(output)),
        Check(THEME, "journal", lambda: journal(look_at(spill), limit)),
        Check(THEME, "undelivered frames", lambda: left_over(*undelivered(spill))),
    ]


def space(folder: Folder, need: Requirements | None) -> Finding:
    """Judge the folder of the run files."""
    if folder.refusal:
        text = f"{folder.path} cannot be written ({folder.refusal})"
        return failure(text, "Choose another folder: --output or recorder.output.")
    if folder.free is None:
        return warning(f"{folder.path} does not say how much space is free", "Check it by hand.")
    text = f"{folder.path}, {size(folder.free)} free"
    if need is None:
        return ok(f"{text}; the size of a run file depends on the frames")
    text = f"{text}, a run file takes {size(need.file_bytes)} {need.assumed}".rstrip()
    if folder.free >= need.file_bytes:
        return ok(text)
    level = warning if need.assumed else failure
    return level(text, "Free some space, choose another disk, or lower recorder.time_points.")


def speed(rates: tuple[float, ...], need: Requirements | None) -> Finding:
    """Judge the write speed, bytes per second in each pass."""
    if not rates:
        return warning("not measured: nothing can be written", "See recorder.output.")
    text = " and ".join(f"{size(rate)}/s" for rate in rates)
    if need is None:
        return ok(text)
    frames, all_bytes = need.frames_per_s, need.frames_per_s + need.volumes_per_s
    text += f"; frames need {size(frames)}/s, with all volumes {size(all_bytes)}/s {need.assumed}".rstrip()
    if min(rates) >= all_bytes:
        return ok(text)
    level = failure if min(rates) < frames and not need.assumed else warning
    fix = "Use a local SSD, a smaller camera region, a longer exposure, or a longer sweep_interval_s."
    return level(text, fix)


def file_system(path: Path, kind: str) -> Finding:
    """Judge the kind of file system of the run files (empty where unknown)."""
    if kind not in NETWORK:
        return ok(kind or "unknown on this system")
    fix = "Record to a local disk and copy afterwards: locks, speed and live reading are uncertain there."
    return warning(f"{path} is a network drive ({kind})", fix)


def journal(folder: Folder, limit: int) -> Finding:
    """Judge the folder where frames wait for a daemon that does not take them."""
    if not limit:
        text = "off: frames that do not fit into the sender's memory are dropped"
        return warning(text, "Set wire.journal_gb to let frames wait on disk.")
    if folder.refusal:
        text = f"{folder.path} cannot be written ({folder.refusal})"
        return failure(text, "Choose another folder: wire.journal.")
    text = f"{folder.path}, up to {size(limit)}"
    if folder.free is not None and folder.free < limit:
        fix = "Free some space, or choose another folder: wire.journal."
        return warning(f"{text}, but only {size(folder.free)} free", fix)
    return ok(text)


def left_over(count: int, nbytes: int, used: int) -> Finding:
    """Judge what interrupted acquisitions left: journals that are not in use, their bytes, those in use."""
    if not count:
        return ok(f"none; {used} in use by running senders" if used else "none")
    fix = "Start the daemon and run mdd deliver (mdd deliver --list shows what they are)."
    return warning(f"{count} of interrupted runs, {size(nbytes)}, were never delivered", fix)


def remains(output: Path) -> Finding:
    """Judge what killed copies and exports left in the folder of the run files."""
    found = leftovers(output) if output.is_dir() else []
    if not found:
        return ok("none")
    names = ", ".join(path.name for path in found[:5]) + (" ..." if len(found) > 5 else "")
    return warning(f"{output} holds what killed copies or exports left: {names}", "Remove these folders.")


def look_at(path: Path) -> Folder:
    """Try to write a file into a folder, or into the closest one that exists, where it would be made."""
    try:
        with tempfile.TemporaryFile(dir=_closest(path)) as file:
            file.write(b"mdd doctor")
    except OSError as error:
        return Folder(path, error.strerror or str(error))
    return Folder(path, free=disk_free_bytes(path))


def write_test(
    path: Path, *, passes: int = PASSES, pass_bytes: int = PASS_BYTES, limit_s: float = PASS_S
) -> tuple[float, ...]:
    """Return the write speed of each pass, bytes per second, past all caches; empty where it is refused."""
    block = os.urandom(_BLOCK)  # must not look fast on a disk that compresses
    rates = []
    try:
        for _ in range(passes):
            with tempfile.TemporaryFile(dir=_closest(path), buffering=0) as file:
                began_s, written = time.perf_counter(), 0
                while written < pass_bytes and time.perf_counter() - began_s < limit_s:
                    written += file.write(block)
                    os.fsync(file.fileno())
                rates.append(written / max(time.perf_counter() - began_s, 1e-6))
    except OSError:
        return ()
    return tuple(rates)


def _closest(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def kind_of(path: Path) -> str:
    """Return the kind of file system that holds a folder, empty where the system does not say."""
    if str(path.absolute()).startswith("\\\\"):
        return "smb"
    path, kind, depth = path.resolve(), "", 0
    for mount in psutil.disk_partitions(all=True):
        # Of two at one place the later one counts.
        if path.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= depth:
            kind, depth = mount.fstype, len(mount.mountpoint)
    return kind


def undelivered(folder: Path) -> tuple[int, int, int]:
    """Return number and bytes of the journals that are not in use, and the number of those in use."""
    from microdiffusion.sender import in_use, left_over

    paths = left_over(folder)
    used = sum(in_use(folder, path.name.partition("-")[0]) for path in paths)
    nbytes = sum(file.stat().st_size for path in paths for file in path.iterdir() if file.is_file())
    return len(paths) - used, nbytes, used
