"""First light in numbers and pictures: the demo, replays of real volumes, and the warm INR.

    python benchmarks/first_light.py --volumes FOLDER [--seconds 120] [--weights FILE]

FOLDER holds HDF5 files with a dataset `volume` (Z, Y, X). The shipped weights have seen those that are
replayed; `--weights` names others for the replays, that have not.
Everything goes through the `mdd` command, as a user's data would. Writes benchmarks/results/first_light.json
and the pictures of docs/images. The protocol of the replays is that of
`microdiffusion.engines.evaluation.protocol`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
import torch
from measuring import HELD_OUT, ROOT, machine, scores_of

import microdiffusion
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.engines.evaluation.protocol import normalise
from microdiffusion.engines.inr.field import SessionInr, default_bandwidth
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.projections.noise import noise_variance
from microdiffusion.files.projections import open_projections
from microdiffusion.frames import Sweep
from microdiffusion.metrics import seen_slices

mpl.use("Agg")
import matplotlib.pyplot as plt

METHODS = ("linear", "tikhonov", "inr", "mdd")
REPEATS = 4
"""Sweeps of each replay: the same volume under fresh noise, so that the INR is warm from the second on."""


def mdd(*arguments: object) -> float:
    """Run the command; return its wall time, s."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "microdiffusion.daemon.cli", *map(str, arguments)], check=True)
    return time.monotonic() - begun


def the_demo(folder: Path, seconds: float) -> tuple[dict[str, Any], Path]:
    """Run the demo and account for every frame."""
    mdd("serve", "--demo", "--headless", "--duration", seconds, "--output", folder)
    (path,) = folder.glob("*.h5")
    with microdiffusion.open_run(path) as run:
        status = run.status
        written = status == 1
        latency = run.values("latency_s")[written]
        totals = run.values("seconds/total")[written]
        ledger = run.ledger
        in_file = int(np.isfinite(run.values("frames/z_um")).sum())
        held = {
            method: _median(run.values(f"held_out_errors/{method}")) for method in ("mdd", "inr", "tikhonov")
        }
        result = {
            "seconds": seconds,
            "frames_acquired": ledger.announced,
            "frames_received": ledger.received,
            "frames_in_file": in_file,
            "frames_missing": ledger.missing,
            "frames_dropped_by_sender": ledger.dropped_by_sender,
            "volumes": {
                name: int((status == code).sum())
                for code, name in enumerate(("empty", "written", "lost", "skipped", "failed"))
            },
            "volume_shape": run.header.shape,
            "latency_s": {
                "first": float(latency[0]),
                "median": float(np.median(latency)),
                "p95": float(np.percentile(latency, 95)),
            },
            "reconstruction_s_median": float(np.median(totals)),
            "inr_steps": {
                "first": int(run.values("inr_iterations")[written][0]),
                "median": _median(run.values("inr_iterations")[written]),
            },
            "held_out_error_median": held,
            "served": {
                name: int((run.values("served")[written] == code).sum())
                for code, name in enumerate(("none", "mdd", "inr", "tikhonov", "linear"))
            },
        }
    return result, path


def demo_quality(path: Path) -> dict[str, Any]:
    """Score the demo's last written volume against the specimen's truth, and draw it."""
    with microdiffusion.open_run(path) as run:
        t = int(np.flatnonzero(run.status == 1)[-1])
        config = Config.model_validate(run.config)
        camera = run.header.camera
        photons = specimen_of_run(config.specimen, run.header).volume(float(run.times[t]))
        truth = camera.offset + (camera.gain or 1.0) * photons
        answers = {
            "linear": answer_of(run.sweep(t), run.header, "linear"),
            "mdd": run.volume[t].astype(np.float32),
        }
        seen = seen_slices(run.header.operator_at(run.sweep(t).stage))
    top = float(np.percentile(truth, 99.9) - camera.offset)
    scores = {
        name: scores_of((volume - camera.offset) / top, (truth - camera.offset) / top, seen)
        for name, volume in answers.items()
    }
    shown = {"truth": truth, "linear interpolation": answers["linear"], "mdd": answers["mdd"]}
    draw({"virtual specimen": shown}, ROOT / "docs" / "images" / "demo_comparison.png", camera.offset, top)
    return scores


def answer_of(sweep: Sweep, header: Any, method: str) -> np.ndarray:
    """Return another method's volume of a recorded sweep."""
    return Reconstructor(header, EngineConfig(method=method)).reconstruct(sweep).volume


def replay(
    name: str, volumes: Path, step: float, folder: Path, weights: Path | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Replay one real volume through a daemon, and score it against the classical answers."""
    with h5py.File(volumes / f"{name}.h5") as file:
        truth = normalise(file["volume"][()].astype(np.float32))
    folder.mkdir(parents=True)
    source, projections, output = folder / f"{name}.h5", folder / f"{name}_p.h5", folder / name
    with h5py.File(source, "w") as file:
        file["volume"] = np.repeat(truth[None], REPEATS, axis=0)
    mdd("simulate", source, "--length-um", 6, "--step-um", step, "--noise", 0.01, "--output", projections)
    engine = () if weights is None else ("--set", f"engine.weights={weights.resolve()}")
    wall = mdd("replay", projections, "--serve", "--headless", "--output", output, *engine)
    (path,) = output.glob("*.h5")
    with open_projections(projections) as file, microdiffusion.open_run(path) as run:
        truth = file.truth(0)
        seen = seen_slices(file.header.operator_at(file.stage(0)))
        answers = {
            method: [answer_of(file.sweep(t), file.header, method) for t in range(REPEATS)]
            for method in ("linear", "tikhonov", "inr")
        }
        answers["mdd"] = [run.volume[t] for t in range(REPEATS)]
        row: dict[str, Any] = {method: _mean_scores(found, truth, seen) for method, found in answers.items()}
        span = run.values("latency_s"), run.values("seconds/total")
        ledger = run.ledger
        times = run.values("seconds/total")
        row["frames"] = {"sent": ledger.announced, "received": ledger.received, "missing": ledger.missing}
        row["frames_per_s"] = ledger.received / float(np.sum(times))
        row["reconstruction_s"] = {"first": float(span[1][0]), "median": float(np.median(times))}
        row["served"] = [int(code) for code in run.values("served")]
        row["wall_s"] = wall
    best = max(row["linear"]["psnr"], row["tikhonov"]["psnr"])
    row["gain_db"] = row["mdd"]["psnr"] - best
    row["gain_ssim"] = row["mdd"]["ssim"] - max(row["linear"]["ssim"], row["tikhonov"]["ssim"])
    return row, {"truth": truth, **{method: found[-1] for method, found in answers.items()}}


def drifting(path: Path, folder: Path, sweeps: int = 8) -> Path:
    """Return a projection file of a volume that moves by a pixel and bleaches by 5 % from sweep to sweep."""
    with h5py.File(path) as file:
        volume = normalise(file["volume"][()].astype(np.float32))
    source, projections = folder / "drifting.h5", folder / "drifting_p.h5"
    with h5py.File(source, "w") as file:
        file["volume"] = np.stack([np.roll(volume, t, axis=2) * 0.95**t for t in range(sweeps)])
    mdd("simulate", source, "--length-um", 6, "--step-um", 6, "--noise", 0.01, "--output", projections)
    return projections


def warm_inr(recorded: Any, sweeps: int) -> dict[str, Any]:
    """Compare what a warm and a cold field need for the same misfit, on recorded sweeps."""
    rows = []
    header = recorded.header
    first = torch.from_numpy(recorded.sweep(0).projections)
    low, high = (float(v) for v in np.percentile(first.numpy(), [1, 99.9]))
    floor = (header.camera.offset - low) / (high - low)
    warm: SessionInr | None = None
    for t in range(sweeps):
        sweep = recorded.sweep(t)
        counts = torch.from_numpy(sweep.projections)
        operator = torch.from_numpy(header.operator_at(sweep.stage).astype(np.float32))
        variance = noise_variance(counts, header.camera) / (high - low) ** 2
        images = (counts - low) / (high - low)
        voxel = header.voxel_size_um[0]
        bandwidth = default_bandwidth(header.profile.length_um / voxel)

        def fit(
            field: SessionInr, steps: int, target: float, a: Any = (operator, images, variance)
        ) -> tuple[int, float, float]:
            begun = time.perf_counter()
            done = field.fit(*a, floor=floor, steps=steps, target=target)
            return done.steps, time.perf_counter() - begun, done.chi_square

        cold = SessionInr(header.shape, bandwidth=bandwidth)
        if warm is None:
            warm = cold
            fit(warm, 120, 1.0)
            continue
        steps, seconds, misfit = fit(warm, 25, 1.0)
        cold_steps, cold_seconds, cold_misfit = fit(cold, 400, max(misfit, 1.0))
        rows.append((steps, seconds, misfit, cold_steps, cold_seconds, cold_misfit))
    table = np.array(rows)
    return {
        "sweeps": len(rows),
        "warm": {
            "steps": float(np.median(table[:, 0])),
            "seconds": float(np.median(table[:, 1])),
            "chi_square": float(np.median(table[:, 2])),
        },
        "cold": {
            "steps": float(np.median(table[:, 3])),
            "seconds": float(np.median(table[:, 4])),
            "chi_square": float(np.median(table[:, 5])),
        },
        "ratio_steps": float(np.median(table[:, 3] / np.maximum(table[:, 0], 1))),
        "ratio_seconds": float(np.median(table[:, 4] / table[:, 1])),
    }


def draw(rows: dict[str, dict[str, np.ndarray]], path: Path, low: float = 0.0, span: float = 1.0) -> None:
    """Draw for each specimen the maximum along z (above) and along y (below) of each answer."""
    columns = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(
        2 * len(rows), columns, figsize=(3.2 * columns, 5.4 * len(rows)), squeeze=False
    )
    for number, (specimen, row) in enumerate(rows.items()):
        for column, (name, volume) in enumerate(row.items()):
            image = np.clip((volume - low) / span, 0, 1) ** 0.7
            middle = image.shape[1] // 2
            slab = image[:, middle - 8 : middle + 8]
            for line, picture, words in ((0, image.max(axis=0), "xy"), (1, slab.max(axis=1), "xz, 16 rows")):
                axis = axes[2 * number + line, column]
                axis.imshow(
                    picture,
                    cmap="magma",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                    aspect="auto" if line else "equal",
                )
                axis.set_axis_off()
                axis.set_title(
                    f"{name}, {words}" if column or line else f"{specimen}\n{name}, {words}", fontsize=9
                )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _mean_scores(found: list[np.ndarray], truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    rows = [scores_of(volume, truth, seen) for volume in found]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _median(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--weights", type=Path, help="of the replays; default: the shipped weights")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "first_light.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        demo, path = the_demo(folder / "demo", arguments.seconds)
        demo["scores_of_last_volume"] = demo_quality(path)
        results: dict[str, Any] = {
            "machine": machine(),
            "weights of the replays": arguments.weights.stem if arguments.weights else "shipped",
            "demo": demo,
            "warm_inr": {},
            "replay": {},
        }
        with microdiffusion.open_run(path) as run:
            results["warm_inr"]["demo, alternating offsets"] = warm_inr(run, min(12, len(run)))
        moving = drifting(arguments.volumes / f"{HELD_OUT[1]}.h5", folder)
        with open_projections(moving) as file:
            results["warm_inr"][f"{HELD_OUT[1]}, 1 pixel and 5 % bleaching a sweep"] = warm_inr(
                file, len(file)
            )
        pictures = {}
        for step in (6.0, 8.0):
            for name in HELD_OUT:
                row, answers = replay(
                    name, arguments.volumes, step, folder / f"step{step:g}" / name, arguments.weights
                )
                results["replay"].setdefault(f"step_{step:g}", {})[name] = row
                if step == 6.0:
                    pictures[name] = {key: answers[key] for key in ("truth", "linear", "tikhonov", "mdd")}
        draw(pictures, ROOT / "docs" / "images" / "real_volumes.png")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    for step, rows in results["replay"].items():
        for name, row in rows.items():
            print(
                f"{step} {name:20s}",
                "  ".join(f"{m} {row[m]['psnr']:.2f}/{row[m]['ssim']:.3f}" for m in METHODS),
            )


if __name__ == "__main__":
    main()
