"""Progress of long work: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from rich.progress import Progress as RichProgress


class ProgressBar:
    """A context; call it with what is done and the total. The bar appears on stderr with the first call.

    Parameters
    ----------
    title : str
        What is being done.
    unit : str
        What is counted; empty where shares of 1 are.
    quiet : bool
        Show nothing.
    every_s : float, optional
        Without a terminal, print a line this often, and one at the end after these; left out: none.
    clock : callable
        Seconds, for tests.
    """

    def __init__(
        self,
        title: str,
        unit: str = "",
        *,
        quiet: bool = False,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._unit, self._clock = title, unit, clock
        self._every_s = None if quiet else every_s
        self._first = self._first_s = self._said_s = 0.0
        self._begun = ""
        self._bar: RichProgress | None = None
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )

    @property
    def shown(self) -> bool:
        """True where there is a bar."""
        return self._bar is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: float, total: float = 1.0, note: str = "", *, title: str = "") -> None:
        """Show that `done` of `total` is done; another `title` begins another bar."""
        unit = "" if title else self._unit
        title = title or self._title
        text = f"{done:.0%}" if total == 1.0 and not unit else f"{done:,} of {total:,} {unit}".rstrip()
        text = f"{text}, {note}" if note else text
        if self._bar is not None:
            self._draw(title, done, total, text)
        elif self._every_s is not None:
            self._line(title, done, total, text)

    def _draw(self, title: str, done: float, total: float, text: str) -> None:
        bar = self._bar
        if bar is None or (title != self._begun and done >= total):  # there was nothing to do
            return
        if title != self._begun:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(title, total=total, text=text)
            bar.start()
            self._begun = title
        bar.update(bar.task_ids[0], completed=done, total=total, text=text)

    def _line(self, title: str, done: float, total: float, text: str) -> None:
        now = self._clock()
        if title != self._begun or done <= self._first:
            # How long the first one took is unknown: it began before anybody was told.
            self._begun, self._first, self._first_s, self._said_s = title, done, now, now
            return
        ends = done >= total and self._said_s > self._first_s  # a short stage needs no line at all
        if ends or now >= self._said_s + (self._every_s or 0.0):
            self._said_s = now
            left = (now - self._first_s) / (done - self._first) * (total - done)
            say(f"{title}: {text}" + (f", {duration(left)} left" if left > 0 else ""))


def duration(seconds: float) -> str:
    """Return "40 s", "12 min", "3.4 h" or "5.1 days"."""
    for size, unit in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
