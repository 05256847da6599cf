"""Where adapting to a session's own projections helps, and where it hurts, against the truth.

    python benchmarks/adapt_projections.py --volumes FOLDER [--iterations 80]

Two sweeps of each volume (the second half a step deeper), slab of 6 slices, step of 6, white noise of 0.01,
one projection of each held out; the shipped weights. Scores are of the network's answer to each sweep alone
(no fallback, no merging), before and after. Writes benchmarks/results/adapt_projections.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import ROOT, machine, scores_of

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import load_denoiser, save_denoiser, shipped_weights
from microdiffusion.engines.evaluation.protocol import normalise
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.training.adapt import adapt
from microdiffusion.engines.training.adapt_data import AdaptSession, read_session
from microdiffusion.engines.training.fine_tune import AdaptPlan
from microdiffusion.files.projections import write_projections
from microdiffusion.metrics import seen_slices
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

VOLUMES = ("axons_trailmap_b", "axon_olfactory_pn", "pollen_confocal", "vessels_octa")
LENGTH = STEP = 6.0
RESULTS = ROOT / "benchmarks" / "results" / "adapt_projections.json"
NOISE = 0.01


def simulate(truth: np.ndarray, path: Path, *, hold_out: bool) -> None:
    """Write two sweeps of a volume (Z, Y, X), with or without a held-out projection each."""
    rng = np.random.default_rng(0)
    rows = []
    for offset in (0.0, STEP / 2):
        z = sweep_positions(
            length_um=LENGTH, step_um=STEP, z0_um=0, voxel_z_um=1, shape_z=truth.shape[0], offset_um=offset
        )
        rows.append(z)
    count = min(len(z) for z in rows)
    rows = [z[:count] for z in rows]
    if hold_out:
        rows = [np.append(z, z[count // 2 - 1 : count // 2 + 1].mean()) for z in rows]
    frames = []
    for z in rows:
        matrix = projection_operator(
            z, AxialProfile.box(LENGTH), z0_um=0, voxel_z_um=1, shape_z=truth.shape[0]
        )
        clean = np.tensordot(matrix, truth, 1)
        frames.append((clean + NOISE * rng.standard_normal(clean.shape)).astype(np.float32))
    write_projections(
        path,
        frames,
        z_um=np.stack(rows),
        profile=AxialProfile.box(LENGTH),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        shape_z=truth.shape[0],
        held_out=np.arange(len(rows[0])) == count if hold_out else None,
    )


def true_scores(session: AdaptSession, weights: Path, truth: np.ndarray) -> dict[str, float]:
    """Return the scores of the network's answer, mean over the sweeps."""
    config = EngineConfig(weights=weights, fallback=False, memory="sweep")
    reconstructor = Reconstructor(session.header, config, open_engine(config))
    rows = [
        scores_of(
            reconstructor.reconstruct(sweep).volume,
            truth,
            seen_slices(session.header.operator_at(sweep.stage)),
        )
        for sweep in session.for_fitting()
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Adapt to each volume and score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=VOLUMES)
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--edge", type=int, default=80)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--no-hold-out", action="store_true", help="judge by a projection that is left out")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine(),
        "weights": shipped_weights().name,
        "iterations": arguments.iterations,
        "rate": arguments.rate,
        "noise": NOISE,
        "rows": [],
    }
    edge = arguments.edge
    for name in arguments.only:
        with h5py.File(arguments.volumes / f"{name}.h5") as file:
            truth = normalise(file["volume"][()].astype(np.float32))[:edge, :edge, :edge]
        with tempfile.TemporaryDirectory() as folder:
            path, new = Path(folder) / "projections.h5", Path(folder) / "new.safetensors"
            simulate(truth, path, hold_out=not arguments.no_hold_out)
            session = read_session(path, most=4)
            before = true_scores(session, shipped_weights(), truth)
            begun = time.process_time()
            plan = AdaptPlan(iterations=arguments.iterations, minutes=1e6, rate=arguments.rate)
            start = load_denoiser(shipped_weights())
            result = adapt(session, start, EngineConfig(), plan, lambda text: None)
            save_denoiser(result.model, new, {})
            after = true_scores(session, new, truth)
        row = {
            "volume": name,
            "before": before,
            "after": after,
            "verdict": asdict(result.verdict),
            "cpu_seconds": time.process_time() - begun,
        }
        results["rows"].append(row)
        print(
            f"{name:20s} PSNR {before['psnr']:.2f} -> {after['psnr']:.2f}  "
            f"SSIM {before['ssim']:.3f} -> {after['ssim']:.3f}  "
            f"sharpness {before['axial_sharpness']:.2f} -> {after['axial_sharpness']:.2f}  "
            f"{result.verdict.sentence}  {row['cpu_seconds']:.0f} s",
            flush=True,
        )
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
