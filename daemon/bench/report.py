"""The tables and the JSON that a bench writes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_FIGURES = (
    ("volume, ms", "volume_s", "ms"),
    ("with wire and file, ms", "pipeline_s", "ms"),
    ("first volume, ms", "cold_s", "ms"),
    ("million voxels a second", "voxels_per_s", "millions"),
    ("ns per voxel", "ns_per_voxel", "number"),
    ("times torch eager float32: network", "ratio_eager_fp32", "times"),
    ("times the reference", "ratio_reference", "times"),
    ("network, of the matrix-product rate", "limit_fraction", "percent"),
    ("GPU idle", "host_share", "percent"),
    ("peak memory, MB", "peak_resident_mb", "number"),
    ("peak GPU memory, MB", "peak_cuda_mb", "number"),
)


def tables(document: Mapping[str, Any], width: int | None = None) -> str:
    """Return the tables of a document."""
    console = Console(
        width=width or shutil.get_terminal_size((110, 24)).columns, highlight=False, soft_wrap=True
    )
    engine, sizes = document["engine"], document["sizes"]
    limits = engine["limits"]
    with console.capture() as capture:
        console.print(f"{engine['runtime']}, {engine['weights']} ({engine['reason']})")
        console.print(
            f"{limits['precision']} matrix products on this machine: "
            f"{limits['flop_per_s'] / 1e9:,.0f} GFLOP/s"
        )
        console.print(_figures(sizes))
        console.print(_stages(sizes))
    return capture.get().rstrip()


def _table(corner: str, names: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(corner)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _figures(sizes: Mapping[str, Any]) -> Table:
    table = _table("", sizes)
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
    table = _table("stage, ms", columns)
    for stage in dict.fromkeys(stage for column in columns.values() for stage in column):
        table.add_row(stage, *(_shown(column.get(stage), "ms") for column in columns.values()))
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
    if unit == "times" and value < 100:
        return f"{value:.1f}"
    return f"{value:,.0f}"
