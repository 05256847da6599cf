"""Print the tables of docs/performance.md from benchmarks/results/performance.json.

    python benchmarks/performance_tables.py [FILE]

A document of `mdd bench --json` will do as well; it has the sizes, without their byte floors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "performance.json"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ms(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return f"{1e3 * seconds:,.1f}"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def sizes(found: dict[str, Any]) -> list[str]:
    """Return figures, stages and floors by size."""
    figures = [
        [
            name, ms(s["volume_s"]), ms(s["pipeline_s"]), ms(s["cold_s"]), f"{s['voxels_per_s'] / 1e6:.1f}",
            ms(s["latency_s"]["p95"]["pipeline"]), ms(s["latency_s"]["p99"]["pipeline"]),
            f"{s['peak_resident_mb'] or 0:,.0f}", f"{s['ratio_eager_fp32']:.1f}",
            f"{s['ratio_reference']:,.0f}" if "ratio_reference" in s else "-",
        ]
        for name, s in found.items()
    ]  # fmt: skip
    head = "size|volume, ms|with wire and file|first|Mvoxel/s|p95|p99|MB|x eager, network|x reference"
    stages = dict.fromkeys(stage for s in found.values() for stage in s["stages"])
    columns = {
        f"{name}, {count}": by["stages"]
        for name, s in found.items()
        for count, by in s["by_evaluations"].items()
    }
    floors = [
        [
            name, f"{s['floors']['flop'] / 1e9:,.0f}", ms(s["floors"]["arithmetic_s"]),
            percent(s["limit_fraction"]), percent(s["limit_fraction_volume"]),
            f"{s['floors']['bytes'] / 1e6:,.0f}", ms(s["floors"]["bytes_s"]), percent(s["copy_fraction"]),
            ms(s["floors"]["layer_bytes_s"]), percent(s["host_share"]),
        ]
        for name, s in found.items()
        if "bytes" in s["floors"]
    ]  # fmt: skip
    floor_head = (
        "size|GFLOP|arithmetic floor, ms|network, % of it|volume, %|MB|byte floor, ms|volume, %|"
        "layer by layer, ms|GPU idle, %"
    )
    return [
        table(head.split("|"), figures),
        table(
            ["stage, ms", *columns],
            [[stage, *(ms(column.get(stage, 0.0)) for column in columns.values())] for stage in stages],
        ),
        table(floor_head.split("|"), floors),
    ]


def growth(found: dict[str, Any]) -> list[str]:
    """Return a table for each thing that grows."""
    tables = []
    for title, figures in found.items():
        rows = [
            ["volume, ms", *(ms(seconds) for seconds in figures["volume_s"].values())],
            ["ns per voxel", *(f"{value:.0f}" for value in figures["ns_per_voxel"].values())],
        ]
        ratio = figures.get("largest_over_smallest")
        note = "" if ratio is None else f"\nLargest over smallest, per voxel: {ratio:.2f}.\n"
        tables.append(table([title, *figures["volume_s"]], rows) + note)
    return tables


def runtimes(found: dict[str, Any]) -> str:
    """Return a row for each runtime."""
    return table(
        ["runtime", "network, ms", "update, ms", "x eager, network", "x eager, update", "relative error"],
        [
            [
                name, ms(row["network_s"]), ms(row["volume_s"]), f"{row['ratio_network']:.2f}",
                f"{row['ratio_volume']:.2f}", f"{row['relative_error']:.1e}",
            ]
            for name, row in found.items()
        ],
    )  # fmt: skip


def inr(found: dict[str, Any]) -> str:
    """Return a row for each specimen."""
    return table(
        ["specimen", "cold over warm", "held-out sweeps", "worst residual, warm over cold",
         "sudden change: time, residual over cold"],
        [
            [
                name, f"{row['cold_over_warm']:.1f}",
                f"{row['cold_over_warm, with a held-out projection']:.1f}",
                f"{row['worst residual warm over cold']:.3f}",
                f"{row['sudden change, warm over cold']['inr_s']:.2f}, "
                f"{row['sudden change, warm over cold']['residual']:.3f}",
            ]
            for name, row in found.items()
        ],
    )  # fmt: skip


def main() -> None:
    """Print every table that the file has figures for."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    results = json.loads(path.read_text(encoding="utf-8"))
    found = results.get("sizes", {})
    parts = {
        "sizes": lambda: sizes(found.get("sizes", found)),
        "growth": lambda: growth(results["growth"]["growth"]),
        "runtimes": lambda: [runtimes(results["runtimes"]["runtimes"])],
        "inr": lambda: [inr(results["inr"]["specimens"])],
    }
    for part, make in parts.items():
        if part in results:
            about = results[part].get("machine", results.get("machine", {}))
            print(
                f"{part}: {about.get('processor')}, {about.get('threads')} threads, {about.get('commit')}\n"
            )
            print("\n".join(make()))


if __name__ == "__main__":
    main()
