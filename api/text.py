"""Text for people: counted nouns, commands to paste, strings safe to print. Safe on any thread."""

from __future__ import annotations

import os
import re
import shlex

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def count_noun(number: int, one: str, several: str = "") -> str:
    """Return "1 frame", "3 frames": a number with its noun; the plural is `one` and an s unless given."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def strip_control(text: str) -> str:
    """Replace control characters, which could steer a terminal, and halves of characters."""
    return _CONTROL.sub("\ufffd", text)


def command_line(*words: object) -> str:
    """Return a command as this system's shell takes it, whatever its files are called."""
    plain = [str(word) for word in words]
    if os.name != "nt":
        return shlex.join(plain)
    import subprocess  # not for every start of mdd

    return subprocess.list2cmdline(plain)
