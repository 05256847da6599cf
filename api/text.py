"""Text for people: counted nouns, commands to paste, strings safe to print. Safe on any thread."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

IN_WORDS = 5.0
"""An error that is so many times the noise says nothing: frames without noise, or of no specimen."""
USUAL_ERROR = "1 to 3 is usual"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def count_noun(number: int, one: str, several: str = "") -> str:
    """Return "1 frame", "3 frames": a number with its noun; the plural is `one` and an s unless given."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def in_noise(error: float) -> str:
    """Return an error in units of the noise; what noise cannot be the measure of is not given as a number."""
    return f"> {IN_WORDS:g} × noise" if error > IN_WORDS else f"{error:.2f} × noise"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean frames?)" where a known name is much like `name`; "" where none is."""
    from difflib import get_close_matches  # not for every start of mdd

    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def strip_control(text: str) -> str:
    """Replace control characters, which could steer a terminal, and halves of characters."""
    return _CONTROL.sub("\ufffd", text)


def markdown_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    titles = list(titles)
    return [line(titles), "|" + "---|" * len(titles), *map(line, rows)]


def encodable(text: str) -> str:
    """Replace halves of characters: what a file system's names that are not UTF-8 come as."""
    return text.encode("utf-8", "replace").decode()


def command_line(*words: object) -> str:
    """Return a command as this system's shell takes it, whatever its files are called.

    A `Path` that begins with a dash is no option.
    """
    plain = [f"./{word}" if isinstance(word, Path) and str(word)[0] == "-" else str(word) for word in words]
    if os.name != "nt":
        return shlex.join(plain)
    import subprocess  # not for every start of mdd

    return subprocess.list2cmdline(plain)
