"""One run file under the recorder's pen: reserved on the disk, then filled byte range by byte range.

Owns the file descriptor and the order of things on disk; which values belong where is the recorder's
matter. HDF5 made the file and has let go of it; from here on only bytes inside of datasets are written,
with plain positioned writes. So a crash can tear nothing, readers in other processes see each write at
once, and no lock of the HDF5 library is taken. On POSIX a shared lock is held, as HDF5 readers hold it:
they may read, and whoever opens the file for writing is refused by HDF5 itself; it ends with the process.
Used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.run_file import RunLayout, RunPlan, create_run_file

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_COPY_BYTES = 16 << 20
_METADATA_BYTES = 1 << 20  # more than what a run file holds besides images and volumes
_NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Segment:
    """A run file that is being written. Made by `create`.

    Attributes
    ----------
    path : Path
    layout : RunLayout
    """

    def __init__(self, path: Path, layout: RunLayout, descriptor: int) -> None:
        self.path = path
        self.layout = layout
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, plan: RunPlan) -> Segment:
        """Create a run file with all of its room reserved. It gets its name when it is complete.

        Raises
        ------
        InputFileError
            There is a file of that name.
        DiskError
            The folder cannot be written or has not enough room.
        """
        if path.exists():
            raise InputFileError(f"{path} exists and is not overwritten: choose another name or folder.")
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            segment = cls._reserve(temporary, plan)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, DiskError):
                raise
            if error.errno in _NO_ROOM:
                raise _no_room(path, _expected_bytes(plan), _free_bytes(path)) from error
            raise DiskError(
                f"{path} cannot be created ({error.strerror or error}): "
                "check the folder's rights and free space."
            ) from error
        # Windows renames no open file: let go, rename, open again.
        segment.close()
        os.replace(temporary, path)
        return cls(path, segment.layout, _open(path))

    @classmethod
    def _reserve(cls, path: Path, plan: RunPlan) -> Segment:
        needed = _expected_bytes(plan)
        free = _free_bytes(path)
        if needed > free:
            raise _no_room(path, needed, free)
        _probe_size(path, needed)
        layout = create_run_file(path, plan)
        segment = cls(path, layout, _open(path))
        try:
            _reserve_blocks(segment._descriptor, os.fstat(segment._descriptor).st_size)
        except OSError:
            segment.close()
            raise
        return segment

    def write(self, name: str, index: tuple[int, ...], value: ArrayLike) -> None:
        """Write what `index` selects of the dataset `name`; `value` has its shape.

        Raises
        ------
        DiskError
            The disk failed.
        """
        region = self.layout.regions[name]
        offset, size = region.locate(index)
        array = np.ascontiguousarray(value, dtype=region.dtype)
        if array.nbytes != size:
            raise ValueError(f"/{name}{list(index)} takes {size} bytes, not {array.nbytes}")
        view = array.reshape(-1).view(np.uint8).data
        try:
            while len(view):
                written = _write_at(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise DiskError(
                f"{self.path} cannot be written ({error.strerror or error}): check the disk; "
                "what was written before is safe."
            ) from error

    def force(self) -> None:
        """Force what was written to the disk itself, so that it survives a power cut."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            raise DiskError(
                f"{self.path} cannot be flushed ({error.strerror or error}): check the disk."
            ) from error

    def close(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def trim(self, time_points: int, *, most_bytes: int) -> bool:
        """Replace the file by a copy without the time points that were not used, and close it.

        A file that readers have open is never changed: they keep the old one, whoever opens the name
        gets the new one. Left as it is, and False returned, where the copy would hold more than
        `most_bytes`, there is no room for it, or the system forbids the replacement (Windows, while
        somebody reads).
        """
        plan = replace(self.layout.plan, time_points=time_points)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        trimmed = time_points < self.layout.plan.time_points and _expected_bytes(plan) <= most_bytes
        if trimmed:
            try:
                copy = Segment._reserve(temporary, plan)
                try:
                    self._copy_into(copy)
                    copy.force()
                finally:
                    copy.close()
                self.close()
                os.replace(temporary, self.path)
            except OSError:
                trimmed = False
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        self.close()
        return trimmed

    def _copy_into(self, copy: Segment) -> None:
        """Copy each dataset's first bytes: time is axis 0, so those are the first time points."""
        for name, target in copy.layout.regions.items():
            source = self.layout.regions[name]
            left = int(np.prod(target.shape, dtype=np.int64)) * target.dtype.itemsize
            at = 0
            while left:
                block = _read_at(self._descriptor, min(left, _COPY_BYTES), source.offset + at)
                if not block:
                    raise OSError(errno.EIO, "the file is shorter than its layout says")
                written = _write_at(copy._descriptor, memoryview(block), target.offset + at)
                at, left = at + written, left - written


def _expected_bytes(plan: RunPlan) -> int:
    """Return the size of images and volumes; what else a file holds is small beside them."""
    z, y, x = plan.header.shape
    pixel = 2 if plan.header.dtype == "uint16" else 4
    sessions = len(plan.header.channels) * len(plan.header.positions)
    return plan.time_points * sessions * (z + plan.frames_per_sweep) * y * x * pixel


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def _no_room(path: Path, needed: int, free: int) -> DiskError:
    return DiskError(
        f"The run file needs {needed / 1e9:.2f} GB and {path.parent} has {free / 1e9:.2f} GB for it: "
        "free some, choose another folder (recorder.output), or lower recorder.time_points."
    )


def _open(path: Path) -> int:
    """Open for writing; on POSIX take the shared lock that HDF5's own readers take."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    if sys.platform != "win32":
        import fcntl

        # Some network file systems have no locks; the run goes on without.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def _probe_size(path: Path, size: int) -> None:
    """Raise OSError where no file of that size may be (limits, FAT): HDF5 would crash on finding out."""
    try:
        with path.open("wb") as probe:
            probe.truncate(size + _METADATA_BYTES)
    finally:
        path.unlink(missing_ok=True)


def _reserve_blocks(descriptor: int, size: int) -> None:
    """Make the disk set aside all blocks now, so that it cannot be full during the run.

    Linux fills the holes. macOS gets its own call. On Windows NTFS set them aside when HDF5 extended
    the file. Where a file system cannot, the look at the free space has to do.
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
            if error.errno in _NO_ROOM:
                raise


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data[:_COPY_BYTES])


def _read_at(descriptor: int, size: int, offset: int) -> Any:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)
