"""Does the uncertainty say where a volume is wrong, and by how much? On recorded volumes, against the truth.

    python benchmarks/uncertainty.py --volumes FOLDER --names a,b [--volumes FOLDER --names ...] [--json FILE]

Sessions of 16 sweeps at golden offsets on the middle of each volume, slabs of 6 slices, noise 0.01, in every
fourth sweep one projection held out; the specimen keeps still, and a second one is active. After sweeps 1, 4
and 16: the voxels of all specimens in ten parts by their uncertainty, rms error over rms uncertainty of each,
with the constants that ship and with constants of which each specimen was left out when they were chosen
(`--fit` prints those of all specimens); the same for each specimen alone; the slope of reconstructed on true
intensity, and what is estimated of it; the coverage of the conformal intervals; ΔF/F of the active specimens
against the truth in units of its deviation; what it costs. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, machine
from skimage.filters import threshold_otsu

from microdiffusion.config.load import load_config
from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.bench.scene import make_scene
from microdiffusion.engines.evaluation.courses import Active
from microdiffusion.engines.evaluation.protocol import Protocol, read_truth
from microdiffusion.engines.evaluation.sessions import SessionPlan, session_sweeps
from microdiffusion.engines.pipeline import confidence as assessed
from microdiffusion.engines.pipeline import reconstructor
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.trust import uncertainty
from microdiffusion.runfile.traces import Region, SlabView, measure_traces

CROP = (48, 48, 48)
SWEEPS = 16
SHOWN = (0, 3, 15)
FITTED = (0, 1, 3, 7, 15)
_VOXELS = 3000  # of a volume, for deciles and constants
_RIDGE = 1e-2

Sample = dict[str, Any]


class Watched:
    """Stands for `confidence` in the reconstructor, and keeps what it was given and what it took."""

    def __init__(self) -> None:
        self.spent_s: list[float] = []
        self.clues: Any = None
        self.spread: Any = None
        self.low = self.span = self.floor = 0.0

    def __call__(self, task: Any, volume: Any) -> Any:
        """Return what `confidence` returns."""
        began_s = time.process_time()
        spread, figures = assessed.confidence(task, volume)
        self.spent_s.append(time.process_time() - began_s)
        self.clues, self.spread = assessed.clues_of(task, volume), spread.clone()
        self.low, self.span, self.floor = task.session.low, task.session.span, task.floor
        return spread, figures


def session(path: Path, course_name: str, step: float, engine: Engine, watched: Watched) -> dict[str, Any]:
    """Return the samples of one session's errors by sweep, and its other figures."""
    truth = np.ascontiguousarray(read_truth(path, CROP))
    plan = SessionPlan(SWEEPS, activity=True)
    course = plan.course(course_name, truth, 0)
    header, sweeps = session_sweeps(course, Protocol(step=step, length=6.0, noise=0.01), plan, 0)
    made = reconstructor.Reconstructor(header, EngineConfig(device="cpu", threads=1), engine)
    rng = np.random.default_rng(0)
    seen = np.zeros(len(truth), bool)
    samples, slopes, covered, volumes = {}, {}, [], []
    for number, sweep in enumerate(sweeps):
        result = made.reconstruct(sweep)
        volumes.append(result.volume)
        covered.append(result.confidence.interval_coverage)
        seen |= header.operator_at(sweep.stage).sum(0) > 0
        rows = np.flatnonzero(seen)
        inside = slice(rows[0], rows[-1] + 1)
        true = ((course.truth(number) - watched.low) / watched.span)[inside]
        told = watched.clues.volume.numpy()[inside] + watched.floor
        lit = true > threshold_otsu(true)
        slopes[number] = (
            _slope(told[lit], true[lit]),
            _slope(told, true),
            result.confidence.brightness_slope,
            result.confidence.brightness_slope_sd,
        )
        if number in FITTED:
            some = rng.choice(true.size, _VOXELS, replace=False)
            level, parts = uncertainty.relative(watched.clues)
            innovation = watched.clues.innovation
            samples[number] = {
                "error": (told - true).ravel()[some].astype(np.float64),
                "spread": watched.spread.numpy()[inside].ravel()[some].astype(np.float64),
                "level": float(level),
                "noise": float(watched.clues.noise),
                "innovation": None if innovation is None else float(innovation.mean()),
                "share": watched.clues.share,
                "parts": np.stack([part.numpy()[inside].ravel()[some] for part in parts], 1),
            }
    found = {"samples": samples, "slopes": slopes, "covered": covered}
    if isinstance(course, Active):
        found["traces"] = _traces(course, header, sweeps, volumes)
    return found


def _traces(course: Active, header: Any, sweeps: Any, volumes: Any) -> dict[str, np.ndarray]:
    """Return ΔF/F's errors, deviations and data shares of the spots that change and those that don't."""
    regions = {}
    for number, ball in enumerate(course.balls, 1):
        z, y, x = (slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(ball))
        regions[number] = Region((z, y, x), ball[z, y, x])

    def reader(number: int) -> Any:
        return lambda: (volumes[number], SlabView.of(sweeps[number], header))

    ages = np.broadcast_to(np.minimum(np.arange(SWEEPS) + 1.0, 8), (len(regions), SWEEPS))
    traces = measure_traces([reader(n) for n in range(SWEEPS)], regions, offset=0.0, ages=ages)
    light = np.array([[course.truth(n)[ball].mean() for n in range(SWEEPS)] for ball in course.balls])
    true = light / np.median(light, axis=1, keepdims=True) - 1
    active = np.arange(len(regions)) < course.active
    return {
        "error": traces.dff - true,
        "sd": traces.dff_sd,
        "share": traces.data_share,
        "active": np.broadcast_to(active[:, None], true.shape),
    }


def _slope(told: np.ndarray, true: np.ndarray) -> float:
    return float(np.cov(told.ravel(), true.ravel())[0, 1] / true.var(ddof=1))


def design(sample: Sample) -> np.ndarray:
    """Return the regression's columns (N, 1 + K), the fixed one first."""
    count, level = len(sample["error"]), sample["level"]
    columns = [np.full(count, np.log(level)), np.ones(count)]
    if sample["innovation"] is not None:
        told = max(sample["innovation"] - sample["noise"], 0.1 * sample["noise"])
        columns += [
            np.full(count, 0.45 if sample["share"] is None else sample["share"]),
            np.full(count, np.log(told / level)),
        ]
    return np.concatenate([np.stack(columns, 1), sample["parts"]], 1)


def fitted(samples: list[Sample]) -> np.ndarray:
    """Return the constants of greatest likelihood for errors e ~ N(0, σ²), with a small ridge."""
    columns = torch.from_numpy(np.concatenate([design(each) for each in samples]))
    squares = torch.from_numpy(np.concatenate([each["error"] ** 2 for each in samples]))
    fixed, columns = columns[:, 0], columns[:, 1:]
    weights = torch.zeros(columns.shape[1], dtype=torch.float64)
    weights[0] = (squares * torch.exp(-fixed)).mean().log()
    weights.requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=80, line_search_fn="strong_wolfe")

    def loss() -> Any:
        solver.zero_grad()
        logs = fixed + columns @ weights
        value = (logs + squares * torch.exp(-logs)).mean() + _RIDGE * weights[1:].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach().numpy()


def deciles(spread: np.ndarray, error: np.ndarray) -> list[float]:
    """Return rms error over rms uncertainty in ten parts by uncertainty, the surest first."""
    parts = np.array_split(np.argsort(spread), 10)
    return [
        round(float(np.sqrt(np.mean(error[part] ** 2) / np.mean(spread[part] ** 2))), 3) for part in parts
    ]


def left_out(cases: dict[str, dict[str, Any]], name: str, number: int) -> np.ndarray:
    """Return the uncertainties of a specimen's samples with the constants of all others."""
    others = [
        case["samples"][sweep]
        for other, case in cases.items()
        if other.split("/")[0] != name.split("/")[0]
        for sweep in FITTED
        if (sweep == 0) == (number == 0)
    ]
    columns = design(cases[name]["samples"][number])
    return np.exp(0.5 * (columns[:, 0] + columns[:, 1:] @ fitted(others)))


def summary(cases: dict[str, dict[str, Any]], names: list[str], number: int) -> dict[str, Any]:
    """Return calibration and slopes after a sweep, over the sessions of some names."""
    samples = [cases[name]["samples"][number] for name in names]
    error = np.concatenate([each["error"] for each in samples])
    ways = {
        "shipped": [each["spread"] for each in samples],
        "left_out": [left_out(cases, name, number) for name in names],
    }
    report: dict[str, Any] = {}
    for way, spreads in ways.items():
        alone = np.array([deciles(s, each["error"]) for s, each in zip(spreads, samples, strict=True)])
        whole = [
            float(np.sqrt(np.mean(each["error"] ** 2) / np.mean(s**2)))
            for s, each in zip(spreads, samples, strict=True)
        ]
        off = np.abs(error) / np.concatenate(spreads)
        report[way] = {
            "deciles": deciles(np.concatenate(spreads), error),
            "within_1": round(float((off < 1).mean()), 3),
            "within_2": round(float((off < 2).mean()), 3),
            "deciles_within_20_percent_of_a_specimen_alone": round(
                float(((alone > 0.8) & (alone < 1.25)).mean()), 3
            ),
            "specimens": {n.split("/")[0]: round(each, 3) for n, each in zip(names, whole, strict=True)},
            "spread_between_specimens": round(float(np.log(whole).std()), 3),
        }
    slopes = np.array([cases[name]["slopes"][number] for name in names])
    report["slope"] = {
        "bright_mean": round(float(slopes[:, 0].mean()), 3),
        "bright_0.9_to_1.1": round(float(((slopes[:, 0] > 0.9) & (slopes[:, 0] < 1.1)).mean()), 3),
        "bright": {n.split("/")[0]: round(float(s), 3) for n, s in zip(names, slopes[:, 0], strict=True)},
        "all_voxels_mean": round(float(slopes[:, 1].mean()), 3),
        "estimated_mean": round(float(slopes[:, 2].mean()), 3),
        "estimate_rms_error": round(float(np.sqrt(np.mean((slopes[:, 2] - slopes[:, 1]) ** 2))), 3),
        "estimate_within_its_deviation": round(
            float((np.abs(slopes[:, 2] - slopes[:, 1]) < slopes[:, 3]).mean()), 3
        ),
        "correlation": round(float(np.corrcoef(slopes[:, 1], slopes[:, 2])[0, 1]), 3),
    }
    return report


def traced(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return how far ΔF/F is off, in units of its deviation and by the share of it that is data."""
    some = [case["traces"] for case in cases.values() if "traces" in case]
    error, sd, share, active = (
        np.concatenate([each[name].ravel() for each in some]) for name in ("error", "sd", "share", "active")
    )
    late = np.concatenate([np.broadcast_to(np.arange(SWEEPS) >= 8, e["error"].shape).ravel() for e in some])
    first = np.concatenate([np.broadcast_to(np.arange(SWEEPS) == 0, e["error"].shape).ravel() for e in some])

    def judged(which: np.ndarray) -> dict[str, float]:
        off = np.abs(error[which] / sd[which])
        return {
            "count": int(which.sum()),
            "within_1": round(float((off < 1).mean()), 3),
            "within_2": round(float((off < 2).mean()), 3),
            "rms_error": round(float(np.sqrt(np.mean(error[which] ** 2))), 4),
        }

    moving = active & late
    return {
        "all": judged(np.ones_like(active)),
        "still": judged(~active),
        "active_from_sweep_9": judged(moving),
        "first_sweep": judged(first),
        "by_data_share": {
            f"{low:g}-{high:g}": judged(moving & (share >= low) & (share <= high))
            for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1))
            if np.any(moving & (share >= low) & (share <= high))
        },
    }


def cost(rounds: int = 10) -> dict[str, float]:
    """Return the processor seconds of a warm volume of the demo's size, and of its confidence; medians."""
    config = load_config("demo")
    settings = config.engine.model_copy(update={"threads": 1, "device": "cpu"})
    scene = make_scene(config, (48, 128, 128), seed=0)
    made = reconstructor.Reconstructor(scene.header, settings, open_engine(settings))
    spent: list[float] = []

    def timed(task: Any, volume: Any) -> Any:
        began_s = time.process_time()
        found = assessed.confidence(task, volume)
        spent.append(time.process_time() - began_s)
        return found

    reconstructor.confidence = timed
    volumes = []
    for number in range(rounds):
        sweep = scene.sweep(number)
        began_s = time.process_time()
        made.reconstruct(sweep)
        volumes.append(time.process_time() - began_s)
    volume_s, part_s = (float(np.median(some[2:])) for some in (volumes, spent))
    return {
        "volume_cpu_s": round(volume_s, 4),
        "of_it_uncertainty_cpu_s": round(part_s, 4),
        "share": round(part_s / volume_s, 3),
    }


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=Path, action="append", required=True, help="folder of volumes")
    parser.add_argument("--names", action="append", default=[], help="of those in the folder before; all")
    parser.add_argument("--steps", default="8")
    parser.add_argument("--fit", action="store_true", help="print the constants of all specimens")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "uncertainty.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [set(filter(None, names.split(","))) for names in options.names]
    wanted += [set() for _ in range(len(options.volumes) - len(wanted))]
    paths = [
        path
        for folder, names in zip(options.volumes, wanted, strict=True)
        for path in sorted(folder.glob("*.h5"))
        if not names or path.stem in names
    ]
    engine = open_engine(EngineConfig(device="cpu", threads=1))
    report: dict[str, Any] = {
        "machine": machine(),
        "runtime": engine.name,
        "weights": engine.weights,
        "crop": CROP,
        "specimens": [path.stem for path in paths],
        "cost_48x128x128": cost(),
        "steps": {},
    }
    watched = Watched()
    reconstructor.confidence = watched
    for step in map(float, options.steps.split(",")):
        cases: dict[str, dict[str, Any]] = {}
        for path in paths:
            for course in ("still", "active"):
                cases[f"{path.stem}/{course}"] = session(path, course, step, engine, watched)
                print(step, path.stem, course, file=sys.stderr, flush=True)
        if options.fit:
            for first in (True, False):
                every = [c["samples"][n] for c in cases.values() for n in FITTED if (n == 0) == first]
                print(np.round(fitted(every), 3).tolist(), file=sys.stderr, flush=True)
        covered = np.array([case["covered"] for case in cases.values()])
        each = np.nanmean(covered, axis=1)
        report["steps"][f"{step:g}"] = {
            f"sweep_{number + 1}": {
                course: summary(cases, [name for name in cases if name.endswith(f"/{course}")], number)
                for course in ("still", "active")
            }
            for number in SHOWN
        } | {
            "intervals": {
                "wanted": 0.9,
                "coverage_mean": round(float(each.mean()), 3),
                "coverage_least": round(float(each.min()), 3),
                "coverage_most": round(float(each.max()), 3),
                "projections": int(np.isfinite(covered).sum()),
            },
            "traces": traced(cases),
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
