"""Tables and files of the hallucination test: rates by method, sweep and kind, with their intervals.

Intervals are Wilson's (1927, 95 %), over objects; objects of one volume are not independent, so they are a
little too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from microdiffusion.engines.evaluation.hallucinations import FALSE_POSITIVES, VISIBLE, rates
from microdiffusion.engines.evaluation.objects import KINDS
from microdiffusion.engines.evaluation.report import protocol_of
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Results, Row
from microdiffusion.engines.evaluation.sessions import SessionPlan
from microdiffusion.text import markdown_table

_Z = 1.96
_RATES = ("found", "detected", "invented", "echoed")
_ALL = "all"


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson 1927); (0, 1) of nothing."""
    if of == 0:
        return 0.0, 1.0
    share, odds = count / of, _Z**2 / of
    middle = (share + odds / 2) / (1 + odds)
    half = math.sqrt(share * (1 - share) * odds + odds**2 / 4) / (1 + odds)
    return max(0.0, middle - half), min(1.0, middle + half)


def hallucination_summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one entry for each step, method, sweep and kind ("all" last): rates, and mean contrasts."""
    entries = []
    for step, method, sweep in dict.fromkeys((row["step"], row["method"], row["sweep"]) for row in rows):
        same = [row for row in rows if (row["step"], row["method"], row["sweep"]) == (step, method, sweep)]
        for kind in (*(each.name for each in KINDS), _ALL):
            mine = same if kind == _ALL else [row for row in same if row["kind"] == kind]
            entry: dict[str, Any] = {"step": step, "method": method, "sweep": sweep, "kind": kind}
            for name, (count, of) in rates(mine).items():
                share = count / of if of else float("nan")
                entry[name] = {"count": count, "of": of, "rate": share, "interval": wilson(count, of)}
            entry["contrast"] = _mean(row["contrast"] for row in mine if row["there"])
            entry["left"] = _mean(row["contrast"] for row in mine if not row["there"])
            entry["threshold"] = _mean(row["threshold"] for row in mine)
            entries.append(entry)
    return entries


def hallucination_document(
    plan: EvaluationPlan, sessions: SessionPlan, results: Results, about: dict[str, Any]
) -> dict[str, Any]:
    """Return everything but pictures as it goes into the JSON file; `about` is machine and versions."""
    return {
        "protocol": protocol_of(plan)
        | {
            "sweeps": sessions.sweeps,
            "offsets": sessions.offsets,
            "false_positives": FALSE_POSITIVES,
            "visible": VISIBLE,
        },
        "machine": about,
        "methods": [method.name for method in plan.methods],
        "summary": hallucination_summary(results.rows),
        "rows": [{key: row[key] for key in row if key != "view"} for row in results.rows],
        "skipped": results.skipped,
    }


def hallucination_markdown(results: Results) -> str:
    """Return the tables: all kinds by sweep, then each kind in the first sweep and the last."""
    lines = [
        f"Shown: more than {VISIBLE:.0%} of an object's contrast, and more than {1 - FALSE_POSITIVES:.0%} of "
        "the places without an object show in the same answer. In brackets the 95 % interval.",
        "",
    ]
    entries = hallucination_summary(results.rows)
    for step in dict.fromkeys(entry["step"] for entry in entries):
        mine = [entry for entry in entries if entry["step"] == step]
        lines += [f"## Step {step:g}", "", *_table([e for e in mine if e["kind"] == _ALL]), ""]
        edges = {min(e["sweep"] for e in mine), max(e["sweep"] for e in mine)}
        for kind in KINDS:
            some = [e for e in mine if e["kind"] == kind.name and e["sweep"] in edges and e["found"]["of"]]
            if some:
                lines += [f"{kind.name.capitalize()}:", "", *_table(some), ""]
    if results.skipped:
        lines += ["Left out:", "", *(f"- {what}" for what in results.skipped), ""]
    return "\n".join(lines)


def _table(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    titles = ["method", "sweep", *_RATES, "contrast of what is there", "of what is not", "threshold"]
    table = []
    for entry in sorted(entries, key=lambda entry: entry["sweep"]):
        cells = [f"`{entry['method']}`", str(entry["sweep"])]
        cells += [_rate(entry[name]) for name in _RATES]
        table.append([*cells, *(f"{entry[name]:.2f}" for name in ("contrast", "left", "threshold"))])
    return markdown_table(titles, table)


def _rate(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['rate']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]" if found["of"] else ""


def _mean(values: Iterable[float]) -> float:
    some = list(values)
    return float(np.mean(some)) if some else float("nan")
