"""Images on the screen: as half blocks (two pixels a character), characters, or pictures of the terminal.

Terminals that draw pictures are found by asking, not by name: Kitty's own query, then the device
attributes (DA1), which every terminal answers, and whose 4 means Sixel. tmux answers for itself; Kitty's
query is not put to it, nor to screen: they would take it for the pane's title, and not keep its pictures in
their pane. A Sixel picture must fit its cells to the pixel (a larger one scrolls the screen), so it takes the
size of a character, from the terminal or from the system; where neither tells, half blocks are drawn.

Images are drawn once and kept: a screen is drawn several times a second, a volume comes every few seconds.
Main thread.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import time
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from microdiffusion.daemon.dashboard.terminal import PICTURE, Line, Terminal, TerminalPicture
from microdiffusion.daemon.status import GAMMA, Images, Preview

Key = tuple[bytes, tuple[int, ...], int, int]

Contrast = Literal["auto", "held", "percentile"]
CONTRASTS: tuple[Contrast, ...] = ("auto", "held", "percentile")
GAMMA_STEP = 1.25
PERCENTILES = (60.0, 99.9)

Graphics = Literal["kitty", "sixel", "blocks", "none"]
KEPT = 12
RAMP = " .:-=+*#%@"
LEVELS = 48
"""Colours of half blocks; fewer make longer runs of one style, so less to send to the terminal."""
SIXEL_LEVELS = 24
MOST_PIXELS = 1000
"""Longest edge of a Sixel picture: what xterm takes, unless it is told otherwise."""
CHUNK = 4096
_RUN = re.compile(r"(.)\1{3,}")
FORGET_KITTY = "\x1b_Ga=d,q=2\x1b\\"

ANSWER_S = 0.5
"""Longest time for an answer, also over a slow line; a local terminal takes a few milliseconds."""
_KITTY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_CELL_SIZE, _ATTRIBUTES = "\x1b[16t", "\x1b[c"
_CELL_ANSWER = re.compile(r"\x1b\[6;(\d+);(\d+)t")
_ATTRIBUTES_ANSWER = re.compile(r"\x1b\[\?([\d;]*)c")

# Dark violet over red to pale yellow: brightness rises evenly, so it also reads in grey.
_ANCHORS = np.array([0x000004, 0x280B54, 0x65156E, 0x9F2A63, 0xD44842, 0xF57D15, 0xFAC127, 0xFCFFA4])


def windowed(
    preview: Preview, images: Images, contrast: Contrast, gamma_step: int, held: tuple[float, float] | None
) -> Images:
    """Return images of a preview with the brightness that was chosen.

    A preview has 8 bits and says which counts are black and white, so another window is arithmetic, at the
    price of steps where it is much narrower.

    Parameters
    ----------
    contrast
        auto: each volume's own window; held: the window `held`, so that brightness can be compared over time;
        percentile: from the 60th percentile of the images on, which removes haze.
    gamma_step
        Above 0 brightens dim structures, below 0 darkens them.
    held : (low, high)
        Counts.
    """
    if contrast == "auto" and not gamma_step:
        return images
    # 256 possible values: a table, not a picture's worth of powers.
    counts = preview.low + max(preview.high - preview.low, 1e-6) * (np.arange(256) / 255.0) ** (1.0 / GAMMA)
    low, high = preview.low, preview.high
    if contrast == "held" and held is not None:
        low, high = held
    elif contrast == "percentile":
        values = np.concatenate([image.ravel() for image in images])
        low, high = np.interp(np.percentile(values, PERCENTILES), np.arange(256), counts).tolist()
    share = np.clip((counts - low) / max(high - low, 1e-6), 0.0, 1.0)
    table: NDArray[np.uint8] = (255.0 * share ** (GAMMA / GAMMA_STEP**gamma_step) + 0.5).astype(np.uint8)
    xy, xz, yz = images
    return table[xy], table[xz], table[yz]


class Painter:
    """Draws images one way.

    Parameters
    ----------
    cell : (height, width)
        Of a character, pixels; the VT340's where nothing is known.

    Attributes
    ----------
    aspect : float
        Height over width of a cell, so that squares become squares.
    pictures : list of TerminalPicture
        Those of the screen that is being drawn, in the order of their numbers.
    """

    def __init__(self, graphics: Graphics = "blocks", cell: tuple[int, int] = (20, 10)) -> None:
        self.graphics = graphics
        self._cell = cell
        self.aspect = cell[0] / cell[1] if graphics in ("kitty", "sixel") else 2.0
        self.pictures: list[TerminalPicture] = []
        self._kept: dict[Key, list[Line] | TerminalPicture] = {}

    def begin(self) -> None:
        """Begin another screen."""
        self.pictures = []

    def lines(self, image: NDArray[np.uint8], *, rows: int, columns: int) -> list[Line]:
        """Return `rows` lines of `columns` cells for an image (H, W) uint8."""
        key = (image.tobytes(), image.shape, rows, columns)
        drawn = self._kept.get(key)
        if drawn is None:
            drawn = self._draw(image, rows, columns)
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = drawn
        if not isinstance(drawn, TerminalPicture):
            return [list(line) for line in drawn]
        self.pictures.append(drawn)
        return [[Segment(" " * columns, _mark(len(self.pictures) - 1))] for _ in range(rows)]

    def _draw(self, image: NDArray[np.uint8], rows: int, columns: int) -> list[Line] | TerminalPicture:
        if self.graphics == "kitty":
            return TerminalPicture(rows, columns, kitty(image, rows, columns, number=1 + len(self.pictures)))
        if self.graphics == "sixel":
            return TerminalPicture(rows, columns, sixel(image, rows * self._cell[0], columns * self._cell[1]))
        return half_blocks(image, rows, columns) if self.graphics == "blocks" else ramp(image, rows, columns)


@lru_cache(maxsize=16)
def _mark(number: int) -> Style:
    return Style.from_meta({PICTURE: number})


def half_blocks(image: NDArray[np.uint8], rows: int, columns: int) -> list[Line]:
    """Return an image as ▀ in one colour upon another: half a cell is about a square."""
    levels = (_resized(image, (2 * rows, columns)).astype(int) * LEVELS // 256).tolist()
    return [
        [
            Segment("▀" * len(list(run)), _half_block(*pair))
            for pair, run in itertools.groupby(zip(top, bottom, strict=True))
        ]
        for top, bottom in zip(levels[::2], levels[1::2], strict=True)
    ]


def ramp(image: NDArray[np.uint8], rows: int, columns: int) -> list[Line]:
    """Return an image as characters of growing weight, for terminals without colours."""
    levels = _resized(image, (rows, columns)).astype(int) * len(RAMP) // 256
    return [[Segment("".join(RAMP[level] for level in row))] for row in levels.tolist()]


@lru_cache(maxsize=LEVELS * LEVELS)
def _half_block(top: int, bottom: int) -> Style:
    (color, bgcolor) = (Color.from_rgb(*palette(LEVELS)[level].tolist()) for level in (top, bottom))
    return Style(color=color, bgcolor=bgcolor)


@lru_cache(maxsize=4)
def palette(levels: int) -> NDArray[np.uint8]:
    """Return the colours of so many levels of brightness: (levels, 3) uint8, dark to bright."""
    place = np.linspace(0, len(_ANCHORS) - 1, levels)
    columns = [np.interp(place, np.arange(len(_ANCHORS)), _ANCHORS >> shift & 255) for shift in (16, 8, 0)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def _resized(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
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


def kitty(image: NDArray[np.uint8], rows: int, columns: int, *, number: int) -> str:
    """Return the sequence of Kitty's protocol that draws an image over so many cells at the cursor."""
    height, width = image.shape
    data = base64.b64encode(zlib.compress(palette(256)[image].tobytes(), 1)).decode("ascii")
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    head = f"a=T,f=24,o=z,s={width},v={height},c={columns},r={rows},i={number},p=1,C=1,q=2,"
    return "".join(
        f"\x1b_G{head if place == 0 else ''}m={int(place < len(pieces) - 1)};{piece}\x1b\\"
        for place, piece in enumerate(pieces)
    )


def sixel(image: NDArray[np.uint8], height: int, width: int) -> str:
    """Return the Sixel sequence that draws an image at the cursor, on at most `height` x `width` pixels.

    A pixel of the image becomes a rectangle: lines are repeated, `edges` says where columns begin.
    """
    scale = min(1.0, MOST_PIXELS / max(height, width))
    # Whole bands of six lines, and never below the last line of cells: that would scroll the screen.
    height, width = max(6, int(height * scale) // 6 * 6), max(1, int(width * scale))
    levels = image[np.arange(height) * image.shape[0] // height].astype(int) * SIXEL_LEVELS // 256
    edges = -(-np.arange(image.shape[1] + 1) * width // image.shape[1])
    # Which of a band's six lines show a level, as bits: (bands, levels, columns).
    bits = np.zeros((height // 6, SIXEL_LEVELS, image.shape[1]), np.uint8)
    bands, columns = np.ogrid[: bits.shape[0], : bits.shape[2]]
    for line in range(6):
        bits[bands, levels[line::6], columns] |= 1 << line
    texts = np.repeat(bits + 63, np.diff(edges), axis=2)
    colours = (palette(SIXEL_LEVELS) / 2.55).round().astype(int).tolist()
    head = "".join(f"#{level};2;{red};{green};{blue}" for level, (red, green, blue) in enumerate(colours))
    # No "-" after the last band: it would begin another one, below the picture.
    body = "-".join(
        "$".join(
            f"#{level}{texts[band, level].tobytes().decode('ascii')}"
            for level in np.flatnonzero(bits[band].any(axis=1)).tolist()
        )
        for band in range(len(bits))
    )
    return f'\x1bP0;1;0q"1;1;{width};{height}{head}{_RUN.sub(_counted, body)}\x1b\\'


def _counted(run: re.Match[str]) -> str:
    return f"!{len(run[0])}{run[1]}"


def find_painter(terminal: Terminal, setting: str) -> Painter:
    """Return the painter that `dashboard.graphics` asks for, or the best one that the terminal can show."""
    found, cell = _ask(terminal)
    graphics: Graphics = found if setting == "auto" else setting  # type: ignore[assignment]
    return Painter(graphics) if cell is None else Painter(graphics, cell)


def _ask(terminal: Terminal) -> tuple[Graphics, tuple[int, int] | None]:
    answer = ""
    if terminal.has_keys and os.environ.get("TERM", "") not in ("", "dumb", "linux"):
        terminal.write(question(os.environ))
        deadline = time.monotonic() + ANSWER_S
        while (left := deadline - time.monotonic()) > 0 and _ATTRIBUTES_ANSWER.search(answer) is None:
            answer += terminal.read(left)
    return understood(answer, terminal.cell)


def question(environ: Mapping[str, str]) -> str:
    """Return what the terminal is asked; its last answer is that of the device attributes."""
    multiplexed = "TMUX" in environ or environ.get("TERM", "").startswith(("tmux", "screen"))
    return ("" if multiplexed else _KITTY) + _CELL_SIZE + _ATTRIBUTES


def understood(answer: str, cell: tuple[int, int] | None = None) -> tuple[Graphics, tuple[int, int] | None]:
    """Return what a terminal can draw by its answer, and height and width of its characters, pixels.

    `cell` is what the system says of these.
    """
    size = _CELL_ANSWER.search(answer)
    if size is not None and int(size[1]) and int(size[2]):
        cell = int(size[1]), int(size[2])
    if "\x1b_Gi=31;OK" in answer:
        return "kitty", cell
    attributes = _ATTRIBUTES_ANSWER.search(answer)
    if cell is not None and attributes is not None and "4" in attributes[1].split(";")[1:]:
        return "sixel", cell
    return "blocks", cell
