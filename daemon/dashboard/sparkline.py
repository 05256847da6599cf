"""A row of values as a row of small bars. Pure functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Return the latest values as at most `width` bars, the highest one full.

    The lowest is not zero but a tenth below the smallest value, or zero where that is close: a figure that
    hardly changes shows that, and one that doubles shows it too.
    """
    if width < 1:
        return ""
    shown = [value for value in values[-width:] if math.isfinite(value)]
    if not shown:
        return ""
    bars = ASCII if ascii_only else BARS
    low, high = min(shown), max(shown)
    floor = 0.0 if low < 0.5 * high else 0.9 * low
    span = high - floor
    if span <= 0:
        return bars[0] * len(shown)
    top = len(bars) - 1
    return "".join(bars[min(top, max(0, round(top * (value - floor) / span)))] for value in shown)
