"""The bridge against one-step regression and against a flow from noise: same network, data and budget.

    python benchmarks/formulations.py --volumes FOLDER --morphologies FOLDER [--iterations 2000]
                                         [--only bridge,regression,flow]

Trains three small networks from the same seed, without any recorded neuron, axon or dendrite, and scores
them on those with 1 to 8 evaluations: distortion (PSNR, SSIM) and sharpness (energy of the z-derivative
relative to the truth's, over everything and over the foreground). Writes
benchmarks/results/formulations.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import torch
from measuring import HELD_OUT, ROOT, machine, scores_of
from variants import LENGTH, sweep_of

from microdiffusion.engines.diffusion import (
    NetworkInputs,
    SamplerSettings,
    VolumeDenoiser,
    bridge_noise,
    sample,
)
from microdiffusion.engines.diffusion.conditioning import SliceConditions
from microdiffusion.engines.diffusion.denoiser import DenoiserShape, load_denoiser
from microdiffusion.engines.inr.field import SessionInr, default_bandwidth
from microdiffusion.engines.projections.consistency import DataConsistency
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.engines.training.degrade import FLOW_NOISE, Formulation
from microdiffusion.engines.training.loop import TrainingPlan, train
from microdiffusion.engines.training.validation import protocol_crop
from microdiffusion.metrics import seen_slices

SHAPE = DenoiserShape(widths=(32, 64, 96, 128))
NOISE = 0.01
KAPPAS = {"bridge": (0.0, 0.03, 0.1), "regression": (0.0,), "flow": (FLOW_NOISE,)}


def score(weights: Path, formulation: str, volumes: Path) -> list[dict[str, Any]]:
    """Return a row for each volume, noise of the start and number of evaluations."""
    runtime = TorchRuntime(load_denoiser(weights), torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for name in HELD_OUT:
        with h5py.File(volumes / f"{name}.h5") as file:
            truth = protocol_crop(file["volume"][()].astype(np.float32))
        header, sweep = sweep_of(truth, NOISE)
        matrix = header.operator_at(sweep.z_um)
        operator = torch.from_numpy(matrix.astype(np.float32))
        low, high = (float(v) for v in np.percentile(sweep.projections, [1.0, 99.9]))
        images = torch.from_numpy(sweep.projections - low) / (high - low)
        variance = torch.full_like(images, (NOISE / (high - low)) ** 2)
        floor = -low / (high - low)
        field = SessionInr(truth.shape, bandwidth=default_bandwidth(LENGTH))
        field.fit(operator, images, variance, floor=max(floor, -1.0), steps=12)
        prior = field.volume(max(floor, -1.0))
        pull = DataConsistency(operator)
        conditions = SliceConditions.of(matrix, sweep.z_um, LENGTH)
        shown = NetworkInputs(prior, images, torch.tensor(NOISE / (high - low)))
        start = torch.zeros_like(prior) if formulation == "flow" else prior
        for kappa in KAPPAS[formulation]:
            for steps in (1,) if formulation == "regression" else (1, 2, 4, 8):
                settings = SamplerSettings(steps=steps, kappa=kappa)
                denoise = VolumeDenoiser(runtime, conditions, settings)
                with torch.no_grad():
                    volume = sample(
                        lambda state, time: denoise(state, shown, time),  # noqa: B023
                        start,
                        settings,
                        lambda x: pull(x - floor, images - floor, variance) + floor,  # noqa: B023
                        bridge_noise(prior.shape, 0, prior.device),
                    )
                answer = (volume * (high - low) + low).numpy()
                rows.append(
                    {"volume": name, "kappa": kappa, "evaluations": steps}
                    | scores_of(answer, truth, seen_slices(matrix))
                )
    return rows


def main() -> None:
    """Train and score each formulation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--morphologies", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--only", default="bridge,regression,flow", metavar="A,B")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "formulations.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine(),
        "widths": SHAPE.widths,
        "iterations": arguments.iterations,
        "noise": NOISE,
        "rows": {},
    }
    if arguments.json.is_file():  # the other formulations' rows stay, if they had the same budget
        known = json.loads(arguments.json.read_text(encoding="utf-8"))
        if known["iterations"] == arguments.iterations:
            results["rows"] = known["rows"]
    for formulation in arguments.only.split(","):
        if formulation not in get_args(Formulation):
            parser.error(f"{formulation} is none of {', '.join(get_args(Formulation))}")
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            train(
                TrainingPlan(
                    arguments.volumes,
                    arguments.morphologies,
                    weights,
                    HELD_OUT,
                    SHAPE,
                    iterations=arguments.iterations,
                    minutes=1e6,
                    pool=600,
                    validate_every=10**6,
                    formulation=formulation,
                ),
                print,
            )
            rows = score(weights, formulation, arguments.volumes)
        results["rows"][formulation] = rows
        for kappa in KAPPAS[formulation]:
            for steps in sorted({row["evaluations"] for row in rows}):
                chosen = [r for r in rows if r["kappa"] == kappa and r["evaluations"] == steps]
                means = {key: np.mean([row[key] for row in chosen]) for key in chosen[0] if key != "volume"}
                print(formulation, {key: round(float(value), 3) for key, value in means.items()}, flush=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
