"""Writes files as ScanImage does, by its BigTIFF specification (versions 3 and 4)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

HEADER: dict[str, str] = {
    "SI.TIFF_FORMAT_VERSION": "4",
    "SI.VERSION_MAJOR": "2022",
    "SI.acqState": "'grab'",
    "SI.acqsPerLoop": "1",
    "SI.hChannels.channelSave": "1",
    "SI.hFastZ.discardFlybackFrames": "true",
    "SI.hFastZ.enable": "true",
    "SI.hFastZ.numDiscardFlybackFrames": "0",
    "SI.hRoiManager.imagingFovUm": "[-6 -4;6 -4;6 4;-6 4]",
    "SI.hRoiManager.linesPerFrame": "16",
    "SI.hRoiManager.mroiEnable": "0",
    "SI.hRoiManager.pixelsPerLine": "24",
    "SI.hRoiManager.scanFramePeriod": "0.033",
    "SI.hScan2D.logAverageFactor": "1",
    "SI.hStackManager.actualNumSlices": "4",
    "SI.hStackManager.enable": "true",
    "SI.hStackManager.framesPerSlice": "1",
    "SI.hStackManager.numFramesPerVolume": "4",
    "SI.hStackManager.numFramesPerVolumeWithFlyback": "4",
    "SI.hStackManager.numSlices": "11",
    "SI.hStackManager.zs": "[6 18 30 42]",
    "SI.hStackManager.zsRelative": "[6;18;30;42]",
}
"""Of a fast stack of 4 slices and one channel, 24 x 16 pixels of 0.5 µm, as ScanImage would."""


class ScanImageWriter:
    """One file, to be filled by `put`; `settings` change `HEADER`, `rois` is the text of its regions."""

    def __init__(self, path: Path, rois: str = '{"RoiGroups": {}}', **settings: str | None) -> None:
        header = {**HEADER, **{f"SI.{name.replace('__', '.')}": value for name, value in settings.items()}}
        lines = [f"{name} = {value}" for name, value in header.items() if value is not None]
        text, regions = "\n".join(lines).encode() + b"\0", rois.encode() + b"\0"
        self._text_at, self._text, self._rois = 32, len(text), len(regions)
        self._file: BinaryIO = path.open("wb")
        first = 32 + len(text) + len(regions)
        self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, first))
        self._file.write(struct.pack("<IIII", 117637889, 4, len(text), len(regions)) + text + regions)
        self._file.flush()
        self._link = 8

    def put(self, pixels: Any, number: int, acquisition: int = 1, *, end: bool = False) -> None:
        """Append a page."""
        description = (
            f"frameNumbers = {number}\nacquisitionNumbers = {acquisition}\n"
            f"frameNumberAcquisition = {number}\nframeTimestamps_sec = {0.033 * (number - 1):.9f}\n"
            "acqTriggerTimestamps_sec = -0.000021560\nnextFileMarkerTimestamps_sec = -1.000000000\n"
            f"endOfAcquisition = {int(end)}\nendOfAcquisitionMode = 0\ndcOverVoltage = 0\n"
            "epoch = [2023  7 24 14 14 17.854]\nauxTrigger0 = []\nI2CData = {}\n"
        ).encode() + b"\0"
        height, width = pixels.shape
        at = self._file.seek(0, 2)
        count = 17
        body = at + 8 + 20 * count + 8
        data = np.ascontiguousarray(pixels)
        kind = {"i": 2, "u": 1, "f": 3}[data.dtype.kind]
        tags = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8 * data.itemsize), (259, 3, 1, 1),
            (262, 3, 1, 1), (270, 2, len(description), body), (273, 16, 1, body + len(description)),
            (274, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, height), (279, 16, 1, data.nbytes),
            (282, 5, 1, 20000 << 32 | 1), (283, 5, 1, 20000 << 32 | 1), (284, 3, 1, 1),
            (305, 2, self._text, self._text_at), (315, 2, self._rois, self._text_at + self._text),
            (339, 3, 1, kind),
        ]  # fmt: skip
        after = body + len(description) + data.nbytes
        entries = b"".join(struct.pack("<HHQQ", *tag) for tag in tags)
        self._file.write(struct.pack("<Q", count) + entries + struct.pack("<Q", after))
        self._file.write(description + data.tobytes())
        self._file.flush()
        self._link = body - 8

    def close(self) -> None:
        """Close the file as ScanImage does: the last page's link points nowhere."""
        self._file.seek(self._link)
        self._file.write(bytes(8))
        self._file.close()

    def abandon(self) -> None:
        """End as a program does that is killed: the last link points beyond the end."""
        self._file.close()


def scan_of(number: int) -> Any:
    """Return pixels that tell frame `number` from all others, with negative ones: (16, 24) int16."""
    return np.random.default_rng(number).integers(-200, 8000, (16, 24)).astype(np.int16)
