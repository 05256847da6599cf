"""What adapting to one half of a specimen gives on its other half, and what it costs on other specimens.

    python benchmarks/adapt.py --volumes FOLDER [FOLDER ...] [--iterations 100]

Each volume is cut in two across its longer lateral axis, with a gap of 8 pixels. The network is adapted to
the first half as `mdd adapt --volume` does (64 x 200 x 200 voxels at most), and serves a session of ten
sweeps of the second one (64 x 96 x 96 at most): slab of 6 slices, step of 8, white noise of 0.01 that is not
declared, golden offsets, still. Then it serves the other specimens' second halves, alone and with the shipped
weights for a rival. PSNR of what is served in the first sweep, and mean of sweeps 4 to 10; one seed, one
thread. What was learned is kept in --keep, so that a call that is stopped goes on. Writes
benchmarks/results/adapt.json.
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
import torch
from measuring import ROOT, machine

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import (
    Belonging,
    load_denoiser,
    save_denoiser,
    shipped_weights,
    weights_notes,
)
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine
from microdiffusion.engines.training import AdaptPlan, planned_optics, read_specimen
from microdiffusion.engines.training.adapt_volume import best_way, learn
from microdiffusion.engines.training.trial import (
    LATER,
    Trial,
    make_trial,
    run_trial,
    trial_scores,
)
from microdiffusion.optics import AxialProfile

VOLUMES = ("vessels_octa", "purkinje_neuron", "nuclei_dense_lightsheet", "vesicles_lattice_lightsheet")
SWEEPS, GAP, MOST = 10, 8, (64, 200, 200)
LENGTH, STEP = 6.0, 8.0
CPU = torch.device("cpu")
CONFIG = EngineConfig(device="cpu", runtime="torch")


def halves(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both halves of a volume (Z, Y, X)."""
    axis = 1 if volume.shape[1] > volume.shape[2] else 2
    volume = np.swapaxes(volume, axis, 2)
    middle = volume.shape[2] // 2
    first, second = volume[:, :, : middle - GAP // 2], volume[:, :, middle + GAP // 2 :]
    z, y, x = MOST
    return np.swapaxes(first, axis, 2)[:z, :y, :x], np.swapaxes(second, axis, 2)


def session(trial: Trial, engine: Engine) -> dict[str, Any]:
    """Return the PSNR of a session, and what the user is told of the weights."""
    reconstructor = Reconstructor(trial.header, CONFIG, engine)
    begun = time.process_time()
    scores = trial_scores(trial, reconstructor)
    seconds = time.process_time() - begun
    later = float(np.mean(scores[LATER:]))
    return {"first": scores[0], "later": later, "sweeps": scores, "cpu_seconds": seconds}


def gains(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return the gain in dB, and the least one of any sweep."""
    differences = [a - b for a, b in zip(mine["sweeps"], theirs["sweeps"], strict=True)]
    return {
        "first": mine["first"] - theirs["first"],
        "later": mine["later"] - theirs["later"],
        "least": min(differences),
    }


def alone(path: Path) -> Engine:
    """Return an engine of the weights without a rival."""
    engine = open_engine(CONFIG.model_copy(update={"weights": path, "fallback": False}))
    return Engine(engine.device, engine.name, "", engine.runtime)


def main() -> None:
    """Adapt to each first half, and score on all second ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, nargs="+", required=True)
    parser.add_argument("--only", nargs="*", default=VOLUMES)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="folder for what was learned")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "adapt.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "machine": machine(),
        "weights": shipped_weights().name,
        "iterations": arguments.iterations,
        "length": LENGTH,
        "step": STEP,
        "own": [],
        "others": [],
    }
    optics = planned_optics(AxialProfile.box(LENGTH), STEP, 1.0)
    trials, shipped, adapted = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

        for name in arguments.only:
            files = (place / f"{name}.h5" for place in arguments.volumes)
            (found,) = (path for path in files if path.is_file())
            with h5py.File(found) as file:
                first, second = halves(file["volume"][()].astype(np.float32))
            stack = Path(folder) / f"{name}.h5"
            with h5py.File(stack, "w") as file:
                file["volume"] = first
            trials[name] = make_trial(second, optics, sweeps=SWEEPS)
            shipped[name] = session(trials[name], alone(shipped_weights()))
            specimen = read_specimen(stack, (1.0, None, None))
            start, plan = load_denoiser(shipped_weights()), AdaptPlan(arguments.iterations, 1e6)
            learned = (arguments.keep or Path(folder)) / f"{name}.{plan.iterations}.safetensors"
            if not learned.is_file():
                begun = time.process_time()
                model, _ = learn(specimen, optics, start, CPU, plan, begun_s=time.monotonic())
                save_denoiser(model, learned, {"cpu_seconds": f"{time.process_time() - begun:.1f}"})
            seconds = float(weights_notes(learned)["cpu_seconds"])
            begun = time.process_time()
            trial = make_trial(specimen.aside, optics)
            before = run_trial(trial, start, CONFIG, CPU)
            model, worth = best_way(trial, before, (start, load_denoiser(learned)), CONFIG, CPU)
            seconds += time.process_time() - begun
            adapted[name] = Path(folder) / f"{name}.safetensors"
            whose = Belonging(name, specimen.fingerprint, LENGTH, STEP, 1.0)
            save_denoiser(model, adapted[name], whose.notes())
            by_itself = session(trials[name], alone(adapted[name]))
            engine = open_engine(CONFIG.model_copy(update={"weights": adapted[name]}))
            protected = session(trials[name], engine)
            row = {
                "volume": name,
                "trained_on": first.shape,
                "cpu_minutes": seconds / 60,
                "kept_aside": {"verdict": worth.word, **asdict(worth)},
                "shipped": shipped[name],
                "alone": by_itself,
                "with_rival": protected,
                "gain_alone": gains(by_itself, shipped[name]),
                "gain_with_rival": gains(protected, shipped[name]),
            }
            results["own"].append(row)
            write()
            print(
                f"{name:28s} {seconds / 60:.1f} min  {worth.sentence}\n  other half: alone "
                f"{shown(row['gain_alone'])}, with a rival {shown(row['gain_with_rival'])}",
                flush=True,
            )
        for name, path in adapted.items():
            rivalled = open_engine(CONFIG.model_copy(update={"weights": path}))
            for other, trial in trials.items():
                if other == name:
                    continue
                gain = {
                    "alone": gains(session(trial, alone(path)), shipped[other]),
                    "with_rival": gains(session(trial, rivalled), shipped[other]),
                }
                results["others"].append({"adapted_to": name, "volume": other, **gain})
                write()
                print(
                    f"{name} on {other}: alone {shown(gain['alone'])}, with a rival "
                    f"{shown(gain['with_rival'])}",
                    flush=True,
                )


def shown(gain: dict[str, float]) -> str:
    """Return gains in words."""
    return f"{gain['first']:+.2f} {gain['later']:+.2f} (least {gain['least']:+.2f})"


if __name__ == "__main__":
    main()
