"""A TIFF file that another program is writing: as much of it as there is.

Little-endian, classic or BigTIFF; pages are found by the links from one directory to the next. Nothing is
written, locked or mapped into memory. For one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Set
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import AcquisitionError

_MOST_TAGS = 64


class GrowingTiff:
    """An open file, to be closed with `close`.

    Attributes
    ----------
    link : int
        Where the offset of the next directory stands.

    Raises
    ------
    AcquisitionError
        It cannot be opened.
    """

    def __init__(self, path: Path, *, big: bool) -> None:
        self.path = path
        self._count, self._entry, self._offset = (8, "<HHQQ", 8) if big else (2, "<HHII", 4)
        self.link = self._offset
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise AcquisitionError(f"{path} cannot be read: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes that there are."""
        return self._file.seek(0, 2)

    @property
    def is_over(self) -> bool:
        """True where nothing follows the last page that `link` left behind (yet)."""
        return not 0 < self.offset_at(self.link) < self.size

    def read(self, offset: int, count: int) -> bytes:
        """Return as many of `count` bytes as there are."""
        if offset >= self.size:  # no seek beyond: file systems have limits of their own
            return b""
        self._file.seek(offset)
        data = b""
        while len(data) < count and (part := self._file.read(count - len(data))):
            data = data + part if data else part
        return data

    def offset_at(self, link: int) -> int:
        """Return the offset of a directory that stands at `link`; 0 where there is none yet."""
        return self._number(link, self._offset)

    def directory(self, offset: int, needed: Set[int]) -> tuple[dict[int, tuple[int, int]], int]:
        """Return tag to (value, count), none where not all are there, and the link to the next directory."""
        number = self._number(offset, self._count) if offset else 0
        if not 0 < number <= _MOST_TAGS:
            return {}, 0
        length = number * struct.calcsize(self._entry)
        data = self.read(offset + self._count, length)
        if len(data) < length:
            return {}, 0
        tags = {tag: (value, count) for tag, _, count, value in struct.iter_unpack(self._entry, data)}
        return (tags if tags.keys() >= needed else {}), offset + self._count + length

    def pixels(self, offset: int, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        """Return the pixels (Y, X) that begin at `offset`; raise `AcquisitionError` if not all are there."""
        count = shape[0] * shape[1] * np.dtype(dtype).itemsize
        data = self.read(offset, count)
        if len(data) < count:
            raise AcquisitionError(f"{self.path} was cut short in the middle of an image.")
        return np.frombuffer(data, dtype).reshape(shape)

    def _number(self, offset: int, length: int) -> int:
        data = self.read(offset, length)
        return int.from_bytes(data, "little") if len(data) == length else 0
