"""Where snapshots are shown: live in a terminal, or as a line of the log every ten seconds.

Runs on the thread that calls `show` and `wait` (the main thread); owns no thread of its own. `view` says how
a snapshot looks, `display` knows terminals and keys; here they meet.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from microdiffusion.config import DashboardConfig
from microdiffusion.daemon.dashboard import graphics
from microdiffusion.daemon.dashboard.keyboard import Keyboard
from microdiffusion.daemon.dashboard.panels import screen
from microdiffusion.daemon.dashboard.preview import Painter
from microdiffusion.daemon.dashboard.state import Choices
from microdiffusion.daemon.dashboard.terminal import Terminal
from microdiffusion.daemon.status import StatusSnapshot, log_line, page
from microdiffusion.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from microdiffusion.daemon.dashboard.state import Request
    from microdiffusion.daemon.signals import StopRequest
    from microdiffusion.daemon.status import Preview

__all__ = ["Display", "LiveDashboard", "LogDisplay", "open_display", "page"]

LOG_INTERVAL_S = 10.0
_LOOK_S = 0.25  # how soon a wish to stop is seen while keys are waited for
MESSAGE_S = 6.0
"""How long the last line says what came of a key."""

logger = logging.getLogger("microdiffusion.daemon")


class Display(Protocol):
    """Shows snapshots between __enter__ and __exit__."""

    def show(self, snapshot: StatusSnapshot) -> None:
        """Show this one now, or leave it out."""

    def wait(self, timeout_s: float, stopping: StopRequest | None = None) -> None:
        """Wait until the next one is due, or until `stopping` is set."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_display(
    config: DashboardConfig, *, live: bool, perform: Callable[[str, str], str] | None = None
) -> Display:
    """Return the live dashboard, or the log where `live` is False (no terminal)."""
    return LiveDashboard(config, perform=perform, asks_to_quit=True) if live else LogDisplay()


class LiveDashboard:
    """Draws every snapshot on the whole terminal, takes keys, and gives the terminal back at the end.

    Parameters
    ----------
    config : DashboardConfig, optional
    perform : callable, optional
        Carries out a command and a value ("quit" among them) and returns what to say, now or later; None:
        nothing may be asked of the daemon from here. A `UserError` is a refusal.
    asks_to_quit : bool
        Whether to ask before leaving.
    console
        Where; None: stdout.
    """

    def __init__(
        self,
        config: DashboardConfig | None = None,
        *,
        perform: Callable[[str, str], str] | None = None,
        asks_to_quit: bool = False,
        console: Console | None = None,
    ) -> None:
        self._config = config or DashboardConfig()
        self._console = console or Console()
        self._perform = perform
        self.choices = Choices(commands=perform is not None, asks_to_quit=asks_to_quit)
        self._terminal = Terminal(self._console)
        self._keyboard = Keyboard()
        self._painter = Painter("blocks" if _has_colours(self._console) else "none")
        self._gallery: dict[str, Preview] = {}
        self._newest = ""
        self._snapshot = StatusSnapshot()
        self._extent = (0, 0, 0, 0)
        self._said_s = 0.0

    def allow(self, perform: Callable[[str, str], str] | None) -> None:
        """Say from now on who carries out commands; None: nobody."""
        self._perform = perform
        self.choices.commands = perform is not None

    def show(self, snapshot: StatusSnapshot) -> None:
        """Draw."""
        if snapshot.preview is not None:
            # Told again it is no news: the newest one stays the one that came last.
            if self._gallery.get(snapshot.session) != snapshot.preview:
                self._newest = snapshot.session
            self._gallery[snapshot.session] = snapshot.preview
        self._snapshot = snapshot
        self._draw()

    def wait(self, timeout_s: float, stopping: StopRequest | None = None) -> None:
        """Wait, and do what the keys that are pressed meanwhile ask for."""
        deadline = time.monotonic() + timeout_s
        while stopping is None or not stopping.is_set():
            left = max(0.0, deadline - time.monotonic())
            if not self._keyboard.works:
                _wait(left, stopping)
                return
            for key in self._keyboard.read(min(left, _LOOK_S)):
                self.press(key)
            if time.monotonic() >= deadline:
                return

    def press(self, key: str) -> None:
        """Do what a key asks for, and draw."""
        request = self.choices.press(key, self._snapshot, self._gallery)
        if request is not None:
            self._ask(request)
        self._said_s = time.monotonic()
        self._draw()

    def say(self, text: str) -> None:
        """Show a sentence in the last line for a while."""
        self.choices.message = text
        self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        self._terminal.open()
        self._keyboard.open()
        self._choose_graphics()
        self._terminal.watch_suspend(self._keyboard.close, self._keyboard.open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminal.unwatch_suspend()
        self._keyboard.close()
        self._terminal.close()

    def _choose_graphics(self) -> None:
        setting = self._config.graphics
        if setting == "none":
            self._painter = Painter("none")
        elif graphics.wants(setting, os.environ):
            found, cell = graphics.ask(self._terminal, self._keyboard)
            kind: graphics.Graphics = found if setting == "auto" else setting
            if kind in ("kitty", "sixel"):
                self._painter = Painter(kind, cell)
                self._terminal.forget_pictures = graphics.FORGET_KITTY if kind == "kitty" else ""
        self._extent = self._terminal.extent

    def _ask(self, request: Request) -> None:
        if self._perform is None and request.command != "quit":
            return
        if self._perform is None:
            raise KeyboardInterrupt
        try:
            self.say(self._perform(request.command, request.value))
        except UserError as error:
            self.say(str(error))

    def _draw(self) -> None:
        choices = self.choices
        if choices.message and time.monotonic() - self._said_s > MESSAGE_S:
            choices.message = ""
        if self._painter.graphics in ("kitty", "sixel") and self._terminal.extent != self._extent:
            self._choose_graphics()  # the window has another size, perhaps its characters too
        name = choices.session if choices.session in self._gallery else self._newest
        shown = self._snapshot.model_copy(update={"preview": self._gallery.get(name), "session": name})
        width, height = self._terminal.size
        lines = screen(
            shown,
            width,
            height,
            colour=_has_colours(self._console),
            bars=_has_blocks(self._console),
            preview=self._config.preview,
            choices=choices,
            painter=self._painter,
        )
        self._terminal.draw(lines, self._painter.placed(lines))


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

    def wait(self, timeout_s: float, stopping: StopRequest | None = None) -> None:
        """Wait."""
        _wait(timeout_s, stopping)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def _wait(timeout_s: float, stopping: StopRequest | None) -> None:
    if stopping is None:
        time.sleep(timeout_s)
    else:
        stopping.wait(timeout_s)


def _has_colours(console: Console) -> bool:
    """Whether half blocks can be told apart: 256 colours or more, and characters beyond Latin-1."""
    return (
        not console.no_color
        and "NO_COLOR" not in os.environ
        and console.color_system in ("256", "truecolor")
        and _has_blocks(console)
    )


def _has_blocks(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
