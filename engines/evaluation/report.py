"""The results on paper: JSON with everything, CSV with the rows, Markdown with the tables.

All three are written whole under a temporary name and then renamed, so that an interrupted evaluation leaves
the last complete one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from typing import TYPE_CHECKING, Any

from microdiffusion.engines.evaluation.summary import better_classical, per_volume, summarise

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.engines.evaluation.runner import Plan, Results

_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("psnr_db", "PSNR dB", 2),
    ("ssim", "SSIM", 3),
    ("ssim_3d", "SSIM 3D", 3),
    ("foreground_psnr_db", "foreground PSNR dB", 2),
    ("dice", "Dice", 3),
    ("sharpness", "z-energy", 2),
    ("foreground_sharpness", "foreground z-energy", 2),
    ("axial_cutoff", "axial cut-off", 3),
    ("axial_area", "axial FSC", 3),
    ("lpips", "LPIPS", 3),
    ("held_out_error", "held-out", 2),
    ("evaluations", "evaluations", 0),
    ("seconds", "s", 2),
    ("memory_mb", "MB", 0),
)


def document(plan: Plan, results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """Return everything as it goes into the JSON file; `about` is the machine and the versions."""
    protocol = plan.protocol
    return {
        "protocol": {
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
        },
        "machine": about,
        "methods": [method.name for method in plan.methods],
        "classical": results.classical,
        "summary": summarise(results),
        "rows": results.rows,
        "skipped": results.skipped,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the document; what is not a number becomes null."""
    _write(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, results: Results) -> None:
    """Write one line per row; what is not a number stays empty."""
    columns = list(dict.fromkeys(key for row in results.rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: "" if _unknown(value) else value for key, value in row.items()} for row in results.rows
    )
    _write(path, text.getvalue())


def write_markdown(path: Path, content: dict[str, Any], results: Results) -> None:
    """Write the tables: means with intervals and gains per step, then PSNR / SSIM of each volume."""
    _write(path, markdown(content, results))


def markdown(content: dict[str, Any], results: Results) -> str:
    """Return the tables as Markdown."""
    lines = [_conditions(content), ""]
    for step, summary in content["summary"].items():
        rows = [row for row in results.rows if f"{row['step']:g}" == step]
        methods = summary["methods"]
        lines += [f"## Step {step}", "", *_means(methods), ""]
        if results.classical:
            lines += [*_gains(methods), ""]
        lines += [*_volumes(rows, results.classical), ""]
        held_out = summary["held_out"]
        lines += [
            "Rank correlation (Spearman) of held-out error and true error over the methods: "
            f"{_number(held_out['within']['mean'], 2)} {_interval(held_out['within']['interval'], 2)} "
            f"within a volume, {_number(held_out['pooled'], 2)} over all pairs of method and volume.",
            "",
        ]
    if results.skipped:
        lines += ["Left out:", "", *(f"- {what}" for what in results.skipped), ""]
    return "\n".join(lines)


def _conditions(content: dict[str, Any]) -> str:
    protocol = content["protocol"]
    crop = protocol["crop"]
    size = f"the middle {' x '.join(map(str, crop))} at most" if crop else "the whole volume"
    noise = (
        f"{protocol['photons']:g} photons per pixel at 1"
        if protocol["photons"]
        else f"white noise of {protocol['noise']:g}"
    )
    shown = "shown to the methods" if protocol["held_out_shown_to_methods"] else "shown to no method"
    return (
        f"Slab of {protocol['length']:g} slices, {noise}, {size}, percentiles 1 and 99.9 to [0, 1]; scores "
        f"at a data range of 1; one held-out projection, {shown}; "
        f"seeds {', '.join(map(str, protocol['seeds']))}. "
        "Means over volumes; in brackets the 95 % bootstrap interval."
    )


def _means(methods: dict[str, Any]) -> list[str]:
    columns = [column for column in _COLUMNS if any(column[0] in entry for entry in methods.values())]
    lines = _header(["method", *(title for _, title, _ in columns)])
    for name, entry in methods.items():
        cells = []
        for key, _, digits in columns:
            figure = entry.get(key, {"mean": math.nan, "interval": (math.nan, math.nan)})
            cell = _number(figure["mean"], digits)
            if key in ("psnr_db", "ssim"):
                cell += f" {_interval(figure['interval'], digits)}"
            cells.append(cell)
        lines.append(_line([f"`{name}`", *cells]))
    return lines


def _gains(methods: dict[str, Any]) -> list[str]:
    lines = ["Gain over the best classical answer of each volume:", ""]
    lines += _header(["method", "PSNR dB", "SSIM", "least PSNR gain", "worse on"])
    for name, entry in methods.items():
        psnr, ssim = entry["gain"]["psnr_db"], entry["gain"]["ssim"]
        if psnr and ssim:
            cells = [f"`{name}`"]
            cells += [f"{g['mean']:+.{d}f} {_interval(g['interval'], d)}" for g, d in ((psnr, 2), (ssim, 3))]
            cells += [
                f"{psnr['least']:+.2f} ({psnr['least_on']})",
                f"{psnr['worse_on']} of {entry['volumes']}",
            ]
            lines.append(_line(cells))
    return lines


def _volumes(rows: list[dict[str, Any]], classical: tuple[str, ...]) -> list[str]:
    table = per_volume(rows)
    best = better_classical(table, classical, "psnr_db")
    names = sorted({volume for scores in table.values() for volume in scores})
    lines = ["PSNR / SSIM of each volume:", ""]
    lines += _header(
        ["volume", *(f"`{method}`" for method in table), *(["best classical"] if classical else [])]
    )
    for volume in names:
        cells = [volume]
        for scores in table.values():
            known = scores.get(volume)
            cells.append(f"{_number(known['psnr_db'], 2)} / {_number(known['ssim'], 3)}" if known else "")
        if classical:
            cells.append(best[volume][1] if volume in best else "")
        lines.append(_line(cells))
    return lines


def _header(titles: list[str]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return "" if _unknown(value) else f"{value:.{digits}f}"


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


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
