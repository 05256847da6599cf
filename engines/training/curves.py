"""The training's curves: kept as numbers (JSON) and drawn as a picture (SVG).

A few lines of SVG instead of a plotting library: the picture opens in every browser, and a training needs
nothing installed for it. Upper panel: the loss, thinned and smoothed, on a logarithmic axis. Lower panel:
the network's PSNR on each held-out volume, with the linear answer's as a dashed line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _GAP = 760, 520, 64, 190, 34, 62
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1")
_POINTS = 400


@dataclass(slots=True)
class Curves:
    """What was measured on the way.

    Attributes
    ----------
    losses : list of float
        One for each iteration.
    validations : list of {"iteration", "seconds", "scores"}
        `scores` as in `validation.Table`.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the curves as JSON."""
        return json.dumps({"loss": [round(v, 6) for v in self.losses], "validations": self.validations})

    @classmethod
    def of_json(cls, text: str) -> Curves:
        """Return the curves that `to_json` wrote."""
        data = json.loads(text)
        return cls(list(data["loss"]), list(data["validations"]))

    def write(self, output: Path) -> tuple[Path, Path]:
        """Write `<output>.curves.json` and `<output>.curves.svg`; return their paths."""
        numbers, picture = output.with_suffix(".curves.json"), output.with_suffix(".curves.svg")
        for path, text in ((numbers, self.to_json()), (picture, self.svg())):
            with replacing(path) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        return numbers, picture

    def svg(self) -> str:
        """Return the picture."""
        half = (_HEIGHT - _TOP - 2 * _GAP) / 2 + 8
        last = max([len(self.losses), *(int(v["iteration"]) for v in self.validations), 1])
        loss = _Panel(_TOP, half, (0, last), "loss (smoothed)", logarithmic=True)
        x, y = smoothed(self.losses)
        if len(x):
            loss.line(x, y, _COLOURS[0])
        score = _Panel(_TOP + half + _GAP, half, (0, last), "PSNR on held-out volumes, dB")
        names = sorted({name for v in self.validations for name in v["scores"]})
        for number, name in enumerate(names):
            rows = [(v["iteration"], v["scores"][name]) for v in self.validations if name in v["scores"]]
            colour = _COLOURS[number % len(_COLOURS)]
            places = [float(place) for place, _ in rows]
            score.line(places, [row["network"] for _, row in rows], colour, name, dots=True)
            score.line([0.0, float(last)], [rows[-1][1]["tikhonov"]] * 2, colour, dashed=True)
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *loss.drawn(),
            *score.drawn(note="dashed: linear answer (Tikhonov)" if names else "no volume was held out"),
            f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">iteration</text>',
            "</svg>",
        ]
        return "\n".join(parts)


def smoothed(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most some hundred points (iteration, mean loss over the iterations since the last point)."""
    if not losses:
        return [], []
    parts = np.array_split(np.asarray(losses, dtype=np.float64), min(_POINTS, max(1, len(losses) // 5)))
    ends = np.cumsum([len(part) for part in parts])
    return [float(end) for end in ends], [float(part.mean()) for part in parts]


class _Panel:
    """One pair of axes; lines are collected first, so that the axis fits them."""

    def __init__(
        self, top: float, height: float, span: tuple[float, float], title: str, *, logarithmic: bool = False
    ) -> None:
        self._top, self._height, self._span, self._title = top, height, span, title
        self._logarithmic = logarithmic
        self._lines: list[tuple[list[float], list[float], str, str, bool, bool]] = []

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        colour: str,
        name: str = "",
        *,
        dashed: bool = False,
        dots: bool = False,
    ) -> None:
        values = [self._axis(value) for value in y]
        kept = [(a, b) for a, b in zip(x, values, strict=True) if math.isfinite(b)]
        if kept:
            self._lines.append(([a for a, _ in kept], [b for _, b in kept], colour, name, dashed, dots))

    def _axis(self, value: float) -> float:
        if not self._logarithmic:
            return float(value)
        return math.log10(value) if value > 0 else float("nan")

    def drawn(self, note: str = "") -> list[str]:
        right, bottom = _WIDTH - _RIGHT, self._top + self._height
        every = [value for line in self._lines for value in line[1]] or [0.0, 1.0]
        low, high = min(every), max(every)
        margin = max(0.05 * (high - low), 0.02)
        low, high = low - margin, high + margin

        def at(x: float, y: float) -> tuple[float, float]:
            along = (x - self._span[0]) / max(self._span[1] - self._span[0], 1e-12)
            return _LEFT + along * (right - _LEFT), bottom - (y - low) / (high - low) * self._height

        parts = [
            f'<text x="{_LEFT}" y="{self._top - 8:.1f}" font-weight="bold">{escape(self._title)}</text>',
            f'<text x="{right}" y="{self._top - 8:.1f}" text-anchor="end" fill="#666">{escape(note)}</text>',
        ]
        for number in range(5):
            value = low + (high - low) * number / 4
            y = at(0, value)[1]
            shown = 10**value if self._logarithmic else value
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>')
        for number in range(5):
            value = self._span[0] + (self._span[1] - self._span[0]) * number / 4
            x = at(value, low)[0]
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{value:.0f}</text>')
        parts.append(f'<path d="M{_LEFT} {self._top:.1f}V{bottom:.1f}H{right}" fill="none" stroke="black"/>')
        shown_names = 0
        for x_values, y_values, colour, name, dashed, dots in self._lines:
            points = [at(a, b) for a, b in zip(x_values, y_values, strict=True)]
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            dash = ' stroke-dasharray="5 4" stroke-width="1"' if dashed else ' stroke-width="1.6"'
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}"{dash}/>')
            if dots:
                parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.4" fill="{colour}"/>' for a, b in points]
            if name:
                y = self._top + 6 + 16 * shown_names
                parts.append(
                    f'<rect x="{right + 12}" y="{y - 4:.1f}" width="12" height="3" fill="{colour}"/>'
                )
                parts.append(f'<text x="{right + 30}" y="{y + 2:.1f}">{escape(name)}</text>')
                shown_names += 1
        return parts
