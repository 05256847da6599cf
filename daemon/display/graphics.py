"""Pictures where the terminal can draw them: Kitty's graphics protocol, or Sixel. Encoders and the question.

The question is asked once, at the start, and answered within a fraction of a second or not at all: Kitty's
own query, then the device attributes (DA1), which every terminal answers, and whose 4 means Sixel. tmux
answers for itself: 4 where it was built with Sixel, and nothing to Kitty's query, whose pictures it would not
keep in their pane. So what works through tmux is found, and what does not is not tried.
"""

from __future__ import annotations

import base64
import os
import re
import time
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from microdiffusion.daemon.halfblock import palette

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from microdiffusion.daemon.display.keyboard import Keyboard
    from microdiffusion.daemon.display.terminal import Terminal

Graphics = Literal["kitty", "sixel", "blocks", "none"]

ANSWER_S = 0.5
"""How long an answer may take: also over a slow line; a local terminal takes a few milliseconds."""
_QUESTION = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b[c"
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_CELL = re.compile(r"\x1b\[6;(\d+);(\d+)t")
CELL = (20, 10)
"""Height and width of a character in pixels, where the terminal does not say."""
CHUNK = 4096
SIXEL_LEVELS = 24
MOST_PIXELS = 480
"""Longest edge of a Sixel picture: it is encoded pixel by pixel, again for each volume."""
FORGET_KITTY = "\x1b_Ga=d,q=2\x1b\\"


def understood(answer: str) -> tuple[Graphics, tuple[int, int]]:
    """Return what a terminal can draw by its answers, and the height and width of its characters, pixels."""
    cell = CELL
    size = _CELL.search(answer)
    if size is not None and int(size[1]) and int(size[2]):
        cell = int(size[1]), int(size[2])
    if "\x1b_Gi=31;OK" in answer:
        return "kitty", cell
    attributes = _ATTRIBUTES.search(answer)
    if attributes is not None and "4" in attributes[1].split(";")[1:]:
        return "sixel", cell
    return "blocks", cell


def ask(terminal: Terminal, keyboard: Keyboard) -> tuple[Graphics, tuple[int, int]]:
    """Ask the terminal what it can draw; half blocks where it does not say."""
    if not keyboard.works or os.environ.get("TERM", "") in ("", "dumb", "linux"):
        return "blocks", CELL
    terminal.ask(_QUESTION)
    answer, deadline = "", time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0 and _ATTRIBUTES.search(answer) is None:
        answer += keyboard.read_text(left)
    return understood(answer)


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
    """Return what draws an image (H, W) uint8 over so many cells, from the cursor on."""
    height, width = rows * cell[0], columns * cell[1]
    scale = min(1.0, MOST_PIXELS / max(height, width))
    # Whole bands of six rows, and never below the last line of cells: that would scroll the screen.
    height, width = max(6, int(height * scale) // 6 * 6), max(1, int(width * scale))
    down = np.arange(height) * image.shape[0] // height
    across = np.arange(width) * image.shape[1] // width
    levels = image[down][:, across].astype(np.int64) * SIXEL_LEVELS // 256
    colours = palette(SIXEL_LEVELS)
    out = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for level in np.unique(levels).tolist():
        red, green, blue = (round(100 * int(part) / 255) for part in colours[level])
        out.append(f"#{level};2;{red};{green};{blue}")
    weights = (1 << np.arange(6))[:, None]
    for top in range(0, height, 6):
        band = levels[top : top + 6]
        for level in np.unique(band).tolist():
            bits = ((band == level) * weights[: len(band)]).sum(axis=0)
            out.append(f"#{level}{_runs(bits)}$")
        out.append("-")
    return "".join(out) + "\x1b\\"


def _runs(bits: NDArray[np.int64]) -> str:
    """Return a row of six-pixel columns, equal neighbours counted together."""
    starts = np.flatnonzero(np.diff(bits, prepend=-1))
    lengths = np.diff(np.append(starts, len(bits)))
    characters = [chr(63 + value) for value in bits[starts].tolist()]
    return "".join(
        f"!{length}{character}" if length > 3 else character * length
        for character, length in zip(characters, lengths.tolist(), strict=True)
    )
