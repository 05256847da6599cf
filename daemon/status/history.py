"""Trends and histograms: the last few minutes for the dashboard, everything since the start for Prometheus.

Plain state without lock or clock; `StatusBoard` owns both objects and guards them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

KEPT = 120
"""Values of a trend: four minutes of the rate, the last so many volumes of the others."""
RATE_EVERY_S = 2.0

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper ends of the histograms' buckets, s; the last bucket has none."""


class History:
    """The latest values of a few figures, in order."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}
        self._sampled_s = -math.inf

    def add(self, name: str, value: float) -> None:
        """Add a value; one that is not finite is left out."""
        if math.isfinite(value):
            # Four digits are more than a trend shows, and keep the status small on the line.
            self._values.setdefault(name, deque(maxlen=KEPT)).append(float(f"{value:.4g}"))

    def sample(self, name: str, value: float, now_s: float) -> None:
        """Add a value that is always there, once every `RATE_EVERY_S`."""
        if now_s - self._sampled_s >= RATE_EVERY_S:
            self._sampled_s = now_s
            self.add(name, value)

    def values(self) -> dict[str, tuple[float, ...]]:
        """Return all of them, by name, the oldest first."""
        return {name: tuple(values) for name, values in self._values.items()}


@dataclass(slots=True)
class Histogram:
    """All measurements of one stage: how many fell into each of `BUCKETS_S` (and above), and their sum, s."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a measurement."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def copy(self) -> Histogram:
        """Return one that does not change."""
        return Histogram(list(self.counts), self.sum_s)
