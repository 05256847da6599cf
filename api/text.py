"""Words for people: "1 frame", "3 frames"; texts of a file, fit for a terminal. Pure; any thread."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def count_noun(number: int, one: str, several: str = "") -> str:
    """Return a number with what it counts: `one`, or `several` (left out: `one` and an s)."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def strip_control(text: str) -> str:
    """Return a text whose control characters, but for line feeds and tabs, can do nothing to a terminal."""
    return _CONTROL.sub("\ufffd", text)
