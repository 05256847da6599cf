"""Grey images as terminal text: two pixels per character (▀ in one colour upon another), or a grey ramp.

A character cell is about twice as high as wide, so half a cell is a square pixel. Where the terminal has
no colours (or NO_COLOR asks for none), characters of growing weight stand for brightness, one per cell.
Pure functions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    from numpy.typing import NDArray

Line = list[Segment]

RAMP = " .:-=+*#%@"
LEVELS = 48
"""Colours that are told apart; fewer make longer runs of one style, so less to send to the terminal."""

# Dark violet over red to pale yellow: brightness rises evenly, so it also reads in grey.
_ANCHORS = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)


def image_lines(image: NDArray[np.uint8], *, rows: int, columns: int, colour: bool) -> list[Line]:
    """Return `image` (H, W) uint8 as `rows` lines of `columns` cells.

    Parameters
    ----------
    colour
        Half blocks in colour; otherwise a ramp of characters.
    """
    if not colour:
        small = _resize(image, (rows, columns)).astype(np.int64) * len(RAMP) // 256
        return [[Segment("".join(RAMP[level] for level in row))] for row in small]
    levels = _resize(image, (2 * rows, columns)).astype(np.int64) * LEVELS // 256
    return [
        _cells(top.tolist(), bottom.tolist()) for top, bottom in zip(levels[::2], levels[1::2], strict=True)
    ]


@lru_cache(maxsize=4)
def palette(levels: int) -> NDArray[np.uint8]:
    """Return the colours of so many levels of brightness: (levels, 3) uint8, dark to bright."""
    place = np.linspace(0, len(_ANCHORS) - 1, levels)
    columns = [np.interp(place, np.arange(len(_ANCHORS)), part) for part in zip(*_ANCHORS, strict=True)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def _cells(top: list[int], bottom: list[int]) -> Line:
    """Return one line; equal neighbours share a segment."""
    line: Line = []
    start = 0
    pairs = list(zip(top, bottom, strict=True))
    for column in range(1, len(pairs) + 1):
        if column == len(pairs) or pairs[column] != pairs[start]:
            line.append(Segment("▀" * (column - start), _style(*pairs[start])))
            start = column
    return line


@lru_cache(maxsize=LEVELS * LEVELS)
def _style(top: int, bottom: int) -> Style:
    return Style(color=_colour(top), bgcolor=_colour(bottom))


def _colour(level: int) -> Color:
    red, green, blue = palette(LEVELS)[level].tolist()
    return Color.from_rgb(red, green, blue)


def _resize(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return `image` at `shape`: half mean, half maximum, so that thin lines stay and noise does not grow."""
    mean: NDArray[np.floating] = image.astype(np.float32)
    most = mean
    for axis, size in enumerate(shape):
        length = image.shape[axis]
        starts = np.arange(size) * length // size
        if size > length:
            mean, most = (np.take(part, starts, axis=axis) for part in (mean, most))
            continue
        counts = np.diff(np.append(starts, length)).astype(np.float32)
        mean = np.add.reduceat(mean, starts, axis=axis) / (counts[:, None] if axis == 0 else counts)
        most = np.maximum.reduceat(most, starts, axis=axis)
    return np.asarray(np.clip(0.5 * (mean + most), 0, 255), dtype=np.uint8)
