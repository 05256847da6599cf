"""Checks the exposure of the frames that come in, and says once what is wrong with it.

Saturation, no light at all, or frames below the dark level: mistakes that give volumes which look right and
are not, whoever sends the frames. `ExposureMonitor` looks at some thousand pixels of each frame, on the
ingest thread, which takes microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.frames import Frame
from microdiffusion.header import RunHeader
from microdiffusion.metrics import saturation_level

PIXELS = 4096
"""Pixels of a frame that are looked at, about."""
SATURATED = 0.002
"""Share of saturated pixels beyond which the user is told."""
_BELOW = 0.9  # share of pixels below the dark level: half of a dark frame's are
_LIT = 8.0  # standard deviations of the noise: no pixel of a dark frame gets so far


class ExposureMonitor:
    """Watches the frames of one run; `say` is told the kind and text of each mistake, once."""

    def __init__(self, header: RunHeader, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._offset = header.camera.offset
        self._noise = max(header.camera.read_noise, 1.0)
        self._declared = header.camera.offset != 0 or header.camera.read_noise > 0
        self._told: set[str] = set()
        self._step = max(1, math.isqrt(header.shape[1] * header.shape[2] // PIXELS))
        self._dark: dict[tuple[int, int], tuple[int, int]] = {}  # of a session: sweep, dark frames in a row

    def look(self, frame: Frame) -> None:
        """Look at a frame."""
        if len(self._told) == 3:
            return
        seq, sample = frame.info.seq, frame.pixels[:: self._step, :: self._step]
        if "saturated" not in self._told:
            share = saturated_share(sample)
            if SATURATED < share < 1.0:  # where all pixels are alike the camera sends nothing
                self._tell(
                    "saturated",
                    f"the camera is saturated: {100 * share:.2g} % of the pixels of frame {seq} are at its "
                    f"top, {sample.max():g} counts; lower the exposure or the light",
                )
        if "offset" not in self._told and self._offset > 0 and self._is_below(sample):
            self._tell(
                "offset",
                f"frame {seq} lies below camera.offset = {self._offset:g} counts: measure a dark frame with "
                "the shutter closed and correct camera.offset",
            )
        if "dark" not in self._told:
            self._count_dark(frame, sample)

    def _is_below(self, sample: NDArray[Any]) -> bool:
        return bool(np.mean(sample < self._offset - self._noise) > _BELOW)

    def _count_dark(self, frame: Frame, sample: NDArray[Any]) -> None:
        info = frame.info
        session = (info.channel, info.position)
        if self._is_lit(sample):
            self._dark[session] = (-1, 0)
            return
        sweep, count = self._dark.get(session, (-1, 0))
        if info.index == 0:
            sweep, count = info.sweep, 0
        elif info.sweep != sweep:
            return  # of a sweep that had light, or whose first frame is yet to come
        count += 1
        self._dark[session] = (sweep, count)
        if count == info.count:
            self._tell(
                "dark",
                f"no light: all {count} frames of sweep {info.sweep} are dark; open the shutter, switch "
                "the light on, and check camera.offset",
            )

    def _is_lit(self, sample: NDArray[Any]) -> bool:
        if not self._declared:
            return bool(sample.max() > sample.min())
        bright = float(sample.max()) > self._offset + _LIT * self._noise
        faint = float(sample.mean()) > self._offset + 0.5 * self._noise
        return bright or faint

    def _tell(self, kind: str, text: str) -> None:
        self._told.add(kind)
        self._say(kind, text)


def saturated_share(pixels: NDArray[Any]) -> float:
    """Return the share (0 to 1) of the pixels that are saturated; 0 where the camera is not at its limit.

    Parameters
    ----------
    pixels : (Y, X) uint16 or float32
        Counts as they came. Pixels that are not integers have been computed, and are not judged.
    """
    if pixels.dtype.kind != "u":
        return 0.0
    level = saturation_level(pixels)
    return 0.0 if level is None else np.count_nonzero(pixels == level) / pixels.size
