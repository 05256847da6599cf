"""Calls of the operating system for files of a known size: free space, blocks reserved, positioned I/O.

No state; any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microdiffusion.errors import NoRoomError

BLOCK_BYTES = 16 << 20
"""Most bytes that are read or written at once."""
NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def is_full(error: Exception) -> bool:
    """Return whether an error means that the disk is full; HDF5 may say so in its text only."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\berrno = (\d+)", str(error))):
        number = int(found[1])
    return number in NO_ROOM


def free_bytes(path: Path) -> int:
    """Return the free space on the disk of a file."""
    return shutil.disk_usage(path.parent).free


def no_room(path: Path, needed: int, free: int) -> NoRoomError:
    """Return the error of a disk that is too small for a run file."""
    return NoRoomError(
        f"The run file needs {size_text(needed)} and {path.parent} has {size_text(free)} for it: "
        "free some, choose another folder (recorder.output), or lower recorder.time_points."
    )


def size_text(number: int) -> str:
    """Return a size in words."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def open_files() -> int:
    """Return how many files of a run stay open: those can be rescued when they lose their names."""
    most = 64  # of 8192 on Windows, where what is open can be neither renamed nor removed
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(4, (1 << 14 if soft == resource.RLIM_INFINITY else min(soft, 1 << 14)) // 16)
    return most


def open_for_writing(path: Path) -> int:
    """Open for writing; on POSIX take the shared lock that HDF5's own readers take."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    if sys.platform != "win32":
        import fcntl

        # Some network file systems have no locks; it works without.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def probe_size(path: Path, size: int) -> None:
    """Raise OSError where a file of that size is impossible (limits, FAT): HDF5 would crash."""
    try:
        with path.open("wb") as probe:
            probe.truncate(size)
    finally:
        path.unlink(missing_ok=True)


def reserve_blocks(descriptor: int, size: int) -> None:
    """Allocate all blocks now, so that the disk cannot fill up during the run.

    Linux and macOS have a call for it; on Windows NTFS has allocated them when HDF5 extended the file. Where
    the file system cannot, the check of the free space has to suffice.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
    elif sys.platform == "darwin":
        import fcntl

        # struct fstore: F_ALLOCATEALL, F_PEOFPOSMODE, offset, length, bytes allocated.
        request = struct.pack("Iiqqq", 4, 3, 0, size, 0)
        try:
            fcntl.fcntl(descriptor, 42, request)  # F_PREALLOCATE
        except OSError as error:
            if error.errno in NO_ROOM:
                raise


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at an offset, perhaps a part; return how many bytes."""
    if hasattr(os, "pwrite"):
        return int(os.pwrite(descriptor, data, offset))
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data[:BLOCK_BYTES])


def read_at(descriptor: int, size: int, offset: int) -> Any:
    """Return bytes from an offset, perhaps fewer."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def flush(descriptor: int) -> None:
    """Flush what was written to the disk itself."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def copy_ranges(source: int, target: int, ranges: Iterable[tuple[int, int, int]], until_s: float) -> None:
    """Copy (offset there, offset here, size) each from one open file to another, flushed as it is copied.

    Raises
    ------
    OSError
        The source is shorter, the target cannot be written, or `time.monotonic()` has passed `until_s`.
    """
    unforced = 0
    for start, into, size in ranges:
        at = 0
        while at < size:
            block = read_at(source, min(size - at, BLOCK_BYTES), start + at)
            if not block:
                raise OSError(errno.EIO, "the file is shorter than its layout says")
            written = write_at(target, memoryview(block), into + at)
            at, unforced = at + written, unforced + written
            if unforced >= BLOCK_BYTES:
                flush(target)
                unforced = 0
            if time.monotonic() > until_s:
                raise OSError(errno.ETIMEDOUT, "copying takes too long")
    flush(target)
