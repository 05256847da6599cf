"""One file of a run as `verify` reads it: everything anew, block by block.

Owns the difference between the storages; what is checked is `verify`'s matter. One thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import InputFileError
from microdiffusion.runfile.layout import RunPlan, read_layout
from microdiffusion.runfile.swmr_file import SwmrPart, is_swmr_file


class CheckedFile(Protocol):
    """A file that is being checked."""

    path: Path
    plan: RunPlan

    def read(self, name: str) -> NDArray[Any]:
        """Return a dataset, read anew."""
        ...

    def item(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Return what an index selects, read anew."""
        ...

    def checksum(self, name: str, index: tuple[int, ...], room: NDArray[np.uint8]) -> int:
        """Return the CRC-32 of what an index selects; `room` may be used for it. -1: it cannot be read."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class _Static:
    """A file whose bytes lie where its layout says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("rb", buffering=0)
        try:
            self._layout = read_layout(path, self._stream)
        except BaseException:
            self._stream.close()
            raise
        self.plan = self._layout.plan

    def read(self, name: str) -> NDArray[Any]:
        region = self._layout.regions[name]
        content = np.empty(region.size, np.uint8)
        self._fill(content.data, region.offset)
        return content.view(region.dtype).reshape(region.shape)

    def item(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        region = self._layout.regions[name]
        offset, size = region.locate(index)
        content = np.empty(size, np.uint8)
        self._fill(content.data, offset)
        return content.view(region.dtype).reshape(region.shape[len(index) :])

    def checksum(self, name: str, index: tuple[int, ...], room: NDArray[np.uint8]) -> int:
        offset, size = self._layout.regions[name].locate(index)
        crc = 0
        for at in range(0, size, room.size):
            block = room[: min(room.size, size - at)]
            self._fill(block.data, offset + at)
            crc = crc32(block.data, crc)
        return crc

    def close(self) -> None:
        self._stream.close()

    def _fill(self, room: memoryview, offset: int) -> None:
        self._stream.seek(offset)
        while len(room):
            count = self._stream.readinto(room)
            if not count:
                raise OSError(f"it is shorter than its layout says, at byte {offset}")
            room = room[count:]


class _Swmr:
    """A file whose images HDF5 unpacks. It may grow meanwhile, and is checked as it was at first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = SwmrPart(path)
        self.plan = self._part.plan

    def read(self, name: str) -> NDArray[Any]:
        content: NDArray[Any] = self._part.view(name)
        return content[: self.plan.time_points] if self._part.is_timed(name) else content

    def item(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        return np.ascontiguousarray(self._part.view(name)[index])

    def checksum(self, name: str, index: tuple[int, ...], room: NDArray[np.uint8]) -> int:
        del room
        try:
            content = self.item(name, index)
        except InputFileError:
            return -1
        return crc32(content.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        self._part.close()


def open_checked(path: Path) -> CheckedFile:
    """Open a file of a run.

    Raises
    ------
    InputFileError
        It is damaged, or none.
    """
    return _Swmr(path) if is_swmr_file(path) else _Static(path)
