"""Which frame numbers have come: a set that stays small however long the run is.

Numbers are kept as disjoint ranges; frames that come in order extend the last one, so memory grows with the
number of gaps, not of frames. Owned by one thread.
"""

from __future__ import annotations

from bisect import bisect_right


class SeqSet:
    """A set of non-negative integers that come mostly in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []  # exclusive
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, seq: int) -> bool:
        at = bisect_right(self._starts, seq) - 1
        return at >= 0 and seq < self._stops[at]

    @property
    def highest(self) -> int:
        """The largest number in the set, -1 where it is empty."""
        return self._stops[-1] - 1 if self._stops else -1

    def add(self, seq: int) -> bool:
        """Add a number; False where it was there already."""
        at = bisect_right(self._starts, seq)
        if at and seq < self._stops[at - 1]:
            return False
        self._count += 1
        joins_left = at > 0 and self._stops[at - 1] == seq
        joins_right = at < len(self._starts) and self._starts[at] == seq + 1
        if joins_left and joins_right:
            self._stops[at - 1] = self._stops.pop(at)
            del self._starts[at]
        elif joins_left:
            self._stops[at - 1] = seq + 1
        elif joins_right:
            self._starts[at] = seq
        else:
            self._starts.insert(at, seq)
            self._stops.insert(at, seq + 1)
        return True
