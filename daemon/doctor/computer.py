"""The computer: memory for the engine, and a terminal that can show the dashboard."""

from __future__ import annotations

import os
import shutil
import sys

import psutil

from microdiffusion.config import Config
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.engine import Requirements, requirements_of
from microdiffusion.daemon.status import size

THEME = "Computer"
SHOWN = "µm ▀ ≈ ×"
"""Characters beyond ASCII that dashboard and messages print."""


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    return [
        Check(THEME, "memory", lambda: memory(memory_bytes(), requirements_of(config))),
        Check(THEME, "terminal", lambda: terminal(sys.stdout.encoding or "ascii", _terminal_size())),
    ]


def memory(available: int | None, need: Requirements | None) -> Finding:
    """Judge the memory by what the engine states that it needs."""
    if available is None:
        return ok("this system does not say how much there is")
    if need is None:
        return ok(f"{size(available)}; how much the engine needs depends on the frames")
    text = f"{size(available)}, the engine needs up to {size(need.engine_bytes)} {need.assumed}".rstrip()
    if available >= need.engine_bytes:
        return ok(text)
    level = warning if need.assumed else failure
    return level(
        text, "Use a smaller camera region (camera.width, camera.height) or fewer slices, or close programs."
    )


def terminal(encoding: str, window: tuple[int, int] | None) -> Finding:
    """Judge where mdd prints: its encoding and its columns and rows, None where it is no terminal."""
    if window is None:
        return ok(f"none: mdd serve logs lines instead of drawing ({encoding})")
    colours = "no colours (NO_COLOR)" if "NO_COLOR" in os.environ else "colours"
    text = f"{window[0]} x {window[1]}, {encoding}, {colours}"
    try:
        SHOWN.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        fix = "Use Windows Terminal, or set PYTHONUTF8=1 (chcp 65001 in cmd), or a UTF-8 locale."
        return warning(f"{text}: cannot show {SHOWN}", fix)
    if window[0] < 80 or window[1] < 24:
        return warning(text, "Enlarge the window to 80 x 24 or more for the dashboard.")
    return ok(text)


def _terminal_size() -> tuple[int, int] | None:
    return shutil.get_terminal_size() if sys.stdout.isatty() else None


def memory_bytes() -> int:
    """Return the memory that is free for programs."""
    return int(psutil.virtual_memory().available)
