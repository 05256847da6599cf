"""Images as lines of a screen: half blocks, characters, or blank cells with a picture over them.

A picture's place is known only when the screen is put together, so its blank cells carry its number in their
style, and `Painter.placed` looks for it. Images are drawn once and kept: a screen is drawn several times a
second, a volume comes every few seconds. Main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.segment import Segment
from rich.style import Style

from microdiffusion.daemon.dashboard.graphics import CELL, kitty, sixel
from microdiffusion.daemon.dashboard.halfblock import Line, image_lines
from microdiffusion.daemon.dashboard.terminal import HOLE, Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microdiffusion.daemon.dashboard.graphics import Graphics

    Key = tuple[bytes, tuple[int, ...], int, int]

KEPT = 12
_MARK = "picture"


class Painter:
    """Draws images one way.

    Parameters
    ----------
    graphics : "kitty", "sixel", "blocks" or "none"
    cell : (height, width), optional
        Of a character, pixels.

    Attributes
    ----------
    aspect : float
        How much higher than wide a cell is, so that squares become squares; for characters, half a cell is
        one.
    """

    def __init__(self, graphics: Graphics = "blocks", cell: tuple[int, int] | None = None) -> None:
        self.graphics = graphics
        self._cell = cell or CELL
        real = graphics in ("kitty", "sixel")
        self.aspect = self._cell[0] / self._cell[1] if real else 2.0
        self._kept: dict[Key, list[Line]] = {}
        self._pictures: dict[Key, str] = {}
        self._wanted: list[tuple[int, int, str]] = []

    def begin(self) -> None:
        """Forget which pictures the last screen had."""
        self._wanted = []

    def lines(self, image: NDArray[np.uint8], *, rows: int, columns: int) -> list[Line]:
        """Return `rows` lines of `columns` cells for an image (H, W) uint8."""
        key = (image.tobytes(), image.shape, rows, columns)
        if self.graphics in ("blocks", "none"):
            if key not in self._kept:
                _make_room(self._kept)
                colour = self.graphics == "blocks"
                self._kept[key] = image_lines(image, rows=rows, columns=columns, colour=colour)
            return [list(line) for line in self._kept[key]]
        number = len(self._wanted)
        if key not in self._pictures:
            _make_room(self._pictures)
            if self.graphics == "kitty":
                data = kitty(image, rows=rows, columns=columns, number=1 + number)
            else:
                data = sixel(image, rows=rows, columns=columns, cell=self._cell)
            self._pictures[key] = data
        self._wanted.append((rows, columns, self._pictures[key]))
        mark = Style.from_meta({_MARK: number, HOLE: True})
        below = Style.from_meta({HOLE: True})
        return [[Segment(" " * columns, mark if row == 0 else below)] for row in range(rows)]

    def placed(self, lines: list[Line]) -> list[Picture]:
        """Return the pictures of these lines with their places; one that was cropped is left out."""
        pictures = []
        for row, line in enumerate(lines):
            column = 0
            for segment in line:
                number = segment.style.meta.get(_MARK) if segment.style is not None else None
                if number is not None:
                    rows, columns, data = self._wanted[number]
                    if segment.cell_length == columns and row + rows <= len(lines):
                        pictures.append(Picture(row, column, rows, columns, data))
                column += segment.cell_length
        return pictures


def _make_room(kept: dict[Key, Any]) -> None:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
