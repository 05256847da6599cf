"""From rows to figures: means with intervals, gains over the best classical answer, worth of the held-out.

Volumes are what is sampled: seeds of one volume are averaged first, and intervals are bootstrapped over
volumes (percentile, 95 %). The classical answer to beat is the best one of each volume, picked with the truth
at hand and for each score anew, so it is better than any single method.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.metrics import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microdiffusion.engines.evaluation.runner import Results, Row

SCORES = (
    "psnr_db",
    "ssim",
    "ssim_3d",
    "foreground_psnr_db",
    "dice",
    "sharpness",
    "foreground_sharpness",
    "axial_cutoff",
    "axial_area",
    "lpips",
    "held_out_error",
)
COSTS = ("seconds", "memory_mb", "device_memory_mb", "evaluations")
GAINS = ("psnr_db", "ssim")


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
        f"{step:g}": _step([r for r in results.rows if r["step"] == step], results.classical)
        for step in steps
    }


def per_volume(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return method -> volume -> score, the mean over the seeds."""
    collected: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        collected[row["method"]][row["volume"]].append(row)
    return {
        method: {
            volume: {
                key: _mean([float(row[key]) for row in same]) for key in (*SCORES, *COSTS) if key in same[0]
            }
            for volume, same in volumes.items()
        }
        for method, volumes in collected.items()
    }


def better_classical(
    table: dict[str, dict[str, dict[str, float]]], classical: Iterable[str], score: str
) -> dict[str, tuple[float, str]]:
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
        for key in (*SCORES, *COSTS):
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
        "held_out": _held_out(table),
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


def _held_out(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return how well the held-out error ranks the methods by their true error (Spearman).

    `within` is the mean over volumes of the rank correlation over methods, which is what choosing among
    answers needs; `pooled` that of all pairs of method and volume. 1: the order of the true error (RMSE,
    from the PSNR).
    """
    volumes = sorted({volume for scores in table.values() for volume in scores})
    within: dict[str, float] = {}
    pairs: list[tuple[float, float]] = []
    for volume in volumes:
        mine = [
            (scores[volume]["held_out_error"], -scores[volume]["psnr_db"])
            for scores in table.values()
            if volume in scores
        ]
        pairs += mine
        within[volume] = _spearman(mine)
    values = list(within.values())
    return {
        "within": {"mean": _mean(values), "interval": bootstrap_interval(values), "volumes": within},
        "pooled": _spearman(pairs),
    }


def _spearman(pairs: list[tuple[float, float]]) -> float:
    """Return the rank correlation; NaN for fewer than three pairs or where one side is constant."""
    from scipy.stats import rankdata

    array = np.array([pair for pair in pairs if not np.isnan(pair).any()])
    if len(array) < 3:
        return float("nan")
    ranks = rankdata(array, axis=0)
    if np.any(np.ptp(ranks, axis=0) == 0):
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
