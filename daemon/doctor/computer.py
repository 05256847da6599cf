"""The computer: memory for the engine, a clock to rely on, a terminal that can show the dashboard."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from microdiffusion.config import Config
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.requirements import Need, need_of
from microdiffusion.daemon.doctor.run import Check
from microdiffusion.daemon.status import size

THEME = "Computer"
SHOWN = "µm ▀ ≈ ×"
"""What the dashboard and the messages print beyond ASCII."""
_BEFORE_MDD = datetime(2025, 1, 1, tzinfo=UTC)
_TICKS = 1000


@dataclass(frozen=True, slots=True)
class Terminal:
    """What is known of where mdd prints."""

    is_terminal: bool
    columns: int
    rows: int
    encoding: str
    colours: str
    no_color: bool


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    return [
        Check(THEME, "memory", lambda: memory(*memory_bytes(), need_of(config))),
        Check(THEME, "clock", lambda: clock(datetime.now(UTC).astimezone(), _backward_ticks())),
        Check(THEME, "terminal", lambda: terminal(_terminal())),
    ]


def memory(available: int | None, of_which: str, need: Need | None) -> Finding:
    """Judge the memory, "free" or "in all", by what the engine states that it takes."""
    if available is None:
        return ok("memory", "this system does not say how much there is")
    text = f"{size(available)} {of_which}"
    if need is None:
        return ok("memory", f"{text}; the frames that come decide how much the engine takes")
    text += f", the engine takes up to {size(need.engine_bytes)}"
    if need.assumed:
        text += f" {need.assumed}"
    if available < need.engine_bytes:
        report = warning if need.assumed else failure
        return report(
            "memory",
            text,
            "Use a smaller camera region (camera.width, camera.height), fewer slices, or end other programs.",
        )
    return ok("memory", text)


def clock(now: datetime, backward: int) -> Finding:
    """Judge the clock; `backward`: how often the steady one was seen to go back."""
    utc = now.astimezone(UTC)
    text = f"{now:%Y-%m-%d %H:%M} local ({now.tzname() or 'no time zone'}), {utc:%H:%M} UTC"
    if backward:
        return failure(
            "clock",
            f"{text}: the steady clock goes back",
            "Restart the computer, or leave the virtual machine.",
        )
    if utc < _BEFORE_MDD:
        return warning("clock", text, "Set the date: run files and their names carry it.")
    return ok("clock", text)


def terminal(found: Terminal) -> Finding:
    """Judge the terminal by what the dashboard wants."""
    if not found.is_terminal:
        return ok("terminal", f"none: mdd serve logs lines instead of drawing ({found.encoding})")
    colours = "no colour (NO_COLOR)" if found.no_color else f"colours: {found.colours or 'none'}"
    text = f"{found.columns} x {found.rows}, {found.encoding}, {colours}"
    try:
        SHOWN.encode(found.encoding)
    except (UnicodeEncodeError, LookupError):
        return warning(
            "terminal",
            f"{text}: cannot show {SHOWN}",
            "Use Windows Terminal, or set PYTHONUTF8=1 (chcp 65001 in cmd), or a UTF-8 locale.",
        )
    if found.columns < 80 or found.rows < 24:
        return warning("terminal", text, "Make the window 80 x 24 or larger for the dashboard.")
    return ok("terminal", text)


def memory_bytes() -> tuple[int | None, str]:
    """Return the memory that is free for programs, or all where only that is told; and which."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024, "free"
    except OSError:
        pass
    if sys.platform == "win32":
        return _windows_memory_bytes(), "free"
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "in all"
    except (ValueError, OSError, AttributeError):
        return None, ""


if sys.platform == "win32":

    def _windows_memory_bytes() -> int | None:
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
            )

        status = Status(length=ctypes.sizeof(Status))
        ok = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.free) if ok else None

else:

    def _windows_memory_bytes() -> int | None:
        return None


def _backward_ticks() -> int:
    ticks = [time.monotonic() for _ in range(_TICKS)]
    return sum(later < earlier for earlier, later in pairwise(ticks))


def _terminal() -> Terminal:
    from rich.console import Console

    columns, rows = shutil.get_terminal_size()
    return Terminal(
        is_terminal=sys.stdout.isatty(),
        columns=columns,
        rows=rows,
        encoding=(sys.stdout.encoding or "ascii").lower(),
        colours=Console().color_system or "",
        no_color="NO_COLOR" in os.environ,
    )
