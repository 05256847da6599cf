"""A run in a few lines, as `print(run)` and `mdd info` say it. Pure functions; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.runfile.schema import SERVED, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microdiffusion.runfile.reader import Run


def summary_lines(run: Run) -> dict[str, str]:
    """Return what there is of a run: its volume, time points, frames, and the answers that were served."""
    letters = ("t", "z", "y", "x") if run.volume.ndim == 4 else ("t", "channel", "z", "y", "x")
    axes = f"{' x '.join(str(length) for length in run.volume.shape)} ({', '.join(letters)})"
    voxel = " x ".join(f"{edge:g}" for edge in run.voxel_size_um)
    status = run.status
    counts = ", ".join(f"{np.count_nonzero(status == code)} {code.name.lower()}" for code in Status if code)
    ledger = run.ledger
    return {
        "volume": f"{axes} {run.volume.dtype}, voxel {voxel} µm",
        "time points": f"{counts}, room for {np.count_nonzero(status == Status.EMPTY)} more",
        "frames": f"{ledger.announced} announced, {ledger.received} received, {ledger.missing} missing",
        "served": coded(run, "served", SERVED) or "nothing yet",
    }


def coded(run: Run, name: str, words: Sequence[str]) -> str:
    """Return how often each of `words` stands for a written volume in a dataset of codes: "mdd 8, inr 2"."""
    written = np.nonzero(run.status == Status.WRITTEN)  # places, as the run may grow meanwhile
    codes, numbers = np.unique(run.values(name)[written], return_counts=True)
    if not codes.any():
        return ""
    answers = [words[code] if code < len(words) else f"code {code}" for code in codes.tolist()]
    return ", ".join(f"{answer} {n}" for answer, n in zip(answers, numbers, strict=True))
