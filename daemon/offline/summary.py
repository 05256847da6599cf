"""A run in figures, as `mdd info` says them: its gaps by reason, its quality over time. Pure; any thread."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from microdiffusion.runfile import Run, Status

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24  # with the figures before them within 80 columns
_FARTHEST = 1e100  # of a damaged file the figures may be anything


def sparkline(values: Any, width: int = _WIDTH) -> str:
    """Return values over time (T[, C]) as bars from the lowest to the highest; a blank: nothing there.

    More time points than bars are averaged.
    """
    series = np.asarray(values, np.float64).reshape(len(values), -1)
    series = np.where(np.abs(series) < _FARTHEST, series, np.nan)
    there = np.flatnonzero(~np.isnan(series).all(axis=1))
    if not there.size:
        return ""
    series = series[: int(there[-1]) + 1]
    means = []
    for block in np.array_split(series, min(width, len(series))):
        known = block[~np.isnan(block)]
        means.append(float(known.mean()) if known.size else np.nan)
    low, high = np.nanmin(means), np.nanmax(means)
    step = (high - low) / (len(_BARS) - 1)
    return "".join(
        " " if np.isnan(mean) else _BARS[round((mean - low) / step) if step else 0] for mean in means
    ).rstrip()


def grouped_gaps(opened: Run) -> list[tuple[tuple[str, str], int]]:
    """Return ((status, reason), how many) of the time points without a volume, the most frequent first."""
    gaps = ((gap.status.name.lower(), gap.reason) for gap in opened.gaps() if gap.status != Status.EMPTY)
    return Counter(gaps).most_common()


def duration_s(opened: Run) -> float | None:
    """Return the time from the first to the last frame, s; None where there are fewer than two."""
    there = np.nonzero(opened.values("frames/seq") >= 0)  # places, as the run may grow meanwhile
    times = opened.values("frames/camera_time_s")[there]
    times = times[np.isfinite(times)]
    return float(times.max() - times.min()) if times.size > 1 else None


def position_facts(opened: Run) -> dict[str, Any]:
    """Return what is known of a position, ready for JSON; None where there is no number."""

    def listed(name: str) -> list[float | None]:
        values = opened.values(name)[: stop or 1].reshape(-1)
        return [float(value) if np.isfinite(value) else None for value in values]

    status, stop = opened.status, opened.used
    return {
        "time_points": {code.name.lower(): int(np.count_nonzero(status[:stop] == code)) for code in Status},
        "gaps": [
            {"status": name, "reason": reason, "count": count}
            for (name, reason), count in grouped_gaps(opened)
        ],
        "duration_s": duration_s(opened),
        "acquired_s": listed("acquired_s"),
        "latency_s": listed("latency_s"),
        "held_out_error": listed("held_out_error"),
        "residual": listed("residual"),
    }
