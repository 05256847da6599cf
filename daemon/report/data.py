"""The data of a report, read once: time series, gaps and thumbnails of every channel.

Memory is bounded: one volume at a time is in memory (the coarsest copy that is fine enough, if the file has
copies), and thumbnails of a few time points are kept. One position of one run per call; any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.report.charts import FARTHEST
from microdiffusion.daemon.report.pictures import EDGE_MOST, projections
from microdiffusion.errors import MddError
from microdiffusion.runfile import EFFORTS, RUNTIMES, SERVED, Run, Status, open_run

THUMBNAILS = 24
"""Most time points of a channel that are shown."""
GAPS_SHOWN = 200

Triple = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.float32]"]

_CONFIDENCE = ("uncertainty_rms", "brightness_slope", "interval_coverage")


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of one position.

    Attributes
    ----------
    time_points : (N,) int
        Those with a status; all arrays below have one value for each.
    written : int
        Number of volumes.
    figures : mapping of str to (N,) float64
        latency_s, residual, held_out_error ...; NaN where no volume was written.
    counts : mapping of str to (name, number) pairs
        How often each answer, effort and runtime was used.
    """

    name: str
    time_points: NDArray[np.int64]
    written: int
    figures: dict[str, NDArray[np.float64]]
    counts: dict[str, list[tuple[str, int]]]
    gaps: list[tuple[int, str, str]]
    gap_count: int
    pictures: list[tuple[int, float, Triple]]
    failures: list[str]


def positions_of(path: Path) -> tuple[str, ...]:
    """Return the names of a run's positions."""
    with open_run(path, missing="ignore") as run:
        return run.header.positions


def channels_of(path: Path, position: int) -> list[Channel]:
    """Return all channels of a position of a run."""
    with open_run(path, position=position, missing="ignore") as run:
        return [_channel(run, number, name) for number, name in enumerate(run.header.channels)]


def _channel(run: Run, number: int, name: str) -> Channel:
    def column(dataset: str) -> NDArray[Any]:
        values = run.values(dataset)
        return values if values.ndim == 1 else values[:, number]

    status = column("status")
    chosen = np.flatnonzero(status != Status.EMPTY)
    written = status[chosen] == Status.WRITTEN
    figures = {}
    for figure in ("latency_s", "residual", "held_out_error", "seconds/total", *_CONFIDENCE):
        try:
            values = np.asarray(column(figure)[chosen], np.float64)
        except KeyError:  # layout 1.3 or before
            values = np.full(len(chosen), np.nan)
        # In a damaged file they may be anything.
        figures[figure] = np.where(written & (np.abs(values) < FARTHEST), values, np.nan)
    counts = {}
    for dataset, names in (("served", SERVED), ("effort", EFFORTS), ("runtime", RUNTIMES)):
        codes, numbers = np.unique(column(dataset)[chosen][written], return_counts=True)
        counts[dataset] = [
            (names[code] if code < len(names) else str(code), int(n))
            for code, n in zip(codes, numbers, strict=True)
        ]
    lacking = [gap for gap in run.gaps() if gap.channel == number]
    gaps = [(gap.time_point, gap.status.name.lower(), gap.reason) for gap in lacking[:GAPS_SHOWN]]
    pictures, failures = _pictures(run, number, chosen[written], np.asarray(column("acquired_s"), np.float64))
    return Channel(
        name=name,
        time_points=chosen,
        written=int(np.count_nonzero(written)),
        figures=figures,
        counts=counts,
        gaps=gaps,
        gap_count=len(lacking),
        pictures=pictures,
        failures=failures,
    )


def _pictures(
    run: Run, channel: int, written: NDArray[np.intp], time_s: NDArray[np.float64]
) -> tuple[list[tuple[int, float, Triple]], list[str]]:
    if written.size == 0:
        return [], []
    some = np.unique(np.linspace(0, written.size - 1, min(THUMBNAILS, written.size)).round().astype(int))
    level = _level(run)
    series, factors = run.pyramid[level], run.pyramid_factors[level]
    z, y, x = (edge * factor for edge, factor in zip(run.voxel_size_um, factors, strict=True))
    found, failures = [], []
    for t in written[some].tolist():
        try:
            volume = series[run.place(t, channel)]
        except MddError as error:  # a damaged volume costs its picture, not the report
            failures.append(f"time point {t}: {error}")
            continue
        found.append((int(t), float(time_s[t]), projections(volume, (z, y, x))))
    return found, failures


def _level(run: Run) -> int:
    """Return the coarsest copy that still fills a picture."""
    best = 0
    for number, factors in enumerate(run.pyramid_factors):
        edge = max(run.header.shape[1] // factors[1], run.header.shape[2] // factors[2])
        if edge >= EDGE_MOST and factors[0] <= 2:
            best = number
    return best
