"""The frames of all runs that a daemon ever had, from what each open run says of its own.

A run's figures are known while it is open; what it added is kept when it is gone, so the totals never fall.
Plain state, guarded by its owner.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from microdiffusion.daemon.status.models import FrameTotals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microdiffusion.daemon.status.models import RunSummary

_COLUMNS = {"received": "frames", "dropped": "dropped", "refused": "refused", "duplicate": "duplicate"}
"""Name of a total, and of the run's figure that it sums."""


class FrameSums:
    """Adds up what runs say of their frames."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._last: dict[str, dict[str, int]] = {}

    def take(self, runs: Iterable[RunSummary]) -> None:
        """Take in how the runs stand that are open now; those that are not named are over."""
        last: dict[str, dict[str, int]] = {}
        for run in runs:
            now = {name: int(getattr(run, column)) for name, column in _COLUMNS.items()}
            # What a run that is gone on with had already was counted by the daemon before.
            before = self._last.get(run.id, now if run.resumed else {})
            for name, value in now.items():
                self._sums[name] += max(0, value - before.get(name, 0))
            last[run.id] = now
        self._last = last

    def totals(self) -> FrameTotals:
        """Return the sums."""
        return FrameTotals(**self._sums)
