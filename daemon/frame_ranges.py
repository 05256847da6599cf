"""The set of frame numbers that have come: it stays small however long the run is.

Numbers are kept as disjoint ranges in two arrays of machine integers; frames that come in order extend the
last range, so memory grows with the number of gaps (16 bytes each), not of frames. Changed and searched by
one thread; `count`, `highest` and the length may be asked from any.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from threading import Lock

import numpy as np


class FrameRanges:
    """A set of non-negative integers below 2^63 that come mostly in order; `numbers` are its first ones."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._starts = array("q")
        self._stops = array("q")  # exclusive
        self._count = 0
        self._lock = Lock()
        for number in numbers:
            self.add(number)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, seq: int) -> bool:
        at = bisect_right(self._starts, seq) - 1
        return at >= 0 and seq < self._stops[at]

    @property
    def highest(self) -> int:
        """The largest number in the set, -1 where it is empty."""
        return self._stops[-1] - 1 if self._stops else -1

    @property
    def ranges(self) -> int:
        """The number of ranges of consecutive numbers."""
        return len(self._starts)

    def count(self, start: int, stop: int) -> int:
        """Return how many numbers of ``range(start, stop)`` are in the set."""
        with self._lock:  # for a copy alone: whoever adds must not wait for the sum
            first = max(0, bisect_right(self._starts, start) - 1)
            last = bisect_left(self._starts, stop)
            starts, stops = self._starts[first:last], self._stops[first:last]
        lengths = np.minimum(np.frombuffer(stops, np.int64), stop) - np.maximum(
            np.frombuffer(starts, np.int64), start
        )
        return int(np.maximum(lengths, 0).sum())

    def add(self, seq: int) -> bool:
        """Add a number; False where it was there already."""
        at = bisect_right(self._starts, seq)
        if at and seq < self._stops[at - 1]:
            return False
        with self._lock:
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
