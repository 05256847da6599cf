"""Adaptive acquisition against the plan as configured, at equal frames; its limits, and its closed loop.

  python benchmarks/adaptive.py --volumes FOLDER [FOLDER ...] [--only quality|limits|loop]

*Quality*: sessions on crops of volumes and on the virtual specimen's neurites, sweep by sweep through the
driver's planner and the engine ("inr"), with noise, against golden offsets with the same number of frames.
Sparse specimens (less than a tenth of the voxels above a fifth of the range) keep still for ten sweeps, then
places within eight slices flare up and fade; dense ones keep still. *Limits*: 200 seeded runs with faults,
without real time. *Loop*: `mdd serve --demo --adaptive` through Micro-Manager's core, from its run file.
Writes benchmarks/results/adaptive.json; what is not measured again stays as it is there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from support.adaptive_runs import FAULTS, faulty_run

import microdiffusion
from microdiffusion import open_run
from microdiffusion.config import Config
from microdiffusion.daemon.system import about
from microdiffusion.drivers.adaptive import AdaptivePlanner
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.specimen import Specimen
from microdiffusion.engines import evaluation
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.files import open_volume, volume_paths
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.wire import SweepFeedback

ROOT = Path(__file__).resolve().parents[1]
LENGTH, STEP, NOISE = 8.0, 8.0, 0.02  # slices, slices, of the range
SWEEPS, BEGINS = 22, 10
SHAPE = (96, 40, 40)
SPARSE = 0.1
"""Share of voxels above a fifth of the range, below which a specimen is sparse."""
Volume = NDArray[np.float32]


def configuration(policy: str, slices: int) -> Config:
    """Return the configuration of a session, slices of 1 µm."""
    return Config.model_validate(
        {
            "acquisition": {"sweep_interval_s": 2.0, "sweeps": SWEEPS, "adaptive": {"policy": policy}},
            "sweep": {"length_um": LENGTH, "step_um": STEP, "hold_out_every": 4},
            "volume": {"voxel_z_um": 1.0, "shape_z": slices, "pixel_um": 1.0},
            "engine": {"device": "cpu", "threads": 1, "method": "inr"},
        }
    )


def session(
    policy: str, truth: Callable[[int], Volume], shape: tuple[int, ...], seed: int
) -> tuple[NDArray[np.float64], int, list[list[float]]]:
    """Return each sweep's mean squared error, the number of frames, and the depths of each sweep's slabs."""
    config = configuration(policy, shape[0])
    plan = Plan(config)
    header = plan.header(shape[1:], 1.0, source="").model_copy(update={"dtype": "float32", "adaptive": True})
    told: dict[tuple[int, int], SweepFeedback] = {}
    reconstructor = Reconstructor(
        header,
        config.engine,
        open_engine(config.engine),
        on_feedback=lambda each: told.__setitem__((each.channel, each.position), each),
    )
    planner = AdaptivePlanner(config, plan) if policy != "off" else None
    rng = np.random.default_rng([seed, 7])
    now_s, frames, errors, depths = 0.0, 0, [], []
    for planned in plan.sweeps():
        sweep = planned
        if planner is not None:
            sweep, now_s = planner.plan(planned, told, now_s)
            planner.start(sweep, now_s)
            now_s += 0.1
            planner.over(now_s)
        infos = [shot.info for shot in sweep.shots]
        frames += len(infos)
        volume = truth(sweep.number)
        stage = StagePositions.of(info.stage for info in infos)
        light = (header.operator_at(stage) @ volume.reshape(len(volume), -1)).reshape(-1, *shape[1:])
        images = (light + NOISE * rng.standard_normal(light.shape)).astype(np.float32)
        held = np.array([info.held_out for info in infos])
        seen = Sweep(sweep.number, 0, 0, stage[~held], images[~held], stage[held], images[held])
        errors.append(float(((reconstructor.reconstruct(seen).volume - volume) ** 2).mean()))
        depths.append(stage.z_um[~held].tolist())
    return np.array(errors), frames, depths


def crop(path: Path, seed: int) -> Volume:
    """Return the crop of greatest contrast of six, normalised."""
    with open_volume(path) as source:
        volume = np.asarray(source.volume(0), np.float32)
    shape = [min(pair) for pair in zip(volume.shape, SHAPE, strict=True)]
    rng = np.random.default_rng(seed)
    tried = []
    for _ in range(6):
        at = [int(rng.integers(0, edge - most + 1)) for edge, most in zip(volume.shape, shape, strict=True)]
        part = tuple(slice(first, first + edge) for first, edge in zip(at, shape, strict=True))
        tried.append(volume[part])
    return evaluation.normalise(max(tried, key=np.std), None)


def neurites(seed: int) -> Volume:
    """Return the virtual specimen with three neurons and nothing else, normalised."""
    config = Config.model_validate({"specimen": {"seed": seed, "neurons": 3, "vessels": 0, "nuclei": 0}})
    specimen = Specimen(config.specimen, shape=SHAPE, voxel_size_um=(1.0, 1.0, 1.0), slab_um=LENGTH)
    return evaluation.normalise(specimen.volume(0.0), None)


class LocallyActive:
    """A specimen of which eight places within a band of eight slices flare up and fade, from a sweep on."""

    def __init__(self, structure: Volume, seed: int, *, band: int = 8, spots: int = 8) -> None:
        rng = np.random.default_rng([seed, 3])
        self.structure = structure
        light = [structure[z : z + band].clip(0.2).sum() for z in range(4, len(structure) - band - 4)]
        first = 4 + int(np.argsort(light)[int(rng.integers(len(light) * 2 // 3, len(light)))])
        self.band = (first, first + band)
        part = structure[first : first + band]
        places = np.argwhere(part >= np.quantile(part, 0.97))
        centres = places[rng.integers(0, len(places), spots)] + [first, 0, 0]
        grid = np.indices(structure.shape)
        near = [((grid - centre[:, None, None, None]) ** 2).sum(0) for centre in centres]
        self._spots = [np.exp(-each / (2 * 3.0**2)).astype(np.float32) for each in near]
        self._rise = np.zeros((SWEEPS, spots))
        for spot in range(spots):
            sweep = BEGINS + int(rng.integers(0, 3))
            while sweep < SWEEPS:
                peak = rng.uniform(1.0, 3.0)
                fade = np.arange(sweep, min(sweep + 6, SWEEPS))
                self._rise[fade, spot] += peak * np.exp(-(fade - sweep) / 2.5)
                sweep += int(rng.integers(3, 8))

    def __call__(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        gain = np.ones_like(self.structure)
        for rise, spot in zip(self._rise[sweep], self._spots, strict=True):
            gain += np.float32(rise) * spot
        return self.structure * gain


def quality(folders: list[Path], seeds: int) -> dict[str, Any]:
    """Return the mean squared error of both policies relative to the plan's, case by case."""
    structures = {f"virtual specimen {seed}": neurites(seed) for seed in range(1, 1 + 2 * seeds)}
    for path in [path for folder in folders for path in volume_paths(folder)]:
        for seed in range(seeds):
            structure = crop(path, seed)
            if min(structure.shape) >= 24:
                structures[f"{path.stem} {seed}"] = structure
    rows = []
    for name, structure in structures.items():
        seed = int(name.split()[-1])
        bright = float((structure > 0.2).mean())
        active = bright < SPARSE
        truth = LocallyActive(structure, seed) if active else (lambda sweep, still=structure: still)
        rows.append(
            {"specimen": name, "bright": round(bright, 3), "active": active, "slices": len(structure)}
        )
        plain, frames, _ = session("off", truth, structure.shape, seed)
        scored = slice(BEGINS + 1, None) if active else slice(3, None)
        for policy in ("changes", "learn"):
            errors, taken, depths = session(policy, truth, structure.shape, seed)
            if taken != frames:
                raise SystemExit(f"{name}: {taken} frames instead of {frames}")
            change = float(errors[scored].mean() / plain[scored].mean() - 1)
            rows[-1] |= {policy: round(change, 4), f"{policy}_before": round(_before(errors, plain), 4)}
            if policy == "changes" and isinstance(truth, LocallyActive):
                rows[-1]["denser_after_sweeps"] = _denser_after(depths, truth.band)
        print(rows[-1], flush=True)
    return (
        {"length": LENGTH, "step": STEP, "noise": NOISE, "sweeps": SWEEPS} | _summary(rows) | {"rows": rows}
    )


def _before(errors: NDArray[np.float64], plain: NDArray[np.float64]) -> float:
    return float(errors[3:BEGINS].mean() / plain[3:BEGINS].mean() - 1)


def _denser_after(depths: list[list[float]], band: tuple[int, int]) -> int | None:
    """Return how many sweeps after the first flare slabs are denser in its band than in the plan."""
    centre, reach = sum(band) / 2 - 0.5, 0.5 * LENGTH + 0.5 * (band[1] - band[0])
    even = np.mean([np.sum(np.abs(np.array(each) - centre) <= reach) for each in depths[:BEGINS]])
    for number in range(BEGINS, SWEEPS):
        if np.sum(np.abs(np.array(depths[number]) - centre) <= reach) >= even + 0.9:
            return number - BEGINS
    return None


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind, active in (("sparse_active", True), ("dense_still", False)):
        chosen = [row for row in rows if row["active"] is active]
        for policy in ("changes", "learn"):
            changes = np.array([row[policy] for row in chosen])
            if len(changes):
                summary[f"{kind}_{policy}"] = {
                    "cases": len(changes),
                    "mean": round(float(np.exp(np.log1p(changes).mean()) - 1), 4),
                    "median": round(float(np.median(changes)), 4),
                    "worst": round(float(changes.max()), 4),
                    "best": round(float(changes.min()), 4),
                }
    return summary


def limits(runs: int) -> dict[str, Any]:
    """Return how many seeded runs with faults exceeded which of the user's limits."""
    began_s, exceeded, sweeps = time.perf_counter(), [], 0
    for seed in range(runs):
        fault, found, course = faulty_run(seed)
        sweeps += len(course.starts_s)
        exceeded += [{"seed": seed, "fault": fault, "limits": found}] if found else []
    seconds = round(time.perf_counter() - began_s, 1)
    return {"runs": runs, "faults": FAULTS, "sweeps": sweeps, "exceeded": exceeded, "seconds": seconds}


def loop(method: str, interval_s: float) -> dict[str, Any]:
    """Return, of a demo through Micro-Manager's core, how soon a sweep follows the word on the one before."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "engine.method": method,
            "engine.device": "cpu",
            "acquisition.exposure_ms": 40,
            "acquisition.sweep_interval_s": interval_s,
            "camera.width": 64,
            "camera.height": 64,
            "specimen.activity": 8,
            "specimen.neurons": 2,
            "specimen.nuclei": 0,
            "specimen.vessels": 0,
            "specimen.drift_um_per_min": 0,
            **{f"wire.{name}": "tcp://127.0.0.1:*" for name in ("data", "status", "control")},
        }
        command = [
            sys.executable,
            "-m",
            "microdiffusion.daemon.cli",
            "serve",
            "--demo",
            "--adaptive",
            "--headless",
        ]
        command += ["--volumes", "24", "--output", folder]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        subprocess.run(command, check=True, capture_output=True)
        (path,) = Path(folder).glob("*.h5")
        with open_run(path) as run:
            decisions, used = run.decisions(), run.used
            times = [np.array([f.info.camera_time_s for f in run.frames(t)]) for t in range(used)]
    gaps, periods, fresh = [], [], 0
    for number in range(2, used):
        match = re.search(r"changed in sweep (\d+)", decisions[number])
        if match is None:
            continue
        fresh += int(match[1]) == number - 1
        gaps.append(float(times[number][0] - times[number - 1][-1]))
        periods.append(float(times[number - 1][0] - times[number - 2][0]))
    return {
        "method": method,
        "interval_s": interval_s,
        "sweeps": used,
        "planned_by_the_engine": len(gaps),
        "by_its_word_on_the_last_sweep": fresh,
        "with_denser_slabs": sum(each.startswith("denser") for each in decisions),
        "last_frame_to_planned_event_s": _quantiles(gaps),
        "from_sweep_to_sweep_s": _quantiles(periods),
        "in_sweeps": _quantiles([gap / period for gap, period in zip(gaps, periods, strict=True)]),
        "load": round(psutil.getloadavg()[0], 1),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, most = np.quantile(values, (0.5, 0.95, 1.0))
    return {"median": round(float(p50), 4), "p95": round(float(p95), 4), "most": round(float(most), 4)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", choices=("quality", "limits", "loop"))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "adaptive.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    results["machine"] = about() | {"version": microdiffusion.__version__, "commit": commit}
    if arguments.only in (None, "limits"):
        results["limits"] = limits(arguments.runs)
    if arguments.only in (None, "quality"):
        results["quality"] = quality(arguments.volumes, arguments.seeds)
    if arguments.only in (None, "loop"):
        results["loop"] = loop("inr", 2.0)
    evaluation.write_json(arguments.json, results)
    print(json.dumps({name: results[name] for name in results if name != "machine"}, indent=1)[:6000])


if __name__ == "__main__":
    main()
