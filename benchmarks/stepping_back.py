"""What is served, and how much worse than the better of INR and Tikhonov it ever is.

Strange specimens (tests/support/strange_specimens.py) and the recorded volumes, each with and without a
held-out projection, with noise that is declared to the engine or left for it to estimate. One sweep of a cold
session. Slab of 6 slices; sides of `--size` pixels at most.

  python benchmarks/stepping_back.py --volumes FOLDER
  python benchmarks/stepping_back.py --volumes FOLDER --merging     sweeps that are merged where nothing moved
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from measuring import ROOT, machine
from support.strange_specimens import STRANGE

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.evaluation.protocol import normalise
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.metrics import psnr_per_slice, seen_slices, ssim_per_slice
from microdiffusion.optics import sweep_positions

LENGTH = 6.0
TWINS = ("cells_bigstream_low", "zebrafish_brain_1_pre", "zebrafish_brain_3_pre")  # of other volumes
MOTIONS = (
    "still, two sweeps",
    "still",
    "bleaching 10 %",
    "1 pixel aside, two sweeps",
    "1 pixel aside",
    "3 slices deeper",
    "a flicker of 30 %",
)
"""From sweep to sweep; three sweeps where no other number is named."""


def header_of(truth: np.ndarray, noise: float | None) -> RunHeader:
    """Return the header of a run over `truth`; a declared noise is a camera without photons."""
    camera = CameraNoise() if noise is None else CameraNoise(gain=1e-9, read_noise=noise)
    return RunHeader(
        run_id="0" * 32,
        shape=truth.shape,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=LENGTH,
        dtype="float32",
        camera=camera,
    )


def sweep_of(
    header: RunHeader, truth: np.ndarray, step: float, noise: float, number: int, *, judge: bool
) -> Sweep:
    """Return one sweep; odd ones start half a step deeper."""
    z = sweep_positions(
        length_um=LENGTH,
        step_um=step,
        z0_um=0,
        voxel_z_um=1,
        shape_z=truth.shape[0],
        offset_um=0.5 * step * (number % 2),
    )
    held = z[len(z) // 2 - 1 : len(z) // 2 + 1].mean(keepdims=True) if judge else np.empty(0)
    rng = np.random.default_rng(number)

    def take(positions: np.ndarray) -> np.ndarray:
        if not positions.size:
            return np.empty((0, *truth.shape[1:]), np.float32)
        clean = np.tensordot(header.operator_at(StagePositions.along_z(positions)), truth, 1)
        return np.asarray(clean + noise * rng.standard_normal(clean.shape), dtype=np.float32)

    return Sweep(number, 0, 0, StagePositions.along_z(z), take(z), StagePositions.along_z(held), take(held))


def specimens(folder: Path, size: int) -> dict[str, np.ndarray]:
    """Return the strange specimens and the recorded volumes, by name."""
    found = {name: make((48, min(size, 48), min(size, 48))) for name, make in STRANGE.items()}
    for path in sorted(folder.glob("*.h5")):
        if path.stem in TWINS:
            continue
        with h5py.File(path) as file:
            truth = normalise(file["volume"][()].astype(np.float32))
        y, x = ((n - min(n, size)) // 2 for n in truth.shape[1:])
        found[path.stem] = np.ascontiguousarray(truth[:, y : y + size, x : x + size])
    return found


class Bench:
    """Scores answers of one engine."""

    def __init__(self, weights: Path | None) -> None:
        self.config = EngineConfig(weights=weights)
        self.engine: Engine = open_engine(self.config)

    def run(self, header: RunHeader, sweeps: list[Sweep], **changes: Any) -> Any:
        """Return the last sweep's result."""
        config = self.config.model_copy(update=changes)
        engine = self.engine if config.method == "mdd" else replace(self.engine, runtime=None)
        reconstructor = Reconstructor(header, config, engine)
        return [reconstructor.reconstruct(sweep) for sweep in sweeps][-1]


def scores(result: Any, truth: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Return PSNR and SSIM over the slices of the mask."""
    volume = np.clip(result.volume, 0, 1)[seen]
    return float(psnr_per_slice(volume, truth[seen]).mean()), float(
        ssim_per_slice(volume, truth[seen]).mean()
    )


def stepping_back(bench: Bench, everything: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row for each specimen, step, noise, judge or none, noise declared or not."""
    rows = []
    for step, noise in ((6, 0.01), (8, 0.01), (3, 0.01), (6, 0.04), (3, 0.04)):
        for name, truth in everything.items():
            for known in (True, False):
                header = header_of(truth, noise if known else None)
                sweep = sweep_of(header, truth, step, noise, 0, judge=True)
                blind = replace(sweep, held_out_stage=sweep.stage[:0], held_out=sweep.held_out[:0])
                seen = seen_slices(header.operator_at(sweep.stage))
                psnr = {"tikhonov": scores(bench.run(header, [sweep], method="tikhonov"), truth, seen)[0]}
                for judged, shown in ((True, sweep), (False, blind)):
                    psnr["inr"] = scores(
                        bench.run(header, [shown], method="inr", fallback=False), truth, seen
                    )[0]
                    psnr["mdd"] = scores(bench.run(header, [shown], fallback=False), truth, seen)[0]
                    result = bench.run(header, [shown])
                    psnr["served"] = scores(result, truth, seen)[0]
                    row = {
                        "specimen": name, "step": step, "noise": noise, "known": known, "judged": judged,
                        **{key: round(value, 2) for key, value in psnr.items()},
                        "answer": result.served, "weight": round(result.network_weight, 3),
                        "short": round(max(psnr["tikhonov"], psnr["inr"]) - psnr["served"], 2),
                    }  # fmt: skip
                    rows.append(row)
                    print(row, flush=True)
    return rows


def moved(truth: np.ndarray, motion: str, sweeps: int) -> np.ndarray:
    """Return what the specimen was so many sweeps ago."""
    if motion.startswith("bleaching"):
        return truth * np.float32(1.1**sweeps)
    if motion.startswith("1 pixel"):
        return np.roll(truth, sweeps, axis=2)
    if motion.startswith("3 slices"):
        return np.roll(truth, 3 * sweeps, axis=0)
    if motion.startswith("a flicker"):
        half = truth.shape[1] // 2
        return np.concatenate([truth[:, :half], truth[:, half:] * np.float32(1.3**sweeps)], axis=1)
    return truth


def merging(bench: Bench, everything: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row for each specimen and motion: the last sweep alone, and with those before."""
    rows = []
    for noise in (0.01, 0.04):
        for name, truth in everything.items():
            header = header_of(truth, None)
            for motion in MOTIONS:
                count = 2 if motion.endswith("two sweeps") else 3
                history = [
                    sweep_of(header, moved(truth, motion, count - 1 - k), 6, noise, k, judge=k == 0)
                    for k in range(count)
                ]
                # The slices that both sweeps saw, so that the sets can be compared.
                seen = seen_slices(header.operator_at(history[-1].stage))
                row: dict[str, Any] = {"specimen": name, "noise": noise, "motion": motion}
                for method in ("mdd", "inr"):
                    for mode in ("sweep", "session"):
                        result = bench.run(header, history, method=method, memory=mode)
                        psnr, ssim = scores(result, truth, seen)
                        row[f"{method} {mode}"] = [round(psnr, 2), round(ssim, 3)]
                        row["merged"] = result.merged
                    row[f"{method} gain"] = round(row[f"{method} session"][0] - row[f"{method} sweep"][0], 2)
                rows.append(row)
                print(row, flush=True)
    return rows


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only", default="", help="specimens whose name holds this")
    parser.add_argument("--merging", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    name = "merging" if arguments.merging else "stepping_back"
    target = arguments.json or ROOT / "benchmarks" / "results" / f"{name}.json"
    everything = specimens(arguments.volumes, arguments.size)
    everything = {key: value for key, value in everything.items() if arguments.only in key}
    if arguments.merging:
        everything = {key: value for key, value in everything.items() if key not in STRANGE}
    bench = Bench(arguments.weights)
    rows = (merging if arguments.merging else stepping_back)(bench, everything)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps({"machine": machine(), "weights": bench.engine.weights_sha256, "rows": rows}, indent=0)
        + "\n"
    )


if __name__ == "__main__":
    main()
