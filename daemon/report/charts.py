"""Line charts as inline SVG: no library, no script, colours from the page's style sheet. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
FARTHEST = 1e100
"""No axis goes so far."""
POINTS_MOST = 600
"""Points of a line; of more, each stretch shows its lowest and highest."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name, and y over x; where y is not finite the line is broken."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def chart(
    title: str, lines: list[Line], *, x_label: str, y_label: str, reference: float | None = None
) -> str:
    """Return a chart as SVG, or a sentence where there is nothing to draw; `reference` is a dashed line."""
    # Of a damaged file the figures may be anything.
    lines = [replace(line, y=np.where(np.abs(line.y) < FARTHEST, line.y, np.nan)) for line in lines]
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        nothing = '<p class="none">No values.</p>'
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{nothing}</figure>'
    x = np.concatenate([line.x[np.isfinite(line.y)] for line in lines])
    y = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    x_ticks = _ticks(float(x.min()), float(x.max()))
    top = max(float(np.max(y)), reference or 0.0)
    y_ticks = _ticks(min(0.0, float(np.min(y))), top)
    x_low, x_high = float(x.min()), float(max(x.max(), x.min() + 1e-9))
    y_low, y_high = y_ticks[0], max(y_ticks[-1], top)

    def px(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def py(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - y_low) / max(y_high - y_low, 1e-12) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{py(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{px(tick):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        for tick in x_ticks
        if x_low <= tick <= x_high
    ]
    if reference is not None:
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(reference):.1f}" '
            f'y2="{py(reference):.1f}"/>'
        )
    for number, line in enumerate(lines):
        parts += _drawn(line, number % 4, px, py)
    parts.append(
        f'<text x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(y_label)}</text>"
    )
    parts.append("</svg>")
    legend = ""
    if len(lines) > 1:
        keys = (f'<span class="key l{n % 4}">{escape(line.name)}</span>' for n, line in enumerate(lines))
        legend = f'<div class="legend">{"".join(keys)}</div>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{"".join(parts)}{legend}</figure>'


def _drawn(line: Line, colour: int, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    x, y = _thinned(line.x, line.y)
    finite = np.isfinite(y)
    pieces: list[list[str]] = [[]]
    for place, value, good in zip(x.tolist(), y.tolist(), finite.tolist(), strict=True):
        if good:
            pieces[-1].append(f"{px(place):.1f},{py(value):.1f}")
        elif pieces[-1]:
            pieces.append([])
    drawn = [
        f'<polyline class="line l{colour}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1
    ]
    if np.count_nonzero(finite) <= 60:
        drawn += [
            f'<circle class="dot l{colour}" r="2.4" cx="{place}" cy="{value}"/>'
            for piece in pieces
            for place, value in (point.split(",") for point in piece)
        ]
    return drawn


def _thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most about `POINTS_MOST` points, extremes kept."""
    if len(x) <= POINTS_MOST:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), POINTS_MOST // 2):
        finite = part[np.isfinite(y[part])]
        kept += (
            sorted({int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])})
            if finite.size
            else [int(part[0])]
        )
    return x[kept], y[kept]


def _ticks(low: float, high: float) -> list[float]:
    """Return four to seven round numbers that enclose low to high."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0), 1e-12)
    raw = span / 5.0
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
