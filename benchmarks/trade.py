"""Quality against time: several networks and numbers of evaluations, on neurons that none has seen.

    python benchmarks/trade.py --volumes FOLDER --network slim=FILE --network small=FILE

Slab of 6 slices, step of 6, noise 0.01, one held-out projection, one cold sweep per volume, as `mdd evaluate`
scores them; without stepping back, so that the figures are the network's. Time is that of a volume's
evaluations at 64 x 128 x 128, all networks alternating. Writes benchmarks/results/trade.json and
docs/images/quality_time.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from measuring import HELD_OUT, ROOT, machine
from torch.utils.flop_counter import FlopCounterMode

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import SLICES, load_denoiser
from microdiffusion.engines.evaluation.protocol import Protocol, make_case, read_truth
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.runtimes.onnx_export import input_shapes

EVALUATIONS = (1, 2, 4, 8)
WINDOWS, EDGE = 64 // SLICES, 128
ROUNDS = 7


def timed(networks: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return for each network the seconds of one evaluation, its size and its floating-point operations."""
    inputs = [torch.rand(shape) for shape in input_shapes(WINDOWS, EDGE, EDGE).values()]
    result, engines = {}, {}
    for name, path in networks.items():
        model = load_denoiser(path)
        with FlopCounterMode(display=False) as flops, torch.inference_mode():
            model.correction(*inputs)
        parameters = sum(value.numel() for value in model.parameters())
        result[name] = {"gflop": flops.get_total_flops() / 1e9, "parameters": parameters}
        engines[name] = open_engine(EngineConfig(device="cpu", weights=path))
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            if engine.runtime is None:
                raise RuntimeError(f"{name} has no network")
            begun = time.perf_counter()
            engine.runtime(*inputs)
            seconds[name].append(time.perf_counter() - begun)
    for name in networks:
        result[name] |= {"evaluation_s": float(np.median(seconds[name][1:])), "runtime": engines[name].name}
    return result


def scored(networks: dict[str, Path], volumes: Path) -> list[dict[str, Any]]:
    """Return a row for each volume, network and number of evaluations, and Tikhonov's."""
    rows = []
    points = [("tikhonov", {"method": "tikhonov"}, 0)]
    for name, path in networks.items():
        points += [(name, {"weights": path, "steps": steps}, steps) for steps in EVALUATIONS]
    for volume in HELD_OUT:
        case = make_case(read_truth(volumes / f"{volume}.h5"), Protocol(), seed=0)
        for name, options, steps in points:
            config = EngineConfig(device="cpu", fallback=False, **options)
            answer = Reconstructor(case.header, config).reconstruct(case.sweep)
            row = {"volume": volume, "network": name, "evaluations": steps}
            rows.append(row | dataclasses.asdict(case.scores(answer.volume)))
            print(rows[-1], flush=True)
    return rows


def draw(networks: dict[str, dict[str, float]], rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean gain over Tikhonov against the seconds of a volume's evaluations."""

    def mean(network: str, evaluations: int, figure: str) -> float:
        chosen = [r[figure] for r in rows if (r["network"], r["evaluations"]) == (network, evaluations)]
        return float(np.mean(chosen))

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, name, label in zip(axes, ("psnr_db", "ssim"), ("PSNR gain, dB", "SSIM gain"), strict=True):
        base = mean("tikhonov", 0, name)
        for network, facts in networks.items():
            seconds = [facts["evaluation_s"] * steps for steps in EVALUATIONS]
            gains = [mean(network, steps, name) - base for steps in EVALUATIONS]
            text = f"{network}, {facts['parameters'] / 1e6:.1f} M"
            axis.semilogx(seconds, gains, "o-", label=text, markersize=4)
            for second, gain, steps in zip(seconds, gains, EVALUATIONS, strict=True):
                axis.annotate(str(steps), (second, gain), textcoords="offset points", xytext=(3, 4))
        axis.set_xlabel("network's seconds for 64 × 128 × 128")
        axis.set_ylabel(f"{label} over Tikhonov")
        axis.grid(alpha=0.3)
    axes[0].legend(title="1, 2, 4, 8 evaluations")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--network", action="append", required=True, metavar="NAME=WEIGHTS")
    arguments = parser.parse_args()
    networks = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.network)}
    times = timed(networks)
    rows = scored(networks, arguments.volumes)
    result = {"machine": machine(), "networks": times, "rows": rows}
    target = ROOT / "benchmarks" / "results" / "trade.json"
    target.write_text(json.dumps(result, indent=1), encoding="utf-8")
    draw(times, rows, ROOT / "docs" / "images" / "quality_time.png")


if __name__ == "__main__":
    main()
