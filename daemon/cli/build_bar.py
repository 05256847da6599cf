"""How far an engine's build is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli.dispatch import say

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.progress import TaskID

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
        self._task: TaskID | None = None
        self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, share: float) -> None:
        """Show that so much is done."""
        if self._bar is None:
            if time.monotonic() - self._said_s >= _EVERY_S:
                self._said_s = time.monotonic()
                say(f"{self._title}: {100 * share:.0f} %")
            return
        if self._task is None:
            if share >= 1:  # there was nothing to build
                return
            self._task = self._bar.add_task(self._title, total=1.0)
            self._bar.start()
        self._bar.update(self._task, completed=share)

    def close(self) -> None:
        """Take the bar away; twice does no harm."""
        if self._bar is not None:
            self._bar.stop()
