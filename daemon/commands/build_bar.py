"""How far an engine's build is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import say

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_EVERY_S = 10.0


class BuildBar:
    """A context; call it with the share (0 to 1) that is done. Nothing is shown before the first call.

    Parameters
    ----------
    title : str
        What is being built.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._title = title
        self._task = None if self._bar is None else self._bar.add_task(title, total=1.0, visible=False)
        self._said_s = 0.0

    def __enter__(self) -> Self:
        self._said_s = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, share: float) -> None:
        """Show that so much is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=share, visible=True)
        elif time.monotonic() - self._said_s >= _EVERY_S:
            self._said_s = time.monotonic()
            say(f"{self._title}: {100 * share:.0f} %")
