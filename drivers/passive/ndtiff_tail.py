"""Reads an NDTiff data set (format 3) while it is being written, image by image.

The published reader reads the index once, and one of the writers buffers the index by kilobytes, so images
are found by following each file's chain of TIFF directories from one poll to the next. Facts that this rests
on (the format's description, and both writers): a file is preallocated at 4 GiB and truncated when it is
complete, and then its last directory points nowhere; directory, pixels and metadata of an image are appended
in this order; the axes of an image are in its metadata under "Axes" (pycromanager's engine), or else in
NDTiff.index (Micro-Manager's own), whose unwritten rest is zeros (Java) or missing (Python). All numbers are
little-endian.

Invariants: each image is yielded once, in the order of saving, and only when its metadata, which are written
last, can be read; nothing is written, locked or mapped into memory. For one thread.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.passive.geometry import Axis, Image
from microdiffusion.drivers.passive.growing_tiff import GrowingTiff
from microdiffusion.errors import AcquisitionError

INDEX = "NDTiff.index"
_FILE = re.compile(r"(.*)NDTiffStack(?:_(\d+))?\.tif")
_FULL = "Full resolution"  # of a data set with a pyramid
_MAGIC, _MARK = b"II*\0", 483729
_WIDTH, _HEIGHT, _COMPRESSION, _OFFSET, _SAMPLES, _BYTES, _METADATA = 256, 257, 259, 273, 277, 279, 51123
_NEEDED = {_WIDTH, _HEIGHT, _OFFSET, _BYTES, _METADATA}
_LAID_OUT_BYTES = 1 << 32
_MOST_TEXT = 1 << 24
_INDEX_BLOCK = 1 << 20


def dataset_folder(folder: Path) -> Path | None:
    """Return the folder of a data set's full-resolution images; None where `folder` is not a data set."""
    for place in (folder / _FULL, folder):
        if (place / INDEX).is_file() or any(_FILE.fullmatch(path.name) for path in place.glob("*.tif")):
            return place
    return None


def is_complete(folder: Path) -> bool:
    """Return whether all files of a data set have been truncated, which ends the writing of each."""
    sizes = [path.stat().st_size for path in folder.glob("*.tif") if _FILE.fullmatch(path.name)]
    return bool(sizes) and max(sizes) < _LAID_OUT_BYTES


class GrowingDataset:
    """Finds the images of a data set as they are written; to be closed with `close`.

    Parameters
    ----------
    folder : Path
        As `dataset_folder` returns it.

    Attributes
    ----------
    damaged : int
        Images that were skipped because their metadata cannot be read; after `finish` also those that are
        cut, missing, or placed by nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged = 0
        self._found = 0
        self._is_over = False
        self._folder = folder
        self._index = _Index(folder / INDEX)
        self._number = 0  # of the file that is read
        self._file: GrowingTiff | None = None

    def images(self) -> Iterator[Image]:
        """Yield the images that have been completed since the last call.

        Raises
        ------
        AcquisitionError
            A file is missing, or is not what its name promises; the pixels are not those of a monochrome
            camera.
        """
        while (file := self._open()) is not None:
            image = self._next(file)
            if image is not None:
                self._found += 1
                yield image
            elif file.is_over and self._number < max(self._paths(), default=0):
                self.close()
                self._number += 1
            else:
                return

    @property
    def is_complete(self) -> bool:
        """True when the newest file is complete and all of it has been yielded.

        This is also true for a moment between two files of a large data set.
        """
        return self._file is not None and self._file.is_over and self._number >= max(self._paths(), default=0)

    def finish(self) -> None:
        """Count what is not there, or not whole, as damaged: no more will come."""
        self._is_over = True
        in_time = self._found
        with suppress(AcquisitionError):
            late = sum(1 for _ in self.images())
            self.damaged += late
            self._index.grow()
        self.damaged = max(self.damaged, self._index.count - in_time)

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _paths(self) -> dict[int, Path]:
        try:
            found = [(_FILE.fullmatch(path.name), path) for path in self._folder.iterdir()]
        except OSError as error:
            raise AcquisitionError(f"The folder {self._folder} cannot be read any more: {error}.") from error
        return {int(match[2] or 0): path for match, path in found if match}

    def _open(self) -> GrowingTiff | None:
        """Return the open file, or open the next; None where it does not exist, or holds nothing yet."""
        if self._file is not None:
            return self._file
        paths = self._paths()
        path = paths.get(self._number)
        if path is None:
            if paths and max(paths) > self._number:
                raise AcquisitionError(
                    f"File {self._number} of the data set {self._folder} is missing, but there is "
                    f"{paths[max(paths)].name}: keep all files of a data set in its folder."
                )
            return None
        with suppress(AcquisitionError):  # of a damaged index, which may not be needed
            self._index.grow()
        if absent := sorted(name for name in self._index.files if not (self._folder / name).is_file()):
            raise AcquisitionError(
                f"The data set {self._folder} lacks {', '.join(absent[:5])}: keep all files of a data set in "
                "its folder."
            )
        file = GrowingTiff(path, big=False)
        magic, _, mark, version = struct.unpack("<4sIII", file.read(0, 16).ljust(16, b"\0"))
        if version != 0 and magic == _MAGIC and mark == _MARK:
            self._file = file
            return file
        file.close()
        if version != 0:
            raise AcquisitionError(f"{path} is not NDTiff, version 3 or newer: save it as NDTiff.")
        return None  # preallocated, but not begun

    def _next(self, file: GrowingTiff) -> Image | None:
        """Return the next image; None where it is not complete yet."""
        while (offset := file.offset_at(file.link)) != 0:
            tags, link = file.directory(offset, _NEEDED)
            if not tags:
                return None
            at, length = tags[_METADATA]
            metadata = _parsed(file.read(at, min(length, _MOST_TEXT)))
            if metadata is None:
                if not self._is_over and not file.directory(file.offset_at(link), _NEEDED)[0]:
                    return None
                # The next image is there already, so waiting would not repair this one.
                file.link = link
                self.damaged += 1
                continue
            axes = metadata.get("Axes")
            if not isinstance(axes, dict):
                axes = self._index.axes(tags[_OFFSET][0], self._number)
            if axes is None and self._is_over:
                file.link = link
                self.damaged += 1
                continue
            if axes is None:
                return None
            pixels = self._pixels(file, {tag: value for tag, (value, _) in tags.items()})
            file.link = link
            return Image(_plain(axes), metadata, pixels)
        return None

    def _pixels(self, file: GrowingTiff, tags: dict[int, int]) -> NDArray[Any]:
        """Return the pixels (Y, X); the number of bytes tells the type: one writer always says 16 bit."""
        height, width = tags[_HEIGHT], tags[_WIDTH]
        if tags.get(_COMPRESSION, 1) != 1:
            raise AcquisitionError(f"{self._folder} is compressed: only uncompressed NDTiff is supported.")
        if tags.get(_SAMPLES, 1) != 1 or tags[_BYTES] not in (height * width, 2 * height * width):
            raise AcquisitionError(
                f"The images in {self._folder} are in colour or neither 8 nor 16 bit: a projection has one "
                "value per pixel; choose a monochrome camera or pixel type."
            )
        dtype = np.dtype(np.uint8 if tags[_BYTES] == height * width else "<u2")
        pixels = file.pixels(tags[_OFFSET], (height, width), dtype)
        return pixels.astype(dtype.newbyteorder("="), copy=False)


class _Index:
    """NDTiff.index, read as it grows: the axes of images whose metadata do not hold them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._axes: dict[tuple[int, int], bytes] = {}  # as JSON: a finished data set has many
        self.count = 0  # of its entries
        self.files: set[str] = set()

    def axes(self, pixel_offset: int, number: int) -> dict[str, Any] | None:
        """Return the axes of the image whose pixels begin there in file `number`; None: not written yet."""
        key = (number, pixel_offset)
        if key not in self._axes:
            self.grow()
        return _parsed(self._axes.pop(key, b""))

    def grow(self) -> None:
        """Read what was added since the last time."""
        try:
            with self._path.open("rb") as file:
                done = True
                while done:
                    file.seek(self._read_to)
                    done = self._parse(file.read(_INDEX_BLOCK))
        except FileNotFoundError:
            return
        except OSError as error:
            raise AcquisitionError(f"{self._path} cannot be read: {error}.") from error

    def _parse(self, data: bytes) -> bool:
        """Parse the complete entries; False where there is none."""
        place = 0
        while (entry := _entry(data, place)) is not None:
            text, name, offset, end = entry
            match = _FILE.fullmatch(name)
            if match is None or _parsed(text) is None:
                raise AcquisitionError(
                    f"{self._path} is damaged at byte {self._read_to}: the images after it cannot be placed."
                )
            self._axes[int(match[2] or 0), offset] = text
            self.files.add(name)
            self.count += 1
            self._read_to += end - place
            place = end
        return place > 0


def _entry(data: bytes, place: int) -> tuple[bytes, str, int, int] | None:
    """Return axes, file name, offset of the pixels, and the end of the entry at `place`.

    None where it is incomplete: what is not written yet is missing, or zero.
    """
    texts = []
    for _ in range(2):
        length = int.from_bytes(data[place : place + 4], "little")
        text = data[place + 4 : place + 4 + length]
        if length == 0 or len(text) < length or 0 in text:
            return None
        texts.append(text)
        place += 4 + length
    if len(data) < place + 32:
        return None
    offset, *_, metadata_length, _ = struct.unpack_from("<8I", data, place)
    if metadata_length == 0:  # the fields before it may be half written
        return None
    return texts[0], texts[1].decode(errors="replace"), offset, place + 32


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None where it is not one (yet)."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text.rstrip(b"\0"))
        if isinstance(value, dict):
            return value
    return None


def _plain(axes: dict[str, Any]) -> dict[str, Axis]:
    return {str(name): value if isinstance(value, (int, str)) else str(value) for name, value in axes.items()}
