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
        self._size = (0, 0)
        self._suspend = False
        self._before_suspend: Callable[[], None] = lambda: None
        self._after_suspend: Callable[[], object] = lambda: None
        self._handlers: dict[int, object] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, at this moment."""
        width, height = self._console.size
        return width, height

    def open(self) -> None:
        """Take the screen."""
        _enable_windows_sequences()
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
        if self.size != self._size or (places != old and old):
            self._size = self.size
            self._drawn, self._pictures = [], []
            out.append(self.forget_pictures + "\x1b[2J")
        ansi = [self._line(line) for line in lines[: self.size[1]]]
        for row, text in enumerate(ansi):
            if row >= len(self._drawn) or self._drawn[row] != text:
                # Cleared before, not after: the last cell of a full line would go with the rest.
                out.append(f"\x1b[{row + 1};1H\x1b[2K{text}")
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

    def _line(self, line: list[Segment]) -> str:
        parts = []
        for segment in line:
            style = segment.style
            if style is None or not style or self._system is None:
                parts.append(segment.text)
            elif self._plain:
                parts.append(_colourless(style).render(segment.text, color_system=self._system))
            else:
                parts.append(style.render(segment.text, color_system=self._system))
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
            self._size, self._drawn, self._pictures = (0, 0), [], []

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


def _enable_windows_sequences() -> None:
    """Have a Windows console obey escape sequences; the Windows Terminal does so anyway."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.GetStdHandle(-11)
        mode = ctypes.c_uint32()
        if kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            kernel.SetConsoleMode(handle, mode.value | 0x0004)
