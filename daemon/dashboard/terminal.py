"""A terminal's whole screen: lines are written where they changed, and everything is given back at the end.

`Terminal` owns the alternate screen, the cursor and line wrapping between `open` and `close`, and gives them
back also where the process ends by an exception or `sys.exit`, or is suspended (Ctrl-Z). Belongs to the
main thread. Works over whatever `rich.console.Console` writes to, which knows colours, size and encoding.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.color import ColorSystem
from rich.style import Style

from microdiffusion.text import strip_control

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.segment import Segment

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
# Terminals that know it draw what is between at once; the others ignore it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"

_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.STANDARD,
}


HOLE = "hole"
"""In a style's meta: these cells are a picture's, and are passed over."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture over the text: its cells, from row and column (from 0), and what draws it there."""

    row: int
    column: int
    rows: int
    columns: int
    data: str


class Terminal:
    """Draws lines of segments on the whole screen.

    Parameters
    ----------
    console : Console
    forget_pictures : str
        What to send before pictures go to other places.
    """

    def __init__(self, console: Console, *, forget_pictures: str = "") -> None:
        self._console = console
        self.forget_pictures = forget_pictures
        self._system = _SYSTEMS.get(console.color_system or "")
        self._plain = console.no_color or "NO_COLOR" in os.environ
        self._open = False
        self._drawn: list[str] = []
        self._pictures: list[Picture] = []
        self._extent = (0, 0, 0, 0)
        self._suspend = False
        self._before_suspend: Callable[[], None] = lambda: None
        self._after_suspend: Callable[[], object] = lambda: None
        self._handlers: dict[int, object] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, at this moment."""
        width, height = self._console.size
        return width, height

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """Columns and lines, width and height in pixels; 0 pixels where the system does not know."""
        return (*self.size, *_pixels(self._console))

    @property
    def cell(self) -> tuple[int, int] | None:
        """Height and width of a character in pixels, as far as the system knows; a border is left over."""
        columns, rows, width, height = self.extent
        cell = height // max(1, rows), width // max(1, columns)
        return cell if all(cell) else None

    def open(self) -> None:
        """Take the screen."""
        enable_windows_sequences()
        self._open = True
        self._drawn = []
        self._pictures = []
        self._write(_ENTER)
        atexit.register(self.close)

    def close(self) -> None:
        """Give it back."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._write(self.forget_pictures + _LEAVE)

    def watch_suspend(self, before: Callable[[], None], after: Callable[[], object]) -> None:
        """Give everything back while Ctrl-Z holds the process; until `unwatch_suspend`."""
        self._before_suspend, self._after_suspend = before, after
        stop = getattr(signal, "SIGTSTP", None)
        if stop is not None and threading.current_thread() is threading.main_thread():
            self._handlers[stop] = signal.signal(stop, self._on_suspend)

    def unwatch_suspend(self) -> None:
        """Leave Ctrl-Z to the system again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers = {}

    def draw(self, lines: list[list[Segment]], pictures: list[Picture] | None = None) -> None:
        """Show these lines, from the top, and the pictures over them."""
        if self._suspend:
            self._suspend_now()
        pictures = pictures or []
        out: list[str] = []
        places = [(each.row, each.column, each.rows, each.columns) for each in pictures]
        old = [(each.row, each.column, each.rows, each.columns) for each in self._pictures]
        extent = self.extent
        if extent != self._extent or places != old:
            self._extent = extent
            self._drawn, self._pictures = [], []
            out.append(self.forget_pictures + "\x1b[2J")
        columns, rows = extent[:2]
        ansi = [self._line(line, columns, beside=bool(pictures)) for line in lines[:rows]]
        for row, text in enumerate(ansi):
            if row >= len(self._drawn) or self._drawn[row] != text:
                out.append(f"\x1b[{row + 1};1H{text}")
        out += [f"\x1b[{row + 1};1H\x1b[2K" for row in range(len(ansi), len(self._drawn))]
        out += [
            f"\x1b[{each.row + 1};{each.column + 1}H{each.data}"
            for each in pictures
            if each not in self._pictures
        ]
        self._drawn, self._pictures = ansi, pictures
        if out:
            self._write(_BEGIN + "".join(out) + _END)

    def ask(self, text: str) -> None:
        """Send a question whose answer comes as input."""
        self._write(text)

    def _line(self, line: list[Segment], columns: int, *, beside: bool) -> str:
        """Return what writes a line over what was there, perhaps beside a picture."""
        beside = beside and any(segment.style is not None and HOLE in segment.style.meta for segment in line)
        # Cleared before, not after: the last cell of a full line would go with the rest. Beside a picture
        # only what is right of it all: clearing takes a Sixel picture away.
        parts = [] if beside else ["\x1b[2K"]
        for segment in line:
            style, text = segment.style, strip_control(segment.text)
            if beside and style is not None and HOLE in style.meta:
                parts.append(f"\x1b[{segment.cell_length}C" if segment.text else "")
            elif style is None or not style or self._system is None:
                parts.append(text)
            elif self._plain:
                parts.append(_colourless(style).render(text, color_system=self._system))
            else:
                parts.append(style.render(text, color_system=self._system))
        if beside and sum(segment.cell_length for segment in line) < columns:
            parts.append("\x1b[K")
        return "".join(parts)

    def _write(self, text: str) -> None:
        file = self._console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        try:
            file.write(text.encode(encoding, errors="replace").decode(encoding))
            file.flush()
        except (OSError, ValueError):
            # The terminal is gone or refuses, which is no reason to end a run. Should it come back, it is
            # drawn anew.
            self._extent, self._drawn, self._pictures = (0, 0, 0, 0), [], []

    def _on_suspend(self, *_: object) -> None:
        self._suspend = True  # a handler must not write: it may have come in the middle of a write

    def _suspend_now(self) -> None:
        self._suspend = False
        self._before_suspend()
        self.close()
        if sys.platform != "win32":
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell goes on; we do with `fg`
        self.open()
        self._after_suspend()


def _colourless(style: Style) -> Style:
    """Return bold, dim and reverse alone: they are no colours, and NO_COLOR lets them be."""
    return Style(bold=style.bold, dim=style.dim, reverse=style.reverse)


def _pixels(console: Console) -> tuple[int, int]:
    """Return width and height of the terminal's text in pixels; 0 where the system does not know."""
    if sys.platform == "win32":
        return 0, 0
    import fcntl
    import struct
    import termios

    try:
        answer = fcntl.ioctl(console.file.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (OSError, ValueError, AttributeError):  # no terminal
        return 0, 0
    _, _, width, height = struct.unpack("HHHH", answer)
    return width, height


def enable_windows_sequences() -> None:
    """Have a Windows console obey escape sequences; the Windows Terminal does so anyway."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.GetStdHandle(-11)
        mode = ctypes.c_uint32()
        if kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            kernel.SetConsoleMode(handle, mode.value | 0x0004)
