"""The model card: what weights are made of, so that nobody has to ask, or use them where they fail.

Markdown beside the weights: network, command, machine, data with their licences, scores on volumes that
were never trained on, and limits. Everything comes from the run itself; what is not known is said to be
not stated.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import microdiffusion
from microdiffusion.engines.training.sources import NOT_STATED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from microdiffusion.engines.training.plan import TrainingPlan
    from microdiffusion.engines.training.sources import Record
    from microdiffusion.engines.training.validation import Table

_LIMITS = """\
- A network fills in what no projection measured from what it was trained on. Structures unlike the data
  above may come out wrong and still look plausible; a held-out projection is the judge, not this card.
- Trained for box-like slabs of 3 to 12 slices at steps of 1.5 to 16 slices, 20 to 2,000 photons at the
  brightest or white noise of 0.002 to 0.05 of the range; beyond that it is untested.
- The scores are for the optics that they name, and for the volumes that they name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended."""

    iterations: int
    seconds: float
    device: str
    precision: str
    processes: int
    parameters: int
    table: Table
    loss: float


def write_card(path: Path, plan: TrainingPlan, records: Sequence[Record], outcome: Outcome) -> None:
    """Write the card to `path`."""
    path.write_text(model_card(plan, records, outcome), encoding="utf-8")


def model_card(plan: TrainingPlan, records: Sequence[Record], outcome: Outcome) -> str:
    """Return the card as Markdown."""
    shape = plan.shape
    facts = {
        "network": f"slab U-Net, widths {' / '.join(map(str, shape.widths))}, {shape.blocks} "
        f"block{'s' if shape.blocks > 1 else ''} a level, {outcome.parameters / 1e6:.2f} M parameters",
        "trained": f"{outcome.iterations:,} iterations of {plan.batch} windows"
        + (f" on each of {outcome.processes} processes" if outcome.processes > 1 else "")
        + f", {outcome.seconds / 60:.1f} minutes, AdamW, cosine from {plan.rate:g}, averaged weights (EMA)",
        "last loss": f"{outcome.loss:.4f}",
        "started from": plan.start.name if plan.start else "nothing",
        "formulation": plan.formulation,
        "pool": f"{plan.pool} cubes of 64 × 64 × 64 voxels; shares "
        + ", ".join(f"{name} {share:g}" for name, share in plan.shares.items()),
        "seed": str(plan.seed),
        "hardware": f"{plan.machine or NOT_STATED}; {outcome.device}, {outcome.precision}",
        "software": f"mdd {microdiffusion.__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    parts = [
        f"# {plan.output.stem}",
        f"Weights of the denoiser of mdd, half precision, in `{plan.output.name}`; "
        "use them with `--set engine.weights=FILE`.",
        _table(("", ""), list(facts.items())),
    ]
    if plan.command:
        parts += ["## Command", f"```\n{plan.command}\n```"]
    parts += ["## Data", _data(records)]
    parts += ["## Scores on volumes that were never trained on", _scores(outcome.table)]
    parts += ["## Limits", _LIMITS]
    return "\n\n".join(parts) + "\n"


def _data(records: Sequence[Record]) -> str:
    used = [record for record in records if record.kind == "volume"]
    held = [record for record in records if record.kind == "held out"]
    rows: list[tuple[str, ...]] = [(r.name, r.structure, r.size, r.source, r.licence) for r in used]
    for kind, what in (
        ("tree", ("morphology", "morphologies")),
        ("vessels", ("vessel graph", "vessel graphs")),
    ):
        groups = Counter((r.source, r.licence) for r in records if r.kind == kind)
        rows += [(f"{count} {what[count > 1]}", "", "", *origin) for origin, count in groups.items()]
    rows.append(("nuclei, textures", "procedural", "", "mdd, no data", "none needed"))
    text = _table(("what", "structure", "z × y × x", "source", "licence"), rows)
    unknown = [r.name for r in records if r.licence == NOT_STATED and r.kind != "held out"]
    if unknown:
        text += (
            f"\n\n**{len(unknown)} of these sources state no licence** ({', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}): settle that before passing the weights on."
        )
    if held:
        text += "\n\nHeld out, never trained on: " + ", ".join(
            f"{r.name} ({r.source}, {r.licence})" for r in held
        )
    return text


def _scores(table: Table) -> str:
    if not table:
        return "No volume was held out, so nothing is known about unseen specimens: evaluate before use."
    methods = ("linear", "tikhonov", "network")
    rows = [
        (name, *(f"{row[m]:.2f} / {row[f'{m}_ssim']:.3f}" for m in methods)) for name, row in table.items()
    ]
    mean = {m: sum(row[m] for row in table.values()) / len(table) for m in methods}
    rows.append(("mean PSNR", *(f"{mean[m]:.2f}" for m in methods)))
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
