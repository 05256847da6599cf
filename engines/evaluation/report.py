"""From rows to figures, and the files that hold them: JSON (everything) and Markdown (tables).

The unit of sampling is the volume: seeds of one volume are averaged first, and intervals are bootstrapped
over volumes (percentile, 95 %). The classical answer to beat is the best one of each volume, picked with the
truth at hand and separately for each score, so it is better than any single method. Files replace earlier
ones when they are complete, so that an interrupted evaluation leaves the last complete one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.engines.evaluation.runner import EvaluationPlan, Results, Row
from microdiffusion.files import write_text
from microdiffusion.metrics import bootstrap_interval
from microdiffusion.text import markdown_table

SCORES = {
    "psnr_db": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "ssim_3d": ("SSIM 3D", 3),
    "foreground_psnr_db": ("foreground PSNR dB", 2),
    "dice": ("Dice", 3),
    "sharpness": ("z-energy", 2),
    "foreground_sharpness": ("foreground z-energy", 2),
    "axial_cutoff": ("axial cut-off", 3),
    "axial_area": ("axial FSC", 3),
    "held_out_error": ("held-out", 2),
}
"""Key of a row -> title of the column, digits."""
COSTS = {
    "evaluations": ("evaluations", 0),
    "seconds": ("s", 2),
    "memory_mb": ("MB", 0),
    "device_memory_mb": ("GPU MB", 0),
}
GAINS = ("psnr_db", "ssim")

Table = dict[str, dict[str, dict[str, float]]]
"""Method -> volume -> score, the mean over the seeds."""


def summarise(results: Results) -> dict[str, Any]:
    """Return the summary, by step and method, as it goes into the JSON file.

    Returns
    -------
    dict
        ``{"6": {"methods": {name: {"volumes", score: {"mean", "interval"}, "gain": {...}}},
        "held_out": {...}}}``
    """
    steps = sorted({row["step"] for row in results.rows})
    return {
        f"{step:g}": _step([row for row in results.rows if row["step"] == step], results.classical)
        for step in steps
    }


def per_volume(rows: Iterable[Row]) -> Table:
    """Return the mean over the seeds of each score."""
    collected: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        collected[row["method"]][row["volume"]].append(row)
    return {
        method: {
            volume: {
                key: _mean([float(row[key]) for row in same]) for key in SCORES | COSTS if key in same[0]
            }
            for volume, same in volumes.items()
        }
        for method, volumes in collected.items()
    }


def better_classical(table: Table, classical: Iterable[str], score: str) -> dict[str, tuple[float, str]]:
    """Return volume -> (score, method) of the best classical answer."""
    best: dict[str, tuple[float, str]] = {}
    for method in classical:
        for volume, scores in table.get(method, {}).items():
            if volume not in best or scores[score] > best[volume][0]:
                best[volume] = (scores[score], method)
    return best


def _step(rows: list[Row], classical: tuple[str, ...]) -> dict[str, Any]:
    table = per_volume(rows)
    best = {score: better_classical(table, classical, score) for score in GAINS}
    methods: dict[str, Any] = {}
    for method, volumes in table.items():
        entry: dict[str, Any] = {"volumes": len(volumes)}
        for key in SCORES | COSTS:
            values = [scores[key] for scores in volumes.values() if key in scores]
            if values:
                entry[key] = {"mean": _mean(values), "interval": bootstrap_interval(values)}
        if any(best.values()):
            entry["gain"] = {
                score: _gain({v: volumes[v][score] - best[score][v][0] for v in volumes if v in best[score]})
                for score in GAINS
            }
        methods[method] = entry
    return {
        "methods": methods,
        "better_classical": {
            score: {volume: {"method": method, "score": value} for volume, (value, method) in found.items()}
            for score, found in best.items()
        },
    }


def _gain(gains: dict[str, float]) -> dict[str, Any]:
    """Return mean, interval, and the volume that gains least."""
    if not gains:
        return {}
    worst = min(gains, key=gains.__getitem__)
    values = list(gains.values())
    return {
        "mean": _mean(values),
        "interval": bootstrap_interval(values),
        "least": gains[worst],
        "least_on": worst,
        "worse_on": sum(value < 0 for value in values),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def protocol_of(plan: EvaluationPlan) -> dict[str, Any]:
    """Return the conditions of a plan as they go into the JSON file."""
    protocol = plan.protocol
    return {
        "length": protocol.length,
        "steps": list(plan.steps),
        "offset": protocol.offset,
        "profile": "box",
        "noise": None if protocol.photons else protocol.noise,
        "photons": protocol.photons,
        "crop": protocol.crop,
        "percentiles": [1, 99.9],
        "data_range": 1,
        "held_out_shown_to_methods": protocol.held_out,
        "seeds": list(range(plan.seeds)),
        "engine": {key: str(value) for key, value in plan.engine.items()},
    }


def document(plan: EvaluationPlan, results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """Return everything as it goes into the JSON file; `about` is the machine and the versions."""
    return {
        "protocol": protocol_of(plan),
        "machine": about,
        "methods": [method.name for method in plan.methods],
        "classical": results.classical,
        "summary": summarise(results),
        "rows": results.rows,
        "skipped": results.skipped,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the document; what is not a number becomes null."""
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def markdown(content: dict[str, Any], results: Results) -> str:
    """Return the tables: means with intervals and gains per step, then PSNR / SSIM of each volume."""
    lines = [_conditions(content["protocol"]), ""]
    for step, summary in content["summary"].items():
        lines += [f"## Step {step}", "", *_means(summary["methods"]), ""]
        if results.classical:
            lines += ["Gain over the best classical answer of each volume:", ""]
            lines += [*_gains(summary["methods"]), ""]
        rows = [row for row in results.rows if f"{row['step']:g}" == step]
        lines += ["PSNR / SSIM of each volume:", "", *_volumes(rows, results.classical), ""]
    if results.skipped:
        lines += ["Left out:", "", *(f"- {what}" for what in results.skipped), ""]
    return "\n".join(lines)


def _conditions(protocol: dict[str, Any]) -> str:
    crop, photons = protocol["crop"], protocol["photons"]
    size = f"the middle {' x '.join(map(str, crop))} at most" if crop else "the whole volume"
    noise = f"{photons:g} photons per pixel at 1" if photons else f"white noise of {protocol['noise']:g}"
    shown = "shown to the methods" if protocol["held_out_shown_to_methods"] else "shown to no method"
    return (
        f"Slab of {protocol['length']:g} slices, {noise}, {size}, percentiles 1 and 99.9 to [0, 1]; scores "
        f"at a data range of 1; one held-out projection, {shown}; "
        f"seeds {', '.join(map(str, protocol['seeds']))}. "
        "Means over volumes; in brackets the 95 % bootstrap interval."
    )


def _means(methods: dict[str, Any]) -> list[str]:
    shown = SCORES | COSTS
    columns = [
        key for key in shown if any(not _unknown(e.get(key, {}).get("mean")) for e in methods.values())
    ]
    table = []
    for name, entry in methods.items():
        cells = [f"`{name}`"]
        for key in columns:
            digits = shown[key][1]
            figure = entry.get(key, {"mean": None})
            cells.append(_number(figure["mean"], digits))
            if key in GAINS:
                cells[-1] += f" {_interval(figure['interval'], digits)}"
        table.append(cells)
    return markdown_table(["method", *(shown[key][0] for key in columns)], table)


def _gains(methods: dict[str, Any]) -> list[str]:
    table = []
    for name, entry in methods.items():
        psnr, ssim = entry["gain"]["psnr_db"], entry["gain"]["ssim"]
        if psnr and ssim:
            means = [f"{g['mean']:+.{d}f} {_interval(g['interval'], d)}" for g, d in ((psnr, 2), (ssim, 3))]
            least = f"{psnr['least']:+.2f} ({psnr['least_on']})"
            table.append([f"`{name}`", *means, least, f"{psnr['worse_on']} of {entry['volumes']}"])
    return markdown_table(("method", "PSNR dB", "SSIM", "least PSNR gain", "worse on"), table)


def _volumes(rows: list[Row], classical: tuple[str, ...]) -> list[str]:
    table = per_volume(rows)
    best = better_classical(table, classical, "psnr_db")
    titles = ["volume", *(f"`{method}`" for method in table), *(["best classical"] if classical else [])]
    lines = []
    for volume in sorted({volume for scores in table.values() for volume in scores}):
        cells = [volume]
        for scores in table.values():
            known = scores.get(volume)
            cells.append(f"{_number(known['psnr_db'], 2)} / {_number(known['ssim'], 3)}" if known else "")
        if classical:
            cells.append(best[volume][1] if volume in best else "")
        lines.append(cells)
    return markdown_table(titles, lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or _unknown(value) else f"{value:.{digits}f}"


def _interval(interval: tuple[float, float], digits: int) -> str:
    return "" if any(map(_unknown, interval)) else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
