"""One run file that is being written: reserved on the disk, then filled byte range by byte range.

Owns the file descriptor, and watches that the file keeps its name; which values belong where is up to the
writer. HDF5 has created and closed the file; from here on only bytes inside the datasets are written, with
plain positioned writes. So a crash can tear nothing, readers in other processes see each write at once, and
no lock of the HDF5 library is taken. Nothing is written through a memory map: on a full copy-on-write disk a
store would be a signal instead of an error.
On POSIX the file is held under the shared lock that HDF5's readers take: others may read it, and HDF5 refuses
to open it for writing, until this process ends. Used by one thread at a time, except for `read`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microdiffusion.daemon.recorder.disk import (
    NO_ROOM,
    copy_ranges,
    flush,
    free_bytes,
    is_full,
    no_room,
    open_for_writing,
    probe_size,
    read_at,
    reserve_blocks,
    write_at,
)
from microdiffusion.errors import DiskError, InputFileError, MddError, NoRoomError
from microdiffusion.runfile import (
    LAYOUT_MINOR,
    LAYOUT_VERSION,
    Closed,
    RunLayout,
    RunPlan,
    create_run_file,
    file_bytes,
    read_layout,
)
from microdiffusion.text import command_line

_WATCHED_BYTES = 16
_HEADER_BYTES = 256  # it begins with the run's id
_COPY_MOST_S = 2.0  # closing must not take long: the file is left as it is then


class Segment:
    """A run file that is being written. Made by `create` or `open`.

    Attributes
    ----------
    path : Path
    layout : RunLayout
    """

    def __init__(self, path: Path, layout: RunLayout, descriptor: int) -> None:
        self.path = path
        self.layout = layout
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._parked = False
        # What was written before the last check, to be there still.
        self._watched: tuple[int, bytes] = (0, b"")
        self._latest = self._watched
        self._header = self._header_now()
        self._swap = threading.Lock()  # held while the file is replaced, and while it is read

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Open an existing run file to resume the run."""
        try:
            with path.open("rb") as stream:
                layout = read_layout(path, stream)
            if layout.packed:
                raise InputFileError(
                    f"{path} is compressed, and no run can be resumed in a compressed file: make it static "
                    f"with `{command_line('mdd', 'repack', path, '--in-place', '--compression', 'none')}`."
                )
            version = layout.plan.version
            if layout.plan.minor > LAYOUT_MINOR:  # it may contain datasets unknown here
                raise InputFileError(
                    f"{path} has run file layout {version} and this mdd writes {LAYOUT_VERSION}: "
                    "resume it with the mdd that began it."
                )
            return cls(path, layout, open_for_writing(path))
        except OSError as error:
            raise DiskError(
                f"{path} cannot be opened for writing ({error.strerror or error}): check its rights."
            ) from error

    @classmethod
    def create(cls, path: Path, plan: RunPlan) -> Segment:
        """Create a run file with all of its room reserved. It gets its name when it is complete."""
        if path.exists():
            raise InputFileError(f"{path} exists and is not overwritten: choose another name or folder.")
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            segment = cls._reserve(temporary, plan)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, MddError):
                raise
            if is_full(error):
                raise no_room(path, file_bytes(plan), free_bytes(path)) from error
            raise DiskError(
                f"{path} cannot be created ({getattr(error, 'strerror', None) or error}): "
                "check the folder's rights and free space."
            ) from error
        # Windows cannot rename an open file: close it, rename, open it again.
        segment.close()
        os.replace(temporary, path)
        return cls(path, segment.layout, open_for_writing(path))

    @classmethod
    def _reserve(cls, path: Path, plan: RunPlan) -> Segment:
        needed = file_bytes(plan)
        free = free_bytes(path)
        if needed > free:
            raise no_room(path, needed, free)
        probe_size(path, needed)
        layout = create_run_file(path, plan)
        segment = cls(path, layout, open_for_writing(path))
        try:
            reserve_blocks(segment._descriptor, os.fstat(segment._descriptor).st_size)
        except OSError:
            segment.close()
            raise
        return segment

    def write(self, name: str, index: tuple[int, ...], value: ArrayLike) -> None:
        """Write what `index` selects of the dataset `name`; `value` has its shape."""
        region = self.layout.regions[name]
        offset, size = region.locate(index)
        array = np.ascontiguousarray(value, dtype=region.dtype)
        if array.nbytes != size:
            raise ValueError(f"/{name}{list(index)} takes {size} bytes, not {array.nbytes}")
        self._write(array.reshape(-1).view(np.uint8).data, offset)

    def write_bytes(self, name: str, index: tuple[int, ...], content: memoryview, start: int) -> None:
        """Write `content` from byte `start` of what `index` selects of the dataset `name`."""
        offset, size = self.layout.regions[name].locate(index)
        if not 0 <= start <= size - len(content):
            raise ValueError(f"/{name}{list(index)} has {size} bytes, not {start} + {len(content)}")
        self._write(content, offset + start)

    def read(self, name: str, index: tuple[int, ...] = ()) -> NDArray[Any]:
        """Return what `index` selects of the dataset `name`, as it is in the file. Any thread."""
        with self._swap:
            region = self.layout.regions[name]
            offset, size = region.locate(index)
            content = np.empty(size, np.uint8)
            try:
                with self.path.open("rb", buffering=0) as stream:
                    stream.seek(offset)
                    left = content.data
                    while len(left) and (count := stream.readinto(left)):
                        left = left[count:]
            except OSError as error:
                raise DiskError(
                    f"{self.path} cannot be read ({error.strerror or error}): check the disk."
                ) from error
        if len(left):
            raise DiskError(f"{self.path} is shorter than it says: it was changed from outside.")
        return content.view(region.dtype).reshape(region.shape[len(index) :])

    def _write(self, view: memoryview, offset: int) -> None:
        try:
            if self._parked:
                self._reopen()
            begin, few = self._watched[0], len(self._watched[1])
            if few and offset < begin + few and begin < offset + len(view):
                self._watched = (0, b"")
            self._latest = (offset, bytes(view[:_WATCHED_BYTES]))
            while len(view):
                written = write_at(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            kind, advice = DiskError, "check the disk; what was written before is safe."
            if error.errno in NO_ROOM:
                kind, advice = NoRoomError, "free some space; writing continues when there is room."
            raise kind(f"{self.path} cannot be written ({error.strerror or error}): {advice}") from error

    def _reopen(self) -> None:
        with self.path.open("rb") as stream:
            plan, own = read_layout(self.path, stream).plan, self.layout.plan
        if (plan.header.run_id, plan.segment) != (own.header.run_id, own.segment):
            raise _lost(self.path)
        self._descriptor, self._parked = open_for_writing(self.path), False

    def check(self) -> None:
        """Make sure that what is written is in the file of this name, whatever was done to it from outside.

        Raises
        ------
        DiskError
            The file was renamed, removed, replaced, overwritten or cut.
        """
        try:
            named = self.path.stat()
            # Windows lets nobody rename or remove an open file.
            other = self._descriptor >= 0 and sys.platform != "win32" and not self._is(named)
            other = other or (self._descriptor >= 0 and self._is_overwritten())
        except OSError as error:
            raise _lost(self.path) from error
        if other or named.st_size < self._size:
            raise _lost(self.path)

    def _is_overwritten(self) -> bool:
        """Return whether another file, or an older copy, was written into this one: its inode stays."""
        offset, content = self._watched
        self._watched = self._latest
        there = read_at(self._descriptor, len(content), offset) if content else b""
        return there != content or self._header_now() != self._header

    def _header_now(self) -> bytes:
        region = self.layout.regions["mdd/run_header"]
        return bytes(read_at(self._descriptor, min(region.size, _HEADER_BYTES), region.offset))

    def _is(self, named: os.stat_result) -> bool:
        return os.path.samestat(named, os.fstat(self._descriptor))

    def rescue(self, target: Path, time_points: int) -> str:
        """Give the content of a file that has lost its name another one.

        Parameters
        ----------
        target
            Where a removed file is copied to, without the room after its first `time_points`.

        Returns
        -------
        str
            What became of the file, in a sentence; empty where it has its name.

        Raises
        ------
        DiskError
            It cannot be rescued.
        """
        with contextlib.suppress(DiskError):
            self.check()
            return ""
        lost = self.path
        if self._descriptor < 0:
            raise DiskError(f"{lost.name} cannot be rescued: `ulimit -n` is too low to keep all files open.")
        try:
            with contextlib.suppress(OSError):
                if self._is(lost.stat()):
                    return f"What is left of {lost.name} is there."
            with contextlib.suppress(OSError):  # Linux says what an open file is called now
                now = Path(f"/proc/self/fd/{self._descriptor}").readlink()
                # A network folder only hides an open file that is removed, until it is closed.
                if self._is(now.stat()) and not now.name.startswith((".nfs", ".fuse_hidden")):
                    self.path = now
                    return f"{lost.name} is now {now}."
            self._save_as(target, time_points)
        except (OSError, RuntimeError) as error:
            raise DiskError(f"{lost.name} cannot be rescued: {error}.") from error
        self.path = target
        return f"What {lost.name} held is in {target}."

    def move(self, target: Path) -> None:
        """Give the file another name."""
        self.path.rename(target)
        self.path = target

    def _save_as(self, target: Path, time_points: int) -> None:
        plan = self.layout.plan
        temporary = target.with_name(f".{target.name}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept = min(time_points, plan.time_points)
            copy = Segment._reserve(
                temporary, replace(plan, time_points=kept, planned_time_points=plan.planned)
            )
            try:
                self._copy_into(copy, math.inf)
            finally:
                copy.close()
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def force(self) -> None:
        """Flush to the disk itself, so that what was written survives a power cut."""
        try:
            flush(self._descriptor)
        except OSError as error:
            raise DiskError(
                f"{self.path} cannot be flushed ({error.strerror or error}): check the disk."
            ) from error

    def park(self) -> None:
        """Close the file until it is written again: a long run has more files than may be open."""
        if self._descriptor >= 0:
            self.close()
            self._parked = True

    def close(self) -> None:
        """Close the file as it is."""
        self._parked = False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def trim(self, time_points: int, *, most_bytes: int) -> bool:
        """Replace the file by a copy without the time points that were not used, and close it.

        A file that readers have open is never changed: they keep the old one, later readers get the new one.
        Returns False, with the file as it was, where the copy would hold more than `most_bytes`, there is no
        room for it, or the system forbids the replacement (Windows, while the file is read).

        Raises
        ------
        DiskError
            The file has lost its name, and is left open.
        """
        plan = self.layout.plan
        trimmed = time_points < plan.time_points and self._replace(
            replace(plan, time_points=time_points, planned_time_points=plan.planned), most_bytes
        )
        self.check()
        self.close()
        return trimmed

    def lengthen(self, time_points: int, *, most_bytes: int) -> bool:
        """Replace the file by a longer copy and write to that. Readers notice, and open the copy.

        Returns False, with the file as it was, where there are more than `most_bytes` to copy, no room for
        it, or the system forbids the replacement.
        """
        plan = self.layout.plan
        return time_points > plan.time_points and self._replace(
            replace(plan, time_points=time_points, planned_time_points=plan.planned), most_bytes
        )

    def _replace(self, plan: RunPlan, most_bytes: int) -> bool:
        """Replace the file by one of another length, with as much of the content as it takes."""
        longer = plan.time_points > self.layout.plan.time_points
        if file_bytes(self.layout.plan if longer else plan) > most_bytes:
            return False
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            copy = Segment._reserve(temporary, plan)
            try:
                self._copy_into(copy, time.monotonic() + _COPY_MOST_S)
            finally:
                copy.close()
            self.check()
            with self._swap:
                if longer:  # before it loses its name: readers that have it open look at this byte
                    self.write("mdd/closed", (), Closed.REPLACED)
                # Windows cannot rename an open file: close it, rename, open it again.
                self.close()
                try:
                    os.replace(temporary, self.path)
                    self.layout = copy.layout
                    self._latest = self._watched = (0, b"")
                finally:
                    self._descriptor = open_for_writing(self.path)
                    self._size = os.fstat(self._descriptor).st_size
                    self._header = self._header_now()
        except (OSError, RuntimeError):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if longer and self._descriptor >= 0:
                self.write("mdd/closed", (), Closed.OPEN)
            return False
        return True

    def _copy_into(self, copy: Segment, until_s: float) -> None:
        """Copy the first bytes of each dataset, which are its first time points as time is axis 0.

        They are flushed as they are copied, as the copy replaces the original; given up if that takes long.
        """
        ranges = []
        for name, target in copy.layout.regions.items():
            source = self.layout.regions[name]
            ranges.append((source.offset, target.offset, min(source.size, target.size)))
        copy_ranges(self._descriptor, copy._descriptor, ranges, until_s)


def _lost(path: Path) -> DiskError:
    return DiskError(
        f"{path} was renamed, removed, replaced, overwritten or cut while it was written: the run ends here."
    )
