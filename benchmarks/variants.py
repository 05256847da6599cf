"""What each part of the engine gives, on real neurons, with weights that have seen none (`--weights`).

    python benchmarks/variants.py --volumes FOLDER --weights FILE

Slab of 6 slices, step of 6, white noise of 0.01 and of 0.04; one sweep each, so the INR is cold. Writes
benchmarks/results/variants.json and prints the means over the volumes.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import HELD_OUT, ROOT, machine, scores_of

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.evaluation.protocol import normalise
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.metrics import seen_slices
from microdiffusion.optics import sweep_positions

LENGTH = STEP = 6.0
PLAIN = {"fallback": False, "interpolation": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "tikhonov": {"method": "tikhonov"},
    "inr": {"method": "inr", "fallback": False},
    "1 evaluation": {**PLAIN, "steps": 1},
    "4 evaluations": {**PLAIN, "steps": 4},
    "1, without consistency": {**PLAIN, "consistency": False},
    "1, guidance 0.3": {**PLAIN, "guidance": 0.3},
    "1, guidance 1": {**PLAIN, "guidance": 1.0},
    "4, interpolation 0.1": {**PLAIN, "steps": 4, "interpolation": 0.1},
    "4, interpolation 0.3": {**PLAIN, "steps": 4, "interpolation": 0.3},
    "4, interpolation 1": {**PLAIN, "steps": 4, "interpolation": 1.0},
    "as shipped": {},
}


def sweep_of(truth: np.ndarray, noise: float) -> tuple[RunHeader, Sweep]:
    """Return one sweep of a volume (Z, Y, X), with one held-out projection."""
    slices = truth.shape[0]
    header = RunHeader(
        run_id=uuid.uuid4().hex,
        shape=truth.shape,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=LENGTH,
        dtype="float32",
    )
    z = sweep_positions(length_um=LENGTH, step_um=STEP, z0_um=0, voxel_z_um=1, shape_z=slices)
    judge = z[len(z) // 2 - 1 : len(z) // 2 + 1].mean(keepdims=True)
    rng = np.random.default_rng(0)

    def take(positions: np.ndarray) -> np.ndarray:
        clean = np.tensordot(header.operator_at(StagePositions.along_z(positions)), truth, 1)
        return (clean + noise * rng.standard_normal(clean.shape)).astype(np.float32)

    return header, Sweep(
        0, 0, 0, StagePositions.along_z(z), take(z), StagePositions.along_z(judge), take(judge)
    )


def main() -> None:
    """Score every variant on every volume."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: the shipped weights, which have seen these")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "variants.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine(),
        "weights": arguments.weights.stem if arguments.weights else "shipped",
        "noise": {},
    }
    for noise in (0.01, 0.04):
        table: dict[str, dict[str, dict[str, float]]] = {}
        for name in HELD_OUT:
            with h5py.File(arguments.volumes / f"{name}.h5") as file:
                truth = normalise(file["volume"][()].astype(np.float32))
            header, sweep = sweep_of(truth, noise)
            seen = seen_slices(header.operator_at(sweep.stage))
            for variant, settings in VARIANTS.items():
                config = EngineConfig(weights=arguments.weights, **settings)
                reconstructor = Reconstructor(header, config, open_engine(config))
                begun = time.perf_counter()
                result = reconstructor.reconstruct(sweep)
                row = scores_of(result.volume, truth, seen)
                row["seconds"] = time.perf_counter() - begun
                row["held_out_error"] = result.held_out_error
                table.setdefault(variant, {})[name] = row
        results["noise"][f"{noise:g}"] = table
        print(f"noise {noise:g}: mean over {len(HELD_OUT)} volumes")
        for variant, rows in table.items():
            mean = {
                key: np.mean([row[key] for row in rows.values()])
                for key in ("psnr", "ssim", "axial_sharpness")
            }
            each = "  ".join(f"{row['psnr']:.2f}/{row['ssim']:.3f}" for row in rows.values())
            means = f"{mean['psnr']:.2f}/{mean['ssim']:.3f}  {mean['axial_sharpness']:.2f}"
            print(f"  {variant:36s} {means}   {each}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
