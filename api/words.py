"""Numbers in sentences: "1 frame", "3 frames". Pure; any thread."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with what it counts: `one`, or `several` (left out: `one` and an s)."""
    return f"{number} {one if number == 1 else several or one + 's'}"
