"""How far a command is that works through volumes: a bar with the time left, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.progress import TaskID


class ProgressBar:
    """A context; call it with what is done and how much there is. It is drawn on stderr.

    Parameters
    ----------
    title : str
        What is being done.
    unit : str
        What is counted.
    quiet : bool
        Show nothing, on a terminal neither.
    """

    def __init__(self, title: str, unit: str = "volumes", *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        shown = console.is_terminal and not quiet
        self._bar = Progress(*columns, console=console, transient=True) if shown else None
        self._title = title
        self._task: TaskID | None = None

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._bar is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task(self._title, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
