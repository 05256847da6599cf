"""The figure of benchmarks/results/performance.json: stages, cost per voxel, evaluations, runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_SKIPPED = ("receive", "assemble", "other")  # too small to be seen


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what is there; parts that were not run leave their panel empty."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    _stages(axes[0, 0], results.get("sizes", {}).get("sizes", {}))
    _per_voxel(axes[0, 1], results.get("growth", {}).get("growth", {}))
    _evaluations(axes[1, 0], results.get("growth", {}).get("growth", {}))
    _runtimes(axes[1, 1], results.get("runtimes", {}).get("runtimes", {}))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _stages(axis: plt.Axes, sizes: dict[str, Any]) -> None:
    below = dict.fromkeys(sizes, 0.0)
    stages = dict.fromkeys(stage for size in sizes.values() for stage in size["stages"])
    for stage in stages:
        if stage in _SKIPPED:
            continue
        heights = {
            name: 1e9 * size["stages"].get(stage, 0.0) / size["voxels"] for name, size in sizes.items()
        }
        axis.bar(list(sizes), list(heights.values()), bottom=list(below.values()), label=stage)
        below = {name: below[name] + heights[name] for name in sizes}
    axis.set(ylabel="ns per voxel", title="Stages, one evaluation")
    axis.tick_params(axis="x", labelsize=8)
    if sizes:
        axis.set_ylim(top=1.35 * max(below.values()))
        axis.legend(fontsize=8, loc="upper center", ncol=3)


def _per_voxel(axis: plt.Axes, growth: dict[str, Any]) -> None:
    for title in ("area", "depth"):
        if title in growth:
            each = growth[title]["ns_per_voxel"]
            voxels = [_voxels(name) for name in each]
            axis.plot(voxels, list(each.values()), "o-", label=f"more {title}")
    axis.set(xscale="log", xlabel="voxels", ylabel="ns per voxel", title="Cost per voxel")
    axis.set_ylim(bottom=0)
    if growth:
        axis.legend(fontsize=8)


def _evaluations(axis: plt.Axes, growth: dict[str, Any]) -> None:
    if "evaluations" in growth:
        seconds = growth["evaluations"]["volume_s"]
        axis.plot([int(name) for name in seconds], [1e3 * s for s in seconds.values()], "o-")
    axis.set(xlabel="evaluations of the network", ylabel="ms per volume", title="64 x 128 x 128")
    axis.set_ylim(bottom=0)


def _runtimes(axis: plt.Axes, runtimes: dict[str, Any]) -> None:
    names = list(runtimes)[::-1]
    axis.barh(names, [1e3 * runtimes[name]["volume_s"] for name in names], color="0.8", label="update")
    axis.barh(
        names, [1e3 * runtimes[name]["network_s"] for name in names], height=0.4, label="of it, the network"
    )
    axis.set(xlabel="ms per volume", title="Runtimes, 64 x 128 x 128")
    axis.tick_params(axis="y", labelsize=8)
    if runtimes:
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.18), ncol=2)


def _voxels(name: str) -> int:
    slices, rows, columns = (int(part) for part in name.split("x"))
    return slices * rows * columns
