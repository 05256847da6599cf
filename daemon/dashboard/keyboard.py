"""Keys as they are pressed, by name, on POSIX (termios) and on Windows (msvcrt).

`Keyboard` owns the mode of the terminal's input between `open` and `close`, and leaves it as it was: also
where the process ends by an exception or `sys.exit`. Belongs to the main thread. Without a terminal, or in
the background, there are no keys and nothing is touched: the shell stops who reads in the background.
"""

from __future__ import annotations

import atexit
import codecs
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

POLL_S = 0.03
"""How often Windows is asked for a key: its console has nothing to wait on that a pipe would share."""

_SEQUENCES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[Z": "shift-tab",
    "\x1b[5~": "page-up",
    "\x1b[6~": "page-down",
}
_NAMES = {
    "\t": "tab",
    "\r": "enter",
    "\n": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
    " ": "space",
}
# A key's sequence (CSI or SS3), or a terminal's late answer to a question (OSC, APC or DCS).
_ESCAPED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~]|[\]_P][^\x07\x1b]*(?:\x07|\x1b\\))", re.DOTALL)
_WINDOWS = {"H": "up", "P": "down", "M": "right", "K": "left", "I": "page-up", "Q": "page-down"}


def names_of(text: str) -> list[str]:
    """Return the keys in what a terminal sent: characters as they are, others by name."""
    keys: list[str] = []
    place = 0
    while place < len(text):
        found = _ESCAPED.match(text, place)
        if found is not None:
            name = _SEQUENCES.get(found[0].replace("\x1bO", "\x1b["))
            keys += [name] if name else []
            place = found.end()
            continue
        character = text[place]
        place += 1
        if character in _NAMES:
            keys.append(_NAMES[character])
        elif character.isprintable():
            keys.append(character)
    return keys


class Keyboard:
    """Reads keys from the process's own terminal."""

    def __init__(self) -> None:
        self._open = False
        self._fd = -1
        self._before: Any = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def open(self) -> bool:
        """Take single keys from now on; False where there are none to be had."""
        if self._open:
            return True
        try:
            self._fd = sys.stdin.fileno()
            if not os.isatty(self._fd):
                return False
            self._begin()
        except (OSError, ValueError, AttributeError):  # closed, replaced, or no terminal after all
            return False
        self._open = True
        atexit.register(self.close)
        return True

    def close(self) -> None:
        """Give the input back as it was."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._end()

    @property
    def works(self) -> bool:
        """Whether keys can be had now."""
        return self._open and self._is_ours()

    def read(self, timeout_s: float) -> list[str]:
        """Return the keys that were pressed, waiting for at most `timeout_s` for the first."""
        text = self.read_text(timeout_s)
        return names_of(text)

    def read_text(self, timeout_s: float) -> str:
        """Return what the terminal sent as it is."""
        return self._read(timeout_s) if self.works else ""

    if sys.platform == "win32":

        def _begin(self) -> None:
            pass

        def _end(self) -> None:
            pass

        def _is_ours(self) -> bool:
            return True

        def _read(self, timeout_s: float) -> str:
            import msvcrt

            deadline = time.monotonic() + timeout_s
            text = ""
            while True:
                while msvcrt.kbhit():
                    character = msvcrt.getwch()
                    if character in ("\x00", "\xe0"):  # a key without a character: its code follows
                        code = _WINDOWS.get(msvcrt.getwch(), "")
                        text += next((keys for keys, name in _SEQUENCES.items() if name == code), "")
                    elif character == "\x03":
                        signal.raise_signal(signal.SIGINT)  # whoever hears Ctrl-C hears of this one, too
                    else:
                        text += character
                if text or time.monotonic() >= deadline:
                    return text
                time.sleep(POLL_S)

    else:

        def _begin(self) -> None:
            import termios
            import tty

            if not self._is_ours():
                raise OSError("in the background")
            self._before = termios.tcgetattr(self._fd)
            # Not raw: Ctrl-C, Ctrl-Z and Ctrl-\\ stay what they are.
            tty.setcbreak(self._fd, termios.TCSADRAIN)

        def _end(self) -> None:
            import contextlib
            import termios

            with contextlib.suppress(termios.error, OSError):  # the terminal is gone
                if self._is_ours():
                    termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

        def _is_ours(self) -> bool:
            try:
                return os.tcgetpgrp(self._fd) == os.getpgrp()
            except OSError:
                return False

        def _read(self, timeout_s: float) -> str:
            import select

            ready, _, _ = select.select([self._fd], [], [], max(0.0, timeout_s))
            if not ready:
                return ""
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                data = b""
            if not data:  # the terminal was closed
                self.close()
                return ""
            return self._decoder.decode(data)
