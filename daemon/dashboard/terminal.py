"""The terminal: its whole screen, and single keys.

`Terminal` takes the alternate screen, the cursor, line wrapping and the input's mode between `open` and
`close`, and restores them also where the process ends by an exception or `sys.exit`, or is suspended
(Ctrl-Z). Only what changed is written. Belongs to the main thread. Colours, size and encoding are those of
the `rich.console.Console` that it writes to.
"""

from __future__ import annotations

import atexit
import codecs
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import COLOR_SYSTEMS, Console
from rich.segment import Segment

from microdiffusion.text import strip_control

Line = list[Segment]

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
# Terminals that know it draw what is between at once; the others ignore it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_KEYS = {
    "\t": "tab",
    "\x1b[Z": "shift-tab",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\r": "enter",
    "\n": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
    " ": "space",
}
# A key's sequence (CSI or SS3), a terminal's late answer to a question (OSC, APC, DCS), or one character.
_TOKEN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~]|[\]_P][^\x07\x1b]*(?:\x07|\x1b\\))|.", re.DOTALL)
PICTURE = "picture"
"""In a style's meta: the number of the picture that these cells belong to."""

Place = tuple[int, int]
"""Row and column, from 0."""


@dataclass(frozen=True, slots=True)
class TerminalPicture:
    """A picture over the text: how many cells it covers, and the sequence that draws it at the cursor."""

    rows: int
    columns: int
    data: str


class Terminal:
    """Draws lines of segments on the whole screen, and reads keys.

    `forget_pictures` is sent before pictures move.
    """

    def __init__(self, console: Console) -> None:
        self.forget_pictures = ""
        self._console = console
        self._system = COLOR_SYSTEMS.get(console.color_system or "")
        self._input = _Input()
        self._open = False
        self._drawn: dict[Place, str] = {}
        self._extent = (0, 0, 0, 0)
        self._suspend = False
        self._suspend_handler: Any = None

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """Columns and lines, width and height in pixels, now; 0 pixels where the system does not know."""
        return (*self._console.size, *_pixels(self._console))

    @property
    def cell(self) -> tuple[int, int] | None:
        """Height and width of a character in pixels, if the system knows; a border is left over."""
        columns, rows, width, height = self.extent
        cell = height // max(1, rows), width // max(1, columns)
        return cell if all(cell) else None

    def open(self) -> None:
        """Take the screen and the keys."""
        enable_windows_sequences()
        self._open = True
        self._drawn = {}
        self.write(_ENTER)
        self._input.open()
        atexit.register(self.close)
        if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
            self._suspend_handler = signal.signal(signal.SIGTSTP, self._on_suspend)

    def close(self) -> None:
        """Restore both."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        if sys.platform != "win32" and self._suspend_handler is not None:
            signal.signal(signal.SIGTSTP, self._suspend_handler)
        self._input.close()
        self.write(self.forget_pictures + _LEAVE)

    @property
    def has_keys(self) -> bool:
        """True where keys can be read: not without a terminal, and not in the background."""
        return self._input.works

    def keys(self, timeout_s: float) -> list[str]:
        """Return the keys that were pressed, waiting at most `timeout_s` for the first."""
        return names_of(self.read(timeout_s))

    def read(self, timeout_s: float) -> str:
        """Return what the terminal sent, unchanged; without keys there is nothing to wait for but time."""
        if self.has_keys:
            return self._input.read(timeout_s)
        time.sleep(timeout_s)
        return ""

    def draw(self, lines: Sequence[Line], pictures: Sequence[TerminalPicture] = ()) -> None:
        """Show these lines, from the top, and the pictures over the cells that are marked as theirs."""
        if self._suspend:
            self._suspend_now()
        extent = self.extent
        columns, rows = extent[:2]
        padded = [Segment.adjust_line_length(line, columns) for line in lines[:rows]]
        pieces = self._pieces(padded, pictures)
        out: list[str] = []
        if extent != self._extent or pieces.keys() != self._drawn.keys():
            self._extent, self._drawn = extent, {}
            out.append(self.forget_pictures + "\x1b[2J")
        out += [
            f"\x1b[{row + 1};{column + 1}H{text}"
            for (row, column), text in pieces.items()
            if text and text != self._drawn.get((row, column))
        ]
        self._drawn = pieces
        if out:
            self.write(_BEGIN + "".join(out) + _END)

    def write(self, text: str) -> None:
        """Write a sequence."""
        file = self._console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        try:
            file.write(text.encode(encoding, errors="replace").decode(encoding))
            file.flush()
        except (OSError, ValueError):
            self._drawn = {}  # gone, which is no reason to end a run; if it comes back, all is redrawn

    def _pieces(self, lines: Sequence[Line], pictures: Sequence[TerminalPicture]) -> dict[Place, str]:
        """Return what to write where: text, half blocks, and each picture at its first cell."""
        pieces: dict[Place, str] = {}
        drawn: set[int] = set()
        for row, line in enumerate(lines):
            column = 0
            for kind, group in itertools.groupby(line, _kind_of):
                segments = list(group)
                width = Segment.get_line_length(segments)
                if not isinstance(kind, int):
                    pieces[row, column] = self._text(segments)
                elif kind not in drawn:
                    drawn.add(kind)
                    picture = pictures[kind]
                    whole = width == picture.columns and row + picture.rows <= len(lines)
                    pieces[row, column] = picture.data if whole else ""
                column += width
        return pieces

    def _text(self, segments: list[Segment]) -> str:
        parts = []
        for segment in Segment.remove_color(segments) if self._console.no_color else segments:
            text = strip_control(segment.text)
            if segment.style and self._system is not None:
                text = segment.style.render(text, color_system=self._system)
            parts.append(text)
        return "".join(parts)

    def _on_suspend(self, *_: object) -> None:
        self._suspend = True  # a handler must not write: it may have come in the middle of a write

    def _suspend_now(self) -> None:
        self._suspend = False
        self.close()
        if sys.platform != "win32":
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell takes over; `fg` resumes here
        self.open()


def _kind_of(segment: Segment) -> int | str:
    """Return the number of its picture, or whether it is text or half blocks, which are written apart."""
    number: int | None = segment.style.meta.get(PICTURE) if segment.style is not None else None
    if number is not None:
        return number
    return "blocks" if segment.text.startswith("▀") else "text"


def names_of(text: str) -> list[str]:
    """Return the keys in what a terminal sent: printable characters as they are, others by name."""
    keys = (_KEYS.get(token.replace("\x1bO", "\x1b["), token) for token in _TOKEN.findall(text))
    return [key for key in keys if key.isprintable()]


if sys.platform == "win32":
    import ctypes
    import msvcrt

    def enable_windows_sequences() -> None:
        """Have a Windows console obey escape sequences; the Windows Terminal does so anyway."""
        kernel = ctypes.windll.kernel32
        handle = kernel.GetStdHandle(-11)
        mode = ctypes.c_uint32()
        if kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            kernel.SetConsoleMode(handle, mode.value | 0x0004)

    def _pixels(console: Console) -> tuple[int, int]:
        return 0, 0

    class _Input:
        """Keys of the console; it has nothing to wait on, so it is asked every `POLL_S`."""

        POLL_S = 0.03

        def __init__(self) -> None:
            self.works = False

        def open(self) -> None:
            self.works = sys.stdin is not None and sys.stdin.isatty()

        def close(self) -> None:
            self.works = False

        def read(self, timeout_s: float) -> str:
            deadline = time.monotonic() + timeout_s
            text = ""
            while True:
                while msvcrt.kbhit():
                    character = msvcrt.getwch()
                    if character in ("\x00", "\xe0"):  # a key without a character: its code follows
                        text += {"M": "\x1b[C", "K": "\x1b[D"}.get(msvcrt.getwch(), "")
                    elif character == "\x03":
                        signal.raise_signal(signal.SIGINT)
                    else:
                        text += character
                if text or time.monotonic() >= deadline:
                    return text
                time.sleep(self.POLL_S)

else:
    import fcntl
    import select
    import struct
    import termios
    import tty

    def enable_windows_sequences() -> None:
        """Do nothing: other systems' terminals obey escape sequences."""

    def _pixels(console: Console) -> tuple[int, int]:
        """Return width and height of the terminal's text in pixels; 0 where the system does not know."""
        try:
            answer = fcntl.ioctl(console.file.fileno(), termios.TIOCGWINSZ, bytes(8))
        except (OSError, ValueError, AttributeError):  # no terminal
            return 0, 0
        _, _, width, height = struct.unpack("HHHH", answer)
        return width, height

    class _Input:
        """Keys of the process's terminal; in the background none: the shell stops whoever reads there."""

        def __init__(self) -> None:
            self._fd = -1
            self._mode: Any = None
            self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

        def open(self) -> None:
            try:
                self._fd = sys.stdin.fileno()
                if self._in_foreground():
                    self._mode = termios.tcgetattr(self._fd)
                    tty.setcbreak(self._fd, termios.TCSADRAIN)  # Ctrl-C and Ctrl-Z keep their meaning
            except (OSError, ValueError, AttributeError, termios.error):  # closed, replaced, or no terminal
                self._mode = None

        def close(self) -> None:
            mode, self._mode = self._mode, None
            if mode is not None and self._in_foreground():
                try:
                    termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
                except (OSError, termios.error):  # the terminal is gone
                    return

        @property
        def works(self) -> bool:
            return self._mode is not None and self._in_foreground()

        def read(self, timeout_s: float) -> str:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, timeout_s))
            if not ready:
                return ""
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                data = b""
            if not data:  # the terminal was closed
                self._mode = None
            return self._decoder.decode(data)

        def _in_foreground(self) -> bool:
            try:
                return os.tcgetpgrp(self._fd) == os.getpgrp()
            except OSError:
                return False
