"""ChartLine charts: where an SVG draws what; the page's template draws it. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

FARTHEST = 1e100
"""No axis goes so far; of a damaged file figures may be anything."""
POINTS_MOST = 600
"""Points of a line; of more, each stretch shows its lowest and highest."""
DOTS_MOST = 60


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One line: its name, and y over x; where y is not finite the line is broken."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A line as it is drawn: the points of its pieces, and dots where there are few."""

    name: str
    pieces: list[str]
    dots: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as it is drawn; ticks are a text and its place. Without lines there is nothing to draw."""

    WIDTH: ClassVar = 640
    HEIGHT: ClassVar = 200
    LEFT: ClassVar = 56
    RIGHT: ClassVar = 628
    TOP: ClassVar = 12
    BOTTOM: ClassVar = 160

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    reference: float | None
    lines: list[Drawn]


def chart(
    title: str, lines: list[ChartLine], *, x_label: str, y_label: str, reference: float | None = None
) -> Chart:
    """Return a chart of these lines, with a dashed line at `reference`."""
    lines = [
        ChartLine(line.name, line.x, np.where(np.abs(line.y) < FARTHEST, line.y, np.nan)) for line in lines
    ]
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return Chart(title, x_label, y_label, [], [], None, [])
    x = np.concatenate([line.x[np.isfinite(line.y)] for line in lines])
    y = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    x_low, x_high = float(x.min()), float(max(x.max(), x.min() + 1e-9))
    top = max(float(y.max()), reference or 0.0)
    y_ticks = _ticks(min(0.0, float(y.min())), top)
    y_low, y_high = y_ticks[0], max(y_ticks[-1], top)

    def px(value: float) -> float:
        return round(Chart.LEFT + (value - x_low) / (x_high - x_low) * (Chart.RIGHT - Chart.LEFT), 1)

    def py(value: float) -> float:
        share = (value - y_low) / max(y_high - y_low, 1e-12)
        return round(Chart.BOTTOM - share * (Chart.BOTTOM - Chart.TOP), 1)

    drawn = []
    for line in lines:
        points = [(px(a), py(b)) for a, b in zip(*_thinned(line.x, line.y), strict=True)]
        pieces = _pieces(points)
        dots = [point for piece in pieces for point in piece]
        polylines = [" ".join(f"{a},{b}" for a, b in piece) for piece in pieces if len(piece) > 1]
        drawn.append(Drawn(line.name, polylines, dots if len(dots) <= DOTS_MOST else []))
    return Chart(
        title,
        x_label,
        y_label,
        [(f"{tick:g}", px(tick)) for tick in _ticks(x_low, float(x.max())) if x_low <= tick <= x_high],
        [(f"{tick:g}", py(tick)) for tick in y_ticks],
        None if reference is None else py(reference),
        drawn,
    )


def _pieces(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Return points as runs between those that are not finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return pieces


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Return at most about `POINTS_MOST` points, extremes kept."""
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), POINTS_MOST // 2) if len(x) > POINTS_MOST else ():
        finite = part[np.isfinite(y[part])]
        kept += (
            sorted({int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])})
            if finite.size
            else [int(part[0])]
        )
    if kept:
        x, y = x[kept], y[kept]
    return x.tolist(), y.tolist()


def _ticks(low: float, high: float) -> list[float]:
    """Return four to seven round numbers that enclose low to high."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0), 1e-12)
    raw = span / 5.0
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
