"""Reads the texts of ScanImage's TIFF files: the header of a file, and the description of a frame.

The header has a line `SI.name = value` for each setting, in MATLAB's notation; a description has lines such
as `frameNumbers = 7`. `Recording` is the layout that follows from a header, or else what does not fit is
refused in one sentence. Slices are counted by `actualNumSlices`, because `numSlices` may be what was set
before; flyback frames are saved whatever `discardFlybackFrames` says; with mROI, which some microscopes never
switch off, lines and field of view are not those of the image. Pure functions, safe on any thread.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from microdiffusion.errors import AcquisitionError
from microdiffusion.text import count_noun

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_MOST = 1_000_000  # slices, or frames in one: more is no recording
_LARGEST = 2.0**53  # beyond it a double does not count one by one


@dataclass(frozen=True, slots=True)
class Recording:
    """Layout of a recording, as its header says it.

    Attributes
    ----------
    channels : tuple of int
        Numbers of the saved channels.
    z_um : tuple of float
        Depth of each slice, in the order of acquisition.
    flyback : int
        Frames at the end of each volume that belong to no slice.
    average : int
        Frames of the scanner in a saved one.
    acquisitions : int or None
        Number of acquisitions in a loop; None where there is no loop.
    """

    channels: tuple[int, ...]
    z_um: tuple[float, ...]
    flyback: int
    average: int
    pixel_um: float | None
    frame_ms: float | None
    acquisitions: int | None

    @classmethod
    def of(cls, text: str, rois: str, shape: tuple[int, int]) -> Recording:
        """Return what the header `text` says of images of `shape` (Y, X); `rois` is the part on regions.

        Raises
        ------
        AcquisitionError
            The frames are not one for each slice, or their depths are missing.
        """
        is_mroi = setting(text, "hRoiManager.mroiEnable") in ("true", "1")
        if is_mroi and not _is_single(rois):
            raise AcquisitionError(
                "ScanImage saves several regions of interest in one image (mROI): scan one region."
            )
        z_um, flyback, average = _slices(text)
        loops = _integer(text, "acqsPerLoop") or 1 << 31  # Inf
        frame_s = _numbers(text, "hRoiManager.scanFramePeriod")
        return cls(
            channels=tuple(int(number) for number in _numbers(text, "hChannels.channelSave")) or (1,),
            z_um=z_um,
            flyback=flyback,
            average=average,
            pixel_um=None if is_mroi else _pixel_um(text, shape),
            frame_ms=1000.0 * frame_s[0] if frame_s else None,
            acquisitions=loops if setting(text, "acqState") == "loop" else None,
        )


def setting(text: str, name: str) -> str:
    """Return the value of a setting in a header, without quotes; empty where it is not there."""
    found = re.search(rf"^(?:scanimage\.)?SI\.{re.escape(name)} *= *(.*)$", text, re.MULTILINE)
    return found[1].strip().strip("'") if found else ""


def _numbers(text: str, name: str) -> list[float]:
    return _sensible(setting(text, name))


def _sensible(text: str) -> list[float]:
    """Return the numbers in a text; of a damaged file they may be as large as none is."""
    return [number for number in map(float, _NUMBER.findall(text)) if abs(number) < _LARGEST]


def _integer(text: str, name: str) -> int | None:
    numbers = _numbers(text, name)
    return int(numbers[0]) if numbers and 0 <= numbers[0] < _MOST else None


def _slices(text: str) -> tuple[tuple[float, ...], int, int]:
    """Return the depth of each slice, the number of flyback frames, and the frames averaged in one."""
    average = _integer(text, "hScan2D.logAverageFactor") or 1
    fast = setting(text, "hFastZ.enable") in ("true", "1")
    enabled = setting(text, "hStackManager.enable")  # newer than 2016
    many = (_integer(text, "hStackManager.numSlices") or 1) > 1
    if not fast and enabled not in ("true", "1") and (enabled or not many):
        return (0.0,), 0, average
    z_um = _numbers(text, "hStackManager.zs")
    slices = (
        _integer(text, "hStackManager.actualNumSlices")
        or _integer(text, "hStackManager.numSlices")
        or max(len(z_um), 1)
    )
    frames = _integer(text, "hStackManager.numFramesPerVolume")
    whole = _integer(text, "hStackManager.numFramesPerVolumeWithFlyback")
    if frames is None:  # before 2020
        frames = slices * (1 if fast else _integer(text, "hStackManager.framesPerSlice") or 1)
        flyback = _integer(text, "hFastZ.numDiscardFlybackFrames") or 0
        whole = (_integer(text, "hFastZ.numFramesPerVolume") or frames + flyback) if fast else frames
    is_slow = setting(text, "hStackManager.stackMode") == "slow"
    flyback = 0 if is_slow else max((whole or frames) - frames, 0)
    if frames != slices * average:
        right = (
            "set the frames per slice to 1"
            if fast and average == 1
            else "set the log average factor to the frames per slice"
        )
        raise AcquisitionError(
            f"ScanImage saves {frames / average:g} images for {count_noun(slices, 'slice')}: let it save one "
            f"for each slice, {right}."
        )
    if average > 1 and flyback:
        raise AcquisitionError(
            "ScanImage averages the frames of volumes that have flyback frames: set the log average factor "
            "to 1."
        )
    if len(z_um) >= frames > slices:  # one for each frame
        z_um = z_um[:frames:average]
    if len(z_um) < slices:
        raise AcquisitionError(
            f"ScanImage's header has the depth of {len(z_um)} of {count_noun(slices, 'slice')} "
            "(SI.hStackManager.zs): save the stack with ScanImage 2016 or newer."
        )
    return tuple(z_um[:slices]), flyback, average


def _is_single(rois: str) -> bool:
    """Return whether the images are of one region; MATLAB writes a list of one as its only element."""
    try:
        found = json.loads(rois)["RoiGroups"]["imagingRoiGroup"]["rois"]
        return isinstance(found, dict) or len(found) == 1
    except (ValueError, KeyError, TypeError):
        return False


def _pixel_um(text: str, shape: tuple[int, int]) -> float | None:
    """Return the size of a pixel; None where it is not said or where pixels are not square."""
    corners = np.array(_numbers(text, "hRoiManager.imagingFovUm"))
    if corners.size < 4 or corners.size % 2:
        return None
    x_um, y_um = np.ptp(corners.reshape(-1, 2), axis=0) / shape[::-1]
    return float(x_um) if abs(x_um - y_um) < 0.01 * x_um else None


def field(text: str, name: str) -> float | None:
    """Return a number of a frame's description; None where there is none."""
    found = re.search(rf'^\W*{name}"?\s*[=:]\s*({_NUMBER.pattern})', text, re.MULTILINE)
    numbers = _sensible(found[1]) if found else []
    return numbers[0] if numbers else None
