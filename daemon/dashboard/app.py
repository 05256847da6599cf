"""The live dashboard: draws every snapshot on the whole terminal, and takes keys.

Runs on the thread that calls `show` and `wait` (the main thread); owns no thread of its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from microdiffusion.config import DashboardConfig
from microdiffusion.daemon.dashboard.preview import FORGET_KITTY, Painter, find_painter
from microdiffusion.daemon.dashboard.screen import screen
from microdiffusion.daemon.dashboard.state import Choices
from microdiffusion.daemon.dashboard.terminal import Terminal
from microdiffusion.daemon.status import StatusSnapshot
from microdiffusion.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from microdiffusion.daemon.dashboard.state import Request
    from microdiffusion.daemon.signals import StopRequest
    from microdiffusion.daemon.status import Preview

    Perform = Callable[[str, str], str]

_LOOK_S = 0.25  # how soon a stop request is seen while keys are waited for
MESSAGE_S = 6.0
"""Time that the last line shows the answer to a key."""


class LiveDashboard:
    """Draws snapshots between __enter__ and __exit__, which restores the terminal.

    Parameters
    ----------
    perform : callable, optional
        Carries out a command and a value ("quit" among them) and returns an answer, now or later; None:
        the daemon takes no commands from here. A `UserError` is a refusal.
    asks_to_quit : bool
        Whether quitting has to be confirmed.
    """

    def __init__(
        self,
        config: DashboardConfig | None = None,
        *,
        perform: Perform | None = None,
        asks_to_quit: bool = False,
        console: Console | None = None,
    ) -> None:
        self._config = config or DashboardConfig()
        self._console = console or Console()
        self._perform = perform
        self.choices = Choices(commands=perform is not None, asks_to_quit=asks_to_quit)
        self._terminal = Terminal(self._console)
        has_blocks = self._console.encoding.lower().startswith("utf")
        # Half blocks take 256 colours to be told apart.
        colours = self._console.color_system in ("256", "truecolor") and not self._console.no_color
        self._painter = Painter("blocks" if colours and has_blocks else "none")
        self._previews: dict[str, Preview] = {}
        self._newest = ""
        self._snapshot = StatusSnapshot()
        self._extent = (0, 0, 0, 0)
        self._said_s = 0.0

    def allow(self, perform: Perform | None) -> None:
        """Set who carries out commands from now on; None: nobody."""
        self._perform = perform
        self.choices.commands = perform is not None

    def show(self, snapshot: StatusSnapshot) -> None:
        """Draw."""
        if snapshot.preview is not None:
            # One that is sent again is not news: the newest stays the one that came last.
            if self._previews.get(snapshot.session) != snapshot.preview:
                self._newest = snapshot.session
            self._previews[snapshot.session] = snapshot.preview
        self._snapshot = snapshot
        self._draw()

    def wait(self, timeout_s: float, stopping: StopRequest | None = None) -> None:
        """Wait until the next snapshot is due or `stopping` is set, and obey the keys that are pressed."""
        deadline = time.monotonic() + timeout_s
        while stopping is None or not stopping.is_set():
            left = max(0.0, deadline - time.monotonic())
            for key in self._terminal.keys(min(left, _LOOK_S)):
                self.press(key)
            if time.monotonic() >= deadline:
                return

    def press(self, key: str) -> None:
        """Obey a key, and draw."""
        request = self.choices.press(key, self._snapshot, self._previews)
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
        self._find_painter()
        return self

    def __exit__(self, *_: object) -> None:
        self._terminal.close()

    def _find_painter(self) -> None:
        """Ask the terminal for pictures, at the start and whenever its window or its characters change."""
        setting = self._config.graphics
        if setting == "none":
            self._painter = Painter("none")
        elif setting != "blocks" and not self._console.no_color:
            found = find_painter(self._terminal, setting)
            if found.graphics in ("kitty", "sixel"):
                self._painter = found
                self._terminal.forget_pictures = FORGET_KITTY if found.graphics == "kitty" else ""
        self._extent = self._terminal.extent

    def _ask(self, request: Request) -> None:
        if self._perform is None:
            raise KeyboardInterrupt  # nobody to ask, so the request is to quit
        try:
            self.say(self._perform(request.command, request.value))
        except UserError as error:
            self.say(str(error))

    def _draw(self) -> None:
        choices = self.choices
        if choices.message and time.monotonic() - self._said_s > MESSAGE_S:
            choices.message = ""
        if self._painter.graphics in ("kitty", "sixel") and self._terminal.extent != self._extent:
            self._find_painter()
        name = choices.session if choices.session in self._previews else self._newest
        shown = self._snapshot.model_copy(update={"preview": self._previews.get(name), "session": name})
        lines = screen(
            shown,
            *self._terminal.extent[:2],
            painter=self._painter,
            choices=choices,
            preview=self._config.preview,
        )
        self._terminal.draw(lines, self._painter.pictures)
