"""Where snapshots are shown: live in a terminal, or as a line of the log every ten seconds.

Runs on the thread that calls `show` (the daemon's main thread); owns no thread of its own. `view` says
how a snapshot looks; this module knows terminals and logs.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.live import Live
from rich.segment import Segment, Segments

from microdiffusion.daemon.status_text import log_line, page
from microdiffusion.daemon.view import screen

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import ConsoleOptions, RenderResult

    from microdiffusion.config import DashboardConfig
    from microdiffusion.daemon.snapshot import StatusSnapshot

__all__ = ["Display", "LiveDashboard", "LogDisplay", "open_display", "page"]

LOG_INTERVAL_S = 10.0

logger = logging.getLogger("microdiffusion.daemon")


class Display(Protocol):
    """Shows snapshots between __enter__ and __exit__."""

    def show(self, snapshot: StatusSnapshot) -> None:
        """Show this one now, or leave it out."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_display(config: DashboardConfig, *, live: bool) -> Display:
    """Return the live dashboard, or the log where `live` is False (no terminal)."""
    return LiveDashboard(preview=config.preview) if live else LogDisplay()


class LiveDashboard:
    """Draws every snapshot on the whole terminal, and gives the terminal back at the end.

    Parameters
    ----------
    preview
        Whether to draw the volume.
    console
        Where; None: stdout.
    """

    def __init__(self, *, preview: bool = True, console: Console | None = None) -> None:
        self._console = console or Console()
        self._preview = preview
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def show(self, snapshot: StatusSnapshot) -> None:
        """Draw."""
        self._live.update(_Screen(snapshot, self._preview), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class LogDisplay:
    """Logs a line every ten seconds and at each change of state, and every note when it comes."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._state = ""
        self._noted = -1

    def show(self, snapshot: StatusSnapshot) -> None:
        """Log what is new."""
        for note in snapshot.notes:
            if note.number > self._noted:
                self._noted = note.number
                logger.log(logging.getLevelNamesMapping()[note.level.upper()], note.text)
        if snapshot.elapsed_s >= self._next_s or snapshot.state != self._state:
            self._next_s = snapshot.elapsed_s + LOG_INTERVAL_S
            self._state = snapshot.state
            logger.info(log_line(snapshot))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Screen:
    """A snapshot that takes the size of the console it is drawn on."""

    def __init__(self, snapshot: StatusSnapshot, preview: bool) -> None:
        self._snapshot = snapshot
        self._preview = preview

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        lines = screen(
            self._snapshot, options.max_width, height, colour=_has_colours(console), preview=self._preview
        )
        blank = Segment(" ")
        for number, line in enumerate(lines):
            yield Segments(line or [blank])
            if number < len(lines) - 1:
                yield Segment.line()


def _has_colours(console: Console) -> bool:
    """Whether half blocks can be told apart: 256 colours or more, and characters beyond Latin-1."""
    return (
        not console.no_color
        and "NO_COLOR" not in os.environ
        and console.color_system in ("256", "truecolor")
        and console.encoding.lower().startswith("utf")
    )
