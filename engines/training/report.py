"""The documents of a training: the model card, and the curves as numbers (JSON) and picture (SVG).

The card states where the weights come from and where they fail: network, command, machine, data with their
licences, scores on volumes that were never trained on, and limits. Everything comes from the run itself;
unknown facts are marked as not stated. The picture is plain SVG rather than a plotting library's: it opens in
every browser, and training needs no further package.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import microdiffusion
from microdiffusion.config import TrainingConfig
from microdiffusion.engines.training.data import NOT_STATED, Record
from microdiffusion.engines.training.validation import Table
from microdiffusion.files import replacing

_LIMITS = """\
- A network fills in what no projection measured from what it was trained on. Structures unlike the data
  above may come out wrong and still look plausible; a held-out projection is the judge, not this card.
- Trained for box-like slabs of 3 to 12 slices at steps of 1.5 to 16 slices, 20 to 2,000 photons at the
  brightest or white noise of 0.002 to 0.05 of the range; beyond that it is untested.
- The scores are for the optics that they name, and for the volumes that they name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended; `command` and `machine` are the user's."""

    iterations: int
    seconds: float
    device: str
    precision: str
    processes: int
    network: str
    parameters: int
    loss: float
    table: Table
    command: str = ""
    machine: str = ""


def write_card(config: TrainingConfig, records: Sequence[Record], outcome: Outcome) -> Path:
    """Write the card beside the weights; return its path."""
    card = config.output.with_suffix(".md")
    with replacing(card) as temporary:
        temporary.write_text(model_card(config, records, outcome), encoding="utf-8")
    return card


def model_card(config: TrainingConfig, records: Sequence[Record], outcome: Outcome) -> str:
    """Return the card as Markdown."""
    facts = {
        "network": f"{outcome.network}, {outcome.parameters / 1e6:.2f} M parameters",
        "trained": f"{outcome.iterations:,} iterations of {config.batch} windows"
        + (f" on each of {outcome.processes} processes" if outcome.processes > 1 else "")
        + f", {outcome.seconds / 60:.1f} minutes, AdamW, cosine from {config.rate:g}, averaged weights (EMA)",
        "last loss": f"{outcome.loss:.4f}",
        "started from": config.init.name if config.init else "nothing",
        "pool": f"{config.pool} cubes of 64 × 64 × 64 voxels; shares "
        + ", ".join(f"{name} {share:g}" for name, share in config.shares.model_dump().items()),
        "seed": str(config.seed),
        "hardware": f"{outcome.machine or NOT_STATED}; {outcome.device}, {outcome.precision}",
        "software": f"mdd {microdiffusion.__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    parts = [
        f"# {config.output.stem}",
        f"Weights of the denoiser of mdd, half precision, in `{config.output.name}`; "
        "use them with `--set engine.weights=FILE`.",
        _table(("", ""), list(facts.items())),
    ]
    if outcome.command:
        parts += ["## Command", f"```\n{outcome.command}\n```"]
    parts += ["## Data", _data(records)]
    parts += ["## Scores on volumes that were never trained on", _scores(outcome.table)]
    parts += ["## Limits", _LIMITS]
    return "\n\n".join(parts) + "\n"


def _data(records: Sequence[Record]) -> str:
    used = [record for record in records if record.kind == "volume"]
    held = [record for record in records if record.kind == "held out"]
    rows: list[tuple[str, ...]] = [(r.name, r.structure, r.size, r.source, r.licence) for r in used]
    for kind, one, many in (
        ("tree", "morphology", "morphologies"),
        ("vessels", "vessel graph", "vessel graphs"),
    ):
        groups = Counter((r.source, r.licence) for r in records if r.kind == kind)
        rows += [(f"{n} {one if n == 1 else many}", "", "", *origin) for origin, n in groups.items()]
    rows.append(("nuclei, textures", "procedural", "", "mdd, no data", "none needed"))
    text = _table(("data", "structure", "z × y × x", "source", "licence"), rows)
    unknown = [r.name for r in records if r.licence == NOT_STATED and r.kind != "held out"]
    if unknown:
        text += (
            f"\n\n**{len(unknown)} of these sources state no licence** ({', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}): clear that up before you share the weights."
        )
    if held:
        origins = (f"{r.name} ({r.source}, {r.licence})" for r in held)
        text += f"\n\nHeld out, never trained on: {', '.join(origins)}"
    return text


def _scores(table: Table) -> str:
    if not table:
        return "No volume was held out, so nothing is known about unseen specimens: evaluate before use."
    methods = ("linear", "tikhonov", "network")
    rows = [
        (name, *(f"{row[m]:.2f} / {row[f'{m}_ssim']:.3f}" for m in methods)) for name, row in table.items()
    ]
    means = (sum(row[m] for row in table.values()) / len(table) for m in methods)
    rows.append(("mean PSNR", *(f"{mean:.2f}" for mean in means)))
    return (
        "PSNR (dB) / SSIM per slice, data range 1: slab 6, step 6, white noise 0.01, the middle "
        "130 × 128 × 128 voxels scaled by the percentiles 1 and 99.9; one evaluation from the Tikhonov "
        "answer, pulled towards the projections, without the INR.\n\n"
        + _table(("volume", "linear", "Tikhonov", "network"), rows)
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *(line(row) for row in rows)])


# --- curves ------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _PANEL, _GAP = 760, 520, 64, 570, 34, 189, 62
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1")
_POINTS = 400


@dataclass(slots=True)
class Curves:
    """The losses (one for each iteration) and the validations of a training.

    A validation is {"iteration", "seconds", "scores"}, with `scores` as in `validation.Table`.
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

    def write(self, output: Path) -> None:
        """Write `<output>.curves.json` and `<output>.curves.svg`."""
        for suffix, text in ((".curves.json", self.to_json()), (".curves.svg", self.svg())):
            with replacing(output.with_suffix(suffix)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")

    def svg(self) -> str:
        """Return the picture: the smoothed loss above, on a logarithmic axis; below it the held-out PSNR."""
        last = float(max([len(self.losses), *(v["iteration"] for v in self.validations), 1]))
        x, y = smoothed(self.losses)
        loss = [_Line(x, [math.log10(v) if v > 0 else math.nan for v in y], _COLOURS[0])]
        scores = []
        names = sorted({name for v in self.validations for name in v["scores"]})
        for number, name in enumerate(names):
            known = [v for v in self.validations if name in v["scores"]]
            colour = _COLOURS[number % len(_COLOURS)]
            x, y = [v["iteration"] for v in known], [v["scores"][name]["network"] for v in known]
            scores.append(_Line(x, y, colour, name))
            linear = known[-1]["scores"][name]["tikhonov"]
            scores.append(_Line([0.0, last], [linear, linear], colour, dashed=True))
        note = "dashed: linear answer (Tikhonov)" if names else "no volume was held out"
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *_panel(_TOP, loss, last, "loss (smoothed)", logarithmic=True),
            *_panel(_TOP + _PANEL + _GAP, scores, last, "PSNR on held-out volumes, dB", note),
            f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">iteration</text>',
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


class _Line(NamedTuple):
    """A line of a panel; one with a name has dots and a place in the legend."""

    x: list[float]
    y: list[float]
    colour: str
    name: str = ""
    dashed: bool = False


def _panel(
    top: float, lines: list[_Line], last: float, title: str, note: str = "", *, logarithmic: bool = False
) -> list[str]:
    """Return the elements of one pair of axes, from iteration 0 to `last`."""
    bottom = top + _PANEL
    values = [y for line in lines for y in line.y if math.isfinite(y)] or [0.0, 1.0]
    margin = max(0.05 * (max(values) - min(values)), 0.02)
    low, high = min(values) - margin, max(values) + margin

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / last * (_RIGHT - _LEFT), bottom - (y - low) / (high - low) * _PANEL

    parts = [
        f'<text x="{_LEFT}" y="{top - 8:.1f}" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_RIGHT}" y="{top - 8:.1f}" text-anchor="end" fill="#666">{escape(note)}</text>',
    ]
    for quarter in (0, 0.25, 0.5, 0.75, 1):
        value = low + (high - low) * quarter
        x, y = at(last * quarter, value)
        shown = 10**value if logarithmic else value
        parts += [
            f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>',
            f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{last * quarter:.0f}</text>',
        ]
    parts.append(f'<path d="M{_LEFT} {top:.1f}V{bottom:.1f}H{_RIGHT}" fill="none" stroke="black"/>')
    label = top + 6.0
    for line in lines:
        points = [at(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b)]
        if not points:
            continue
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dashes}/>')
        if line.name:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.4" fill="{line.colour}"/>' for a, b in points]
            parts += [
                f'<rect x="{_RIGHT + 12}" y="{label - 4:.1f}" width="12" height="3" fill="{line.colour}"/>',
                f'<text x="{_RIGHT + 30}" y="{label + 2:.1f}">{escape(line.name)}</text>',
            ]
            label += 16
    return parts
