"""Reads the TIFF files of a ScanImage acquisition while they are being written, image by image.

Facts that this rests on (ScanImage's BigTIFF specification, 2016 and newer, and files of others): a file is
BigTIFF, little-endian; 16 bytes and a text (`scanimage_header`) follow its header, the same for all frames;
each page has int16 pixels in one strip and a description of its own; pages are appended, and the last one's
link points to where the next will be, or nowhere once the file is closed. Channels vary fastest, then slices;
a volume ends with its flyback frames, which are saved as well. Files are named `stem_00001.tif`, or
`stem_00001_00001.tif` where long ones are split; the acquisitions of a loop have numbers of their own and are
one recording here.

Pixels become uint16 by adding `SIGNED`, so that negative ones stay what they are. Invariants: each image is
yielded once, in the order of saving, and only when the page is complete; nothing is written, locked or mapped
into memory. For one thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.passive.geometry import Axis, Image
from microdiffusion.drivers.passive.growing_tiff import GrowingTiff
from microdiffusion.drivers.passive.scanimage_header import Recording, field, setting
from microdiffusion.errors import AcquisitionError

SIGNED = 32768
"""Counts that are added to each pixel."""

_NAME = re.compile(r"(.+?)_(\d{5,})(?:_(\d{5,}))?\.tiff?", re.IGNORECASE)
_MAGIC = 117637889
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _TEXT = 256, 257, 258, 259, 270
_OFFSET, _SAMPLES, _BYTES, _FORMAT = 273, 277, 279, 339
_NEEDED = {_WIDTH, _HEIGHT, _BITS, _TEXT, _OFFSET, _BYTES}
_MOST_TEXT = 1 << 26

Key = tuple[int, int]
"""Number of the acquisition in a file's name, and of the file within it (0 where it is not split)."""


def series_files(path: Path) -> dict[Key, Path]:
    """Return the files with the stem of `path`, by their numbers."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return {}
    found = {}
    try:
        siblings = list(path.parent.iterdir())
    except OSError as error:
        raise AcquisitionError(f"The folder {path.parent} cannot be read any more: {error}.") from error
    for each in siblings:
        other = _NAME.fullmatch(each.name)
        if other is not None and other[1] == match[1]:
            found[_key(other)] = each
    return found


def _key(match: re.Match[str]) -> Key:
    return int(match[2]), int(match[3] or 0)


def begins_recording(path: Path) -> bool | None:
    """Return whether a recording of ScanImage begins with this file; None where it is too early to tell."""
    match = _NAME.fullmatch(path.name)
    if match is None or _key(match)[1] > 1:
        return False
    with suppress(AcquisitionError, OSError), closing(_Pages(path)) as file:
        page = file.page() if file.is_scanimage else None
        if page is not None:
            return setting(file.texts[0], "acqState") != "loop" or field(page.text, "acquisitionNumbers") in (
                None,
                1,
            )
        return False if file.is_scanimage is False else None
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Page:
    """A complete page: its description, its pixels (Y, X) int16, and where the next one's offset stands."""

    text: str
    pixels: NDArray[np.int16]
    link: int


class _Pages(GrowingTiff):
    """The pages of one file, as they are written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, big=True)

    @property
    def is_scanimage(self) -> bool | None:
        """True where ScanImage wrote it; None where the header is not there yet."""
        head = self.read(16, 4)
        if len(head) < 4 or not any(head):
            return None
        return self.read(0, 4) == b"II+\0" and int.from_bytes(head, "little") == _MAGIC

    @property
    def texts(self) -> tuple[str, str]:
        """The parts of the header that are the same for all frames: settings, and regions."""
        lengths = self.read(24, 8)
        first, second = (int.from_bytes(part, "little") for part in (lengths[:4], lengths[4:]))
        return self._text(32, first), self._text(32 + first, second)

    def page(self) -> _Page | None:
        """Return the next page; None where it is not complete yet."""
        offset = self.offset_at(self.link)
        if 0 < offset < self.link:
            raise AcquisitionError(f"{self.path} is damaged after byte {self.link}: its pages run backwards.")
        tags, link = self.directory(offset, _NEEDED)
        if not tags or max(tags[_OFFSET][0] + tags[_BYTES][0], sum(tags[_TEXT])) > self.size:
            return None
        return _Page(self._text(*tags[_TEXT]), self._pixels(tags), link)

    def _text(self, offset: int, length: int) -> str:
        return self.read(offset, min(length, _MOST_TEXT)).rstrip(b"\0").decode(errors="replace")

    def _pixels(self, tags: dict[int, tuple[int, int]]) -> NDArray[np.int16]:
        (height, _), (width, _), (length, strips) = tags[_HEIGHT], tags[_WIDTH], tags[_BYTES]
        kind = [tags.get(tag, (1, 1))[0] for tag in (_COMPRESSION, _SAMPLES, _FORMAT)]
        if kind != [1, 1, 2] or tags[_BITS][0] != 16 or strips != 1 or length != 2 * height * width:
            raise AcquisitionError(
                f"The pixels of {self.path} are not signed 16 bit in one piece, as ScanImage saves them: "
                "follow its own files, not converted ones."
            )
        return self.pixels(tags[_OFFSET][0], (height, width), "<i2")


class GrowingSeries:
    """Finds the images of a recording as they are written; to be closed with `close`.

    Parameters
    ----------
    path : Path
        Its first file.

    Attributes
    ----------
    damaged : int
        Pages that were skipped because their description cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self._path = path
        match = _NAME.fullmatch(path.name)
        self._at = _key(match) if match else (0, 0)
        self._file: _Pages | None = None
        self._recording: Recording | None = None
        self._is_ended = False
        self._number: int | None = None  # of the newest frame, as its description has it
        self._acquisition = 0
        self._channel = 0
        self._frame = 0  # since the acquisition began
        self._sweep = 0  # in which the acquisition began

    def images(self) -> Iterator[Image]:
        """Yield the images that have been completed since the last call.

        Raises
        ------
        AcquisitionError
            A file is missing or not ScanImage's; the frames are not one for each slice and channel.
        """
        while (file := self._open()) is not None:
            page = file.page()
            if page is not None:
                file.link = page.link
                image = self._image(page)
                if image is not None:
                    yield image
            elif file.is_over and (after := self._next_file()) is not None:
                self.close()
                self._at = after
            else:
                return

    @property
    def is_complete(self) -> bool:
        """True when the recording has ended and all of it has been yielded."""
        if self._file is None or not self._file.is_over or self._next_file() is not None:
            return False
        return self._is_ended or any(
            key[0] > self._at[0] and begins_recording(path) for key, path in series_files(self._path).items()
        )

    def finish(self) -> None:
        """Count a page that was cut short as damaged: no more will come."""
        self.damaged += self._file is not None and not self._file.is_over

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _open(self) -> _Pages | None:
        """Return the open file; None where its header is not there yet."""
        if self._file is None:
            self._file = _Pages(series_files(self._path).get(self._at, self._path))
        if self._file.is_scanimage is False:
            raise AcquisitionError(f"{self._file.path} is not a BigTIFF file of ScanImage (2016 or newer).")
        if self._recording is None and (page := self._file.page()) is not None:
            height, width = page.pixels.shape
            self._recording = Recording.of(*self._file.texts, (height, width))
        return None if self._recording is None else self._file

    def _next_file(self) -> Key | None:
        """Return the number of the file after this one; None without any."""
        counter, split = self._at
        files = series_files(self._path)
        later = min((key for key in files if key > self._at), default=None)
        if later is None or later[0] == counter:
            if later is not None and later[1] != split + 1:
                raise AcquisitionError(
                    f"A file before {files[later].name} is missing: keep all files of a recording in its "
                    "folder."
                )
            return later
        is_loop = self._recording is not None and self._recording.acquisitions is not None
        return later if is_loop and begins_recording(files[later]) is False else None

    def _image(self, page: _Page) -> Image | None:
        """Return the image of a page; None where it belongs to no slice."""
        recording, number = self._recording, field(page.text, "frameNumbers")
        if recording is None or number is None:
            self.damaged += 1
            return None
        self._count(int(number), int(field(page.text, "acquisitionNumbers") or 1), recording)
        sweep, place = divmod(self._frame, len(recording.z_um) + recording.flyback)
        if place >= len(recording.z_um) - 1 and field(page.text, "endOfAcquisition") == 1:
            self._is_ended = self._acquisition >= (recording.acquisitions or 1)
        if place >= len(recording.z_um):
            return None
        axes: dict[str, Axis] = {"time": self._sweep + sweep, "z": place}
        if len(recording.channels) > 1:
            axes["channel"] = recording.channels[self._channel]
        elapsed_s = field(page.text, "frameTimestamps_sec")
        metadata = {
            "ZPosition_um_Intended": recording.z_um[place] if len(recording.z_um) > 1 else None,
            "PixelSize_um": recording.pixel_um,
            "Exposure": recording.frame_ms,
            "ElapsedTime-ms": None if elapsed_s is None else 1000.0 * elapsed_s,
        }
        return Image(axes, metadata, page.pixels.view(np.uint16) ^ np.uint16(SIGNED))

    def _count(self, number: int, acquisition: int, recording: Recording) -> None:
        """Count to the frame and channel of the next page; numbers that are missing stay free."""
        is_same = number == self._number and acquisition == self._acquisition
        if is_same and self._channel + 1 < len(recording.channels):
            self._channel += 1
            return
        self._channel = 0
        if self._number is None:
            self._frame = 0
        elif acquisition != self._acquisition:
            self._sweep += self._frame // (len(recording.z_um) + recording.flyback) + 1
            self._frame = 0
        else:
            self._frame += max((number - self._number) // recording.average, 1)
        self._number, self._acquisition = number, acquisition
