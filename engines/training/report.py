"""The documents of a training: the model card, and the curves as numbers (JSON).

The card states where the weights come from and where they fail: network, command, machine, data with their
licences, scores on volumes that were never trained on, and limits. Everything comes from the run itself;
unknown facts are marked as not stated.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import microdiffusion
from microdiffusion.config import TrainingConfig
from microdiffusion.engines.training.data import NOT_STATED, Record
from microdiffusion.engines.training.validation import Table
from microdiffusion.files import write_text
from microdiffusion.text import markdown_table

_ALIKE_DB = 0.05
_HEADS = (
    "volume",
    "linear",
    "Tikhonov",
    "shipped with mdd",
    "these weights",
    "learned",
    "learned, shipped",
    "learned, these",
)

_LIMITS = """\
- A network fills in what no projection measured from what it was trained on. Structures unlike the data
  above may come out wrong and still look plausible; a held-out projection is the judge, not this card.
- Trained for box-like slabs of 3 to 12 slices at steps of 1.5 to 16 slices, 20 to 2,000 photons at the
  brightest or white noise of 0.002 to 0.05 of the range; beyond that it is untested.
- The scores are for the optics that they name, and for the volumes that they name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a training; `command` and `machine` are the user's."""

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
    start: str = "nothing"


def write_card(config: TrainingConfig, records: Sequence[Record], outcome: Outcome) -> Path:
    """Write the card beside the weights; return its path."""
    card = config.output.with_suffix(".md")
    write_text(card, model_card(config, records, outcome))
    return card


def model_card(config: TrainingConfig, records: Sequence[Record], outcome: Outcome) -> str:
    """Return the card as Markdown."""
    facts = {
        "network": f"{outcome.network}, {outcome.parameters / 1e6:.2f} M parameters",
        "trained": f"{outcome.iterations:,} iterations of {config.batch} windows"
        + (f" shared by {outcome.processes} processes" if outcome.processes > 1 else "")
        + f", {outcome.seconds / 60:.1f} minutes, AdamW, cosine from {config.rate:g}, averaged weights (EMA)",
        "last loss": f"{outcome.loss:.4f}",
        "started from": outcome.start,
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
    methods = ("linear", "tikhonov", "shipped", "network", "learned", "learned_shipped", "learned_network")
    rows = [
        (name, *(f"{row[m]:.2f} / {row[f'{m}_ssim']:.3f}" for m in methods)) for name, row in table.items()
    ]
    means = (sum(row[m] for row in table.values()) / len(table) for m in methods)
    rows.append(("mean PSNR", *(f"{mean:.2f}" for mean in means)))
    return (
        "PSNR (dB) / SSIM per slice, data range 1: slab 6, step 6, white noise 0.01, the middle "
        "130 × 128 × 128 voxels scaled by the percentiles 1 and 99.9; one evaluation from the Tikhonov "
        "answer, pulled towards the projections, without the INR. *Learned*: what a session has learned "
        "after eight sweeps at golden offsets, the middle 64 × 96 × 96 voxels, and one evaluation from "
        "there.\n\n" + _table(_HEADS, rows) + f"\n\n{against_shipped(table)}"
    )


def against_shipped(table: Table) -> str:
    """Return a sentence that compares the weights with those that ship with mdd, on the held-out volumes."""
    if not table:
        return (
            "No volume was held out, so nobody knows whether these weights are better than the shipped ones."
        )

    def means(*methods: str) -> list[float]:
        return [sum(row[method] for row in table.values()) / len(table) for method in methods]

    ours, theirs = means("network", "learned_network"), means("shipped", "learned_shipped")
    text = (
        f"On the held-out volumes these weights reach {ours[0]:.2f} dB in one sweep and {ours[1]:.2f} dB "
        f"after eight, those that ship with mdd {theirs[0]:.2f} and {theirs[1]:.2f} dB"
    )
    gain = (sum(ours) - sum(theirs)) / 2
    if gain < -_ALIKE_DB:
        return f"{text}: keep the shipped ones, or train longer or on more volumes."
    return f"{text}: {'better' if gain > _ALIKE_DB else 'no difference worth speaking of'}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(heads, rows))


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
        """Write `<output>.curves.json`."""
        write_text(output.with_suffix(".curves.json"), self.to_json() + "\n")
