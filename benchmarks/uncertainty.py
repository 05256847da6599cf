"""Does the uncertainty say where a volume is wrong, and by how much? On recorded volumes, against the truth.

    python benchmarks/uncertainty.py --volumes FOLDER [--json benchmarks/results/uncertainty.json]

A cold sweep of the middle of each volume, slabs of 6 slices at steps of 6 and 8, noise 0.01, one projection
held out, the shipped weights, which were trained on these volumes among others. For each:
Spearman's correlation of uncertainty and absolute error, over voxels and over the rms of blocks of 4 x 4 x
4; the share of voxels whose error is below 1, 2 and 3 times the uncertainty; the rms error over the rms
uncertainty. The same with nothing held out. What else could have been taken, by correlation alone, at the
first step: the differences between answers, brightness, the slope along z, and the standard deviation over
seeds of the bridge's noise. Then what it costs at the demo's size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, machine
from scipy.stats import spearmanr

from microdiffusion.config.load import load_config
from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.bench.scene import make_scene
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, read_truth
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.trust import uncertainty as measured

CROP = (54, 64, 64)
STEPS = (6.0, 8.0)
SEEDS = 2
CONFIG = EngineConfig(device="cpu", uncertainty=True)
_VOXELS = 60_000  # of a volume, for the rank correlation


class Watched(Reconstructor):
    """A reconstructor whose answers can be looked at, in the units of the projections."""

    answers: dict[str, np.ndarray]
    floor: float

    def _unsure(self, task: Any, answers: Any, served: str) -> Any:
        session = task.session
        self.answers = {name: (each * session.span + session.low).numpy() for name, each in answers.items()}
        self.floor = task.floor * session.span + session.low
        return super()._unsure(task, answers, served)


class Timed(Reconstructor):
    """A reconstructor that keeps what each uncertainty took, in processor seconds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.spent_s: list[float] = []

    def _unsure(self, task: Any, answers: Any, served: str) -> Any:
        began_s = time.process_time()
        result = super()._unsure(task, answers, served)
        self.spent_s.append(time.process_time() - began_s)
        return result


def judged(uncertainty: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Return what there is to say of an uncertainty and the absolute errors (Z, Y, X)."""
    return {
        **ranked(uncertainty, error),
        **{f"within_{k}": round(float((error < k * uncertainty).mean()), 4) for k in (1, 2, 3)},
        "error_over_uncertainty": round(float(_rms(error) / _rms(uncertainty)), 3),
    }


def ranked(uncertainty: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Return the rank correlations alone."""
    some = np.random.default_rng(0).choice(error.size, min(_VOXELS, error.size), replace=False)
    voxels = spearmanr(uncertainty.ravel()[some], error.ravel()[some]).statistic
    blocks = spearmanr(_blocks(uncertainty).ravel(), _blocks(error).ravel()).statistic
    return {"spearman_voxels": round(float(voxels), 3), "spearman_blocks": round(float(blocks), 3)}


def one(case: Case, engine: Engine, *, others: bool) -> dict[str, Any]:
    """Return the figures of a case."""
    made = Watched(case.header, CONFIG, engine)
    result = made.reconstruct(case.sweep)
    error = np.abs(result.volume - case.truth)[case.seen]
    report: dict[str, Any] = {
        "served": result.served,
        "rms_error": round(float(_rms(error)), 5),
        "held_out": judged(_uncertainty(result)[case.seen], error),
    }
    nothing = replace(
        case.sweep, held_out_stage=case.sweep.held_out_stage[:0], held_out=case.sweep.held_out[:0]
    )
    untold = Reconstructor(case.header, CONFIG, engine).reconstruct(nothing)
    report["nothing_held_out"] = judged(
        _uncertainty(untold)[case.seen], np.abs(untold.volume - case.truth)[case.seen]
    )
    if others:
        candidates = _candidates(case, engine, made, result.volume)
        report["others"] = {name: ranked(each[case.seen], error) for name, each in candidates.items()}
    return report


def _candidates(case: Case, engine: Engine, made: Watched, volume: np.ndarray) -> dict[str, np.ndarray]:
    answers = made.answers
    seeds = []
    for seed in range(SEEDS):
        config = CONFIG.model_copy(update={"interpolation": 1.0, "seed": seed})
        other = Watched(case.header, config, engine)
        other.reconstruct(case.sweep)
        seeds.append(other.answers["mdd"])
    return {
        "mdd - inr": np.abs(answers["mdd"] - answers["inr"]),
        "std of mdd, inr, tikhonov": np.std([answers[name] for name in ("mdd", "inr", "tikhonov")], axis=0),
        f"std over {SEEDS} seeds at interpolation 1": np.std(seeds, axis=0),
        "slope along z": np.abs(np.gradient(volume, axis=0)),
        "brightness": np.maximum(volume - made.floor, 0.0),
    }


def cost(rounds: int = 12) -> dict[str, float]:
    """Return the processor seconds of a warm volume of the demo's size, and of its uncertainty; medians.

    On one thread: what else runs on the machine then counts little.
    """
    config = load_config("demo")
    settings = config.engine.model_copy(update={"threads": 1, "device": "cpu", "uncertainty": True})
    scene = make_scene(config, (48, 128, 128), seed=0)
    made = Timed(scene.header, settings, open_engine(settings))
    volumes = []
    for number in range(rounds):
        sweep = scene.sweep(number)
        began_s = time.process_time()
        made.reconstruct(sweep)
        volumes.append(time.process_time() - began_s)
    volume_s, part_s = (float(np.median(some[2:])) for some in (volumes, made.spent_s))
    return {"volume_cpu_s": round(volume_s, 4), "of_it_uncertainty_cpu_s": round(part_s, 4)}


def _uncertainty(result: Any) -> np.ndarray:
    if result.uncertainty is None:
        raise SystemExit("no uncertainty came")
    return np.asarray(result.uncertainty)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _blocks(values: np.ndarray) -> np.ndarray:
    z, y, x = (length // 4 for length in values.shape)
    part = values[: 4 * z, : 4 * y, : 4 * x].astype(np.float64) ** 2
    return np.sqrt(part.reshape(z, 4, y, 4, x, 4).mean(axis=(1, 3, 5)))


def _summary(cases: dict[str, Any], way: str) -> dict[str, float]:
    rows = [case[way] for case in cases.values()]
    summary = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    ratios = [row["error_over_uncertainty"] for row in rows]
    logs = np.log(ratios)
    summary["error_over_uncertainty"] = round(float(np.exp(logs.mean())), 3)
    summary["least_ratio"], summary["most_ratio"] = min(ratios), max(ratios)
    # What the constant would be, had each volume been left out when it was chosen.
    left_out = [float(np.exp(np.delete(logs, n).mean())) for n in range(len(logs))]
    summary["ratio_without_one_least"], summary["ratio_without_one_most"] = (
        round(min(left_out), 3),
        round(max(left_out), 3),
    )
    return summary


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "uncertainty.json")
    options = parser.parse_args()
    engine = open_engine(CONFIG)
    report: dict[str, Any] = {
        "machine": machine(),
        "runtime": engine.name,
        "weights": engine.weights,
        "threads": torch.get_num_threads(),
        "crop": CROP,
        "untold_scale": measured.DEFAULT_SCALE,
        "steps": {},
    }
    for step in STEPS:
        cases = {}
        for path in sorted(options.volumes.glob("*.h5")):
            truth = np.ascontiguousarray(read_truth(path, CROP))
            case = make_case(truth, Protocol(step=step, length=6.0, noise=0.01))
            cases[path.stem] = one(case, engine, others=step == STEPS[0])
            print(step, path.stem, cases[path.stem]["held_out"], file=sys.stderr, flush=True)
        summary: dict[str, Any] = {way: _summary(cases, way) for way in ("held_out", "nothing_held_out")}
        if step == STEPS[0]:
            names = next(iter(cases.values()))["others"]
            summary["others"] = {
                name: {
                    kind: round(float(np.mean([case["others"][name][kind] for case in cases.values()])), 3)
                    for kind in ("spearman_voxels", "spearman_blocks")
                }
                for name in names
            }
        report["steps"][f"{step:g}"] = {"mean": summary, "volumes": cases}
    report["cost_48x128x128"] = cost()
    text = json.dumps(report, indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
