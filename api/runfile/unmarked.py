"""A file of the SWMR storage as HDF5 would see it if no writer had marked it.

Owns `Unmarked`, a stream over the file's bytes that shows a clean superblock, with an end far behind the
file's own. Through it HDF5 opens a file that is written, was cut off or is closed, in the same way: it takes
no lock, shares nothing with a writer in the same process, and a table that is damaged, or just being written,
is an error at once. HDF5's own SWMR mode waits for such a table, each time twice as long as before: for ever,
where the file is damaged. Whoever reads here tries again instead. Used by one thread at a time.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from microdiffusion.runfile.superblock import SIZE, unmarked

_ROOM = 1 << 50  # so far the file may grow while it is open


class Unmarked(io.RawIOBase):
    """The stream; `path` has a superblock of version 3."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._head = unmarked(self._file.read(SIZE), _ROOM)
        self._at = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be sought in."""
        return True

    def tell(self) -> int:
        """Return where it is."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: _ROOM}[whence]
        return self._at

    def readinto(self, room: Any) -> int:
        """Fill `room`; with zeros behind the file's end, where HDF5 finds no table of its own."""
        view = memoryview(room).cast("B")
        self._file.seek(self._at)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)
        if self._at < SIZE:
            shown = self._head[self._at : self._at + len(view)]
            view[: len(shown)] = shown
        self._at += len(view)
        return len(view)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        super().close()
