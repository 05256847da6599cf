"""What a bench says: the JSON document, and tables for the terminal."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from microdiffusion.errors import DiskError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LINEAR = 1.3
"""The largest size may cost so many times as much per voxel as the smallest, and is still called linear."""

_FIGURES = (
    ("volume, ms", "volume_s", "ms"),
    ("with wire and file, ms", "pipeline_s", "ms"),
    ("first volume, ms", "cold_s", "ms"),
    ("million voxels a second", "voxels_per_s", "millions"),
    ("ns per voxel", "ns_per_voxel", "number"),
    ("times torch eager float32: network", "ratio_eager_fp32", "times"),
    ("times torch eager float32: volume", "ratio_eager_fp32_volume", "times"),
    ("times the reference", "ratio_reference", "times"),
    ("times its shortcut, untrained", "ratio_shortcut", "times"),
    ("network, of the matrix-product rate", "limit_fraction", "percent"),
    ("volume, of the memory-copy rate", "copy_fraction", "percent"),
    ("recorder, of the raw write rate", "write_fraction", "percent"),
    ("GPU idle", "host_share", "percent"),
    ("peak memory, MB", "peak_resident_mb", "number"),
    ("peak GPU memory, MB", "peak_cuda_mb", "number"),
)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document.

    Raises
    ------
    DiskError
        The file cannot be written.
    """
    try:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written ({error.strerror or error}): choose another file for --json."
        ) from error


def text(document: Mapping[str, Any], width: int | None = None) -> str:
    """Return the tables of a document."""
    width = width or shutil.get_terminal_size((110, 24)).columns
    console = Console(width=width, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        engine = document["engine"]
        limits = engine["limits"]
        console.print(f"{engine['runtime']}, {engine['weights']} ({engine['reason']})")
        console.print(
            f"limits of this machine: {limits['flop_per_s'] / 1e9:,.0f} GFLOP/s "
            f"({limits['precision']} matrix product), "
            f"{limits['copy_bytes_per_s'] / 1e9:.1f} GB/s (memory copy, read and written)"
        )
        console.print(_figures(document["sizes"]))
        console.print(_stages(document["sizes"]))
        for title, table in (document.get("growth") or {}).items():
            console.print(_growth(title, table))
    return capture.get().rstrip()


def _figures(sizes: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in sizes:
        table.add_column(name, justify="right")
    for title, key, unit in _FIGURES:
        values = [size.get(key) for size in sizes.values()]
        if any(value is not None for value in values):
            table.add_row(title, *(_shown(value, unit) for value in values))
    for title, share in (("latency p50, ms", "p50"), ("p95", "p95"), ("p99", "p99")):
        table.add_row(title, *(_shown(size["latency_s"][share]["pipeline"], "ms") for size in sizes.values()))
    return table


def _stages(sizes: Mapping[str, Any]) -> Table:
    """Return milliseconds by stage; a column for each number of evaluations of each size."""
    columns = {
        f"{name}, {evaluations} ev.": by["stages"]
        for name, size in sizes.items()
        for evaluations, by in size["by_evaluations"].items()
    }
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage, ms")
    for name in columns:
        table.add_column(name, justify="right")
    stages = dict.fromkeys(stage for column in columns.values() for stage in column)
    for stage in stages:
        table.add_row(stage, *(_shown(column.get(stage), "ms") for column in columns.values()))
    return table


def _growth(title: str, figures: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"cost against {title}", title_justify="left")
    table.add_column("")
    per = figures["ns_per_voxel"]
    for name in per:
        table.add_column(name, justify="right")
    table.add_row("volume, ms", *(_shown(figures["volume_s"][name], "ms") for name in per))
    table.add_row("ns per voxel", *(_shown(value, "number") for value in per.values()))
    ratio = figures.get("largest_over_smallest")
    if ratio is not None:
        verdict = "linear" if ratio <= _LINEAR else f"more than {_LINEAR:g}: not linear"
        table.caption = f"largest over smallest, per voxel: {ratio:.2f} ({verdict})"
        table.caption_justify = "left"
    return table


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "ms":
        return f"{1e3 * value:,.1f}"
    if unit == "millions":
        return f"{value / 1e6:,.1f}"
    if unit == "percent":
        return f"{100 * value:.1f} %"
    if unit == "times":
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:,.0f}"
