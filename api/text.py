"""Text for people: counted nouns, and strings that are safe to print. Pure functions, safe on any thread."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def count_noun(number: int, one: str, several: str = "") -> str:
    """Return "1 frame", "3 frames": a number with its noun; the plural is `one` and an s unless given."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def strip_control(text: str) -> str:
    """Replace control characters, which could steer a terminal, and halves of characters."""
    return _CONTROL.sub("\ufffd", text)
