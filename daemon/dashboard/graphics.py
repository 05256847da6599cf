"""Pictures where the terminal can draw them: Kitty's graphics protocol, or Sixel. Encoders and the question.

The question is asked once, at the start, and answered within a fraction of a second or not at all: Kitty's
own query, then the device attributes (DA1), which every terminal answers, and whose 4 means Sixel. tmux
answers for itself: 4 where it was built with Sixel. Kitty's query is not put to it, nor to screen: they would
take it for the pane's title, and not keep its pictures in their pane.

A Sixel picture has pixels and its place has cells, so it takes the size of a cell to fit: the terminal's own
answer, or what the terminal has told the system. Too large a picture would scroll the whole screen: where
neither is known, half blocks are drawn.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import time
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from microdiffusion.daemon.dashboard.halfblock import palette

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from microdiffusion.daemon.dashboard.keyboard import Keyboard
    from microdiffusion.daemon.dashboard.terminal import Terminal

Graphics = Literal["kitty", "sixel", "blocks", "none"]

ANSWER_S = 0.5
"""How long an answer may take: also over a slow line; a local terminal takes a few milliseconds."""
_KITTY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_CELL_SIZE, _WHAT_IT_CAN = "\x1b[16t", "\x1b[c"
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_CELL = re.compile(r"\x1b\[6;(\d+);(\d+)t")
CELL = (20, 10)
"""Height and width of a character in pixels, where nothing says; the VT340's."""
CHUNK = 4096
SIXEL_LEVELS = 24
MOST_PIXELS = 1000
"""Longest edge of a Sixel picture: what xterm takes, unless it is told otherwise."""
FORGET_KITTY = "\x1b_Ga=d,q=2\x1b\\"


def understood(answer: str, cell: tuple[int, int] | None = None) -> tuple[Graphics, tuple[int, int] | None]:
    """Return what a terminal can draw by its answers, and the height and width of its characters, pixels.

    Parameters
    ----------
    cell : (height, width), optional
        What the system says of them.
    """
    size = _CELL.search(answer)
    if size is not None and int(size[1]) and int(size[2]):
        cell = int(size[1]), int(size[2])
    if "\x1b_Gi=31;OK" in answer:
        return "kitty", cell
    attributes = _ATTRIBUTES.search(answer)
    if cell is not None and attributes is not None and "4" in attributes[1].split(";")[1:]:
        return "sixel", cell
    return "blocks", cell


def ask(terminal: Terminal, keyboard: Keyboard) -> tuple[Graphics, tuple[int, int] | None]:
    """Ask the terminal what it can draw; half blocks where it does not say."""
    if not keyboard.works or os.environ.get("TERM", "") in ("", "dumb", "linux"):
        return "blocks", terminal.cell
    terminal.ask(question(os.environ))
    answer, deadline = "", time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0 and _ATTRIBUTES.search(answer) is None:
        answer += keyboard.read_text(left)
    return understood(answer, terminal.cell)


def question(environ: Mapping[str, str]) -> str:
    """Return what the terminal is asked; its last answer is that of the device attributes."""
    multiplexed = "TMUX" in environ or environ.get("TERM", "").startswith(("tmux", "screen"))
    return ("" if multiplexed else _KITTY) + _CELL_SIZE + _WHAT_IT_CAN


def wants(setting: str, environ: Mapping[str, str]) -> bool:
    """Whether the terminal is to be asked: not where it was decided, and not without colour."""
    return setting in ("auto", "kitty", "sixel") and "NO_COLOR" not in environ


def kitty(image: NDArray[np.uint8], *, rows: int, columns: int, number: int) -> str:
    """Return what draws an image (H, W) uint8 over so many cells, from the cursor on."""
    pixels = palette(256)[image].astype(np.uint8)
    height, width = image.shape
    data = base64.standard_b64encode(zlib.compress(pixels.tobytes(), 1)).decode("ascii")
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    head = f"a=T,f=24,o=z,s={width},v={height},c={columns},r={rows},i={number},p=1,C=1,q=2,"
    out = []
    for place, piece in enumerate(pieces):
        more = int(place < len(pieces) - 1)
        out.append(f"\x1b_G{head if place == 0 else ''}m={more};{piece}\x1b\\")
    return "".join(out)


def sixel(image: NDArray[np.uint8], *, rows: int, columns: int, cell: tuple[int, int]) -> str:
    """Return what draws an image (H, W) uint8 over so many cells, from the cursor on.

    A pixel of the image is a rectangle of the picture: `down` says which line of the image a line of the
    picture shows, `edges` where the image's columns begin.
    """
    height, width = rows * cell[0], columns * cell[1]
    scale = min(1.0, MOST_PIXELS / max(height, width))
    # Whole bands of six rows, and never below the last line of cells: that would scroll the screen.
    height, width = max(6, int(height * scale) // 6 * 6), max(1, int(width * scale))
    down = np.arange(height) * image.shape[0] // height
    edges = -(-np.arange(image.shape[1] + 1) * width // image.shape[1])
    levels = image.astype(np.int64) * SIXEL_LEVELS // 256
    colours = palette(SIXEL_LEVELS)
    out = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for level in np.unique(levels).tolist():
        red, green, blue = (round(100 * int(part) / 255) for part in colours[level])
        out.append(f"#{level};2;{red};{green};{blue}")
    # Which of a band's six rows show a level, as bits: (bands, levels, columns of the image).
    bits = np.zeros((height // 6, SIXEL_LEVELS, image.shape[1]), np.uint8)
    bands, columns_of = np.ogrid[: bits.shape[0], : bits.shape[2]]
    for row in range(6):
        bits[bands, levels[down[row::6]], columns_of] |= 1 << row
    layers: dict[int, list[str]] = {}
    band_of, level_of = np.nonzero(bits.any(axis=2))
    texts = _runs(bits[band_of, level_of], edges)
    for band, level, text in zip(band_of.tolist(), level_of.tolist(), texts, strict=True):
        layers.setdefault(band, []).append(f"#{level}{text}")
    # No "-" after the last band: it would begin another one, below the picture.
    return "".join(out) + "-".join("$".join(each) for each in layers.values()) + "\x1b\\"


def _runs(rows: NDArray[np.uint8], edges: NDArray[np.int64]) -> list[str]:
    """Return each row of six-pixel columns (N, W) with equal neighbours counted together."""
    begins = np.ones(rows.shape, bool)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    row, column = np.nonzero(begins)
    first = np.append(True, row[1:] != row[:-1])
    last = np.roll(first, -1)
    ends = np.where(last, edges[-1], np.roll(edges[column], -1))
    blank = last & (rows[row, column] == 0)  # nothing more in this row
    lengths = np.where(blank, 0, ends - edges[column]).tolist()
    characters = (rows[row, column] + 63).tobytes().decode("ascii")
    texts = [
        f"!{length}{character}" if length > 3 else character * length
        for length, character in zip(lengths, characters, strict=True)
    ]
    starts = [*np.flatnonzero(first).tolist(), len(texts)]
    return ["".join(texts[start:end]) for start, end in itertools.pairwise(starts)]
