"""Tables and files of an evaluation over time: means over volumes, and each volume, by step and course."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.engines.evaluation.report import protocol_of
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Results
from microdiffusion.engines.evaluation.sessions import SessionPlan
from microdiffusion.text import markdown_table

_ACTIVITY = {
    "correlation": ("correlation", 3),
    "slope": ("slope", 2),
    "slope_error": ("slope error", 2),
    "false_activity": ("false ΔF/F", 4),
    "onset_delay": ("onset delay, sweeps", 2),
}
_TITLES = {
    "still": "Still: PSNR (dB) of sweeps, SSIM, flicker of voxels",
    "active": "Active: ΔF/F against the truth, and what keeps still",
    "drift": "Drift: PSNR (dB) of sweeps, SSIM",
}


def session_document(
    plan: EvaluationPlan, sessions: SessionPlan, results: Results, about: dict[str, Any]
) -> dict[str, Any]:
    """Return everything but traces as it goes into the JSON file; `about` is the machine and the versions."""
    return {
        "protocol": protocol_of(plan) | dataclasses.asdict(sessions),
        "machine": about,
        "methods": _methods(results.rows),
        "rows": [{key: row[key] for key in row if key != "traces"} for row in results.rows],
        "skipped": results.skipped,
    }


def session_markdown(sessions: SessionPlan, results: Results) -> str:
    """Return the tables as Markdown."""
    lines = [
        f"{sessions.sweeps} sweeps, offsets {sessions.offsets}; means over volumes.",
        "",
    ]
    for step in sorted({row["step"] for row in results.rows}):
        lines += [f"## Step {step:g}", ""]
        for course in sessions.courses:
            rows = [row for row in results.rows if row["step"] == step and row["course"] == course]
            if rows:
                lines += [f"{_TITLES[course]}:", "", *_means(rows, sessions), ""]
                lines += [*_volumes(rows, course), ""]
    if results.skipped:
        lines += ["Left out:", "", *(f"- {what}" for what in results.skipped), ""]
    return "\n".join(lines)


def mean_score(rows: Iterable[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """Return the mean of a score, or of each sweep's, over the rows that have it; NaN where none has."""
    values = np.array([row[key] for row in rows if key in row], np.float64)
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    sums = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _means(rows: Sequence[Mapping[str, Any]], sessions: SessionPlan) -> list[str]:
    shown = sorted({0, 1, sessions.sweeps // 4 - 1, sessions.sweeps // 2 - 1, sessions.sweeps - 1})
    active = "correlation" in rows[0]
    titles = ["method", *(f"sweep {sweep + 1}" for sweep in shown), "SSIM, first", "last"]
    titles += ["flicker"] if "flicker" in rows[0] else []
    titles += [title for title, _ in _ACTIVITY.values()] if active else []
    table = []
    for method in _methods(rows):
        mine = [row for row in rows if row["method"] == method]
        psnr, ssim = mean_score(mine, "psnr_db"), mean_score(mine, "ssim")
        cells = [
            f"`{method}`",
            *(f"{psnr[sweep]:.2f}" for sweep in shown),
            f"{ssim[0]:.3f}",
            f"{ssim[-1]:.3f}",
        ]
        cells += [f"{mean_score(mine, 'flicker'):.3f}"] if "flicker" in rows[0] else []
        cells += [_shown(mine, key, digits) for key, (_, digits) in _ACTIVITY.items()] if active else []
        table.append([*cells, f"{mean_score(mine, 'seconds'):.2f}"])
    return markdown_table([*titles, "s"], table)


def _volumes(rows: Sequence[Mapping[str, Any]], course: str) -> list[str]:
    """Return a table of each volume: correlation / slope, or PSNR of the first sweep and the last half."""
    methods = _methods(rows)
    table = []
    for volume in sorted({row["volume"] for row in rows}):
        cells = [volume]
        for method in methods:
            mine = [row for row in rows if row["volume"] == volume and row["method"] == method]
            if course == "active":
                cells.append(f"{_shown(mine, 'correlation', 2)} / {_shown(mine, 'slope', 2)}")
            else:
                psnr = mean_score(mine, "psnr_db")
                cells.append(f"{psnr[0]:.2f} / {psnr[len(psnr) // 2 :].mean():.2f}")
        table.append(cells)
    about = "correlation / slope" if course == "active" else "PSNR of the first sweep / of the second half"
    titles = ["volume", *(f"`{method}`" for method in methods)]
    return [f"Each volume, {about}:", "", *markdown_table(titles, table)]


def _methods(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["method"]) for row in rows))


def _shown(rows: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    value = float(mean_score(rows, key))
    return f"{value:.{digits}f}" if np.isfinite(value) else ""
