"""What a session's memory costs: time against an evaluation of the network, one projection, bytes.

  python benchmarks/session_cost.py [--size 64x128x128] [--threads 2] [--repeats 15]

A sweep of the demo's specimen is taken into the estimator, registration included, in turns with one
evaluation of the network on the same volume; then single projections of 512 x 512 into 64 slices. Medians;
the ratio is the median of the pairs'. Writes benchmarks/results/session_cost.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import microdiffusion
from microdiffusion.config import load_config
from microdiffusion.daemon.bench.scene import make_scene
from microdiffusion.daemon.system import about
from microdiffusion.engines import evaluation
from microdiffusion.engines.inr.estimator import SessionEstimator
from microdiffusion.engines.inr.field import default_bandwidth
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.engines.projections import slab_light
from microdiffusion.header import RunHeader

ROOT = Path(__file__).resolve().parents[1]
WARM = 4  # sweeps


def estimator_against_network(size: tuple[int, int, int], threads: int, repeats: int) -> dict[str, float]:
    """Return seconds of both, and how the first compares with the second."""
    config = load_config("demo")
    scene = make_scene(config, size, seed=1)

    def reconstructor(header: RunHeader, **settings: object) -> Reconstructor:
        engine = config.engine.model_copy(update={"threads": threads, "steps": 1, **settings})
        return Reconstructor(header, engine, open_engine(engine))

    with_memory = reconstructor(scene.header, method="inr", memory="session")
    without = reconstructor(scene.header, method="inr", memory="sweep")
    network = reconstructor(scene.header, method="mdd", memory="sweep")
    pairs = []
    for number in range(WARM + repeats):
        sweep = scene.sweep(number)
        seconds = []
        for each in (with_memory, without, network):
            began = time.perf_counter()
            each.reconstruct(sweep)
            seconds.append(time.perf_counter() - began)
        if number >= WARM:
            pairs.append((seconds[0] - seconds[1], seconds[2] - seconds[1]))
    return {
        "estimator_s": round(statistics.median(pair[0] for pair in pairs), 4),
        "evaluation_s": round(statistics.median(pair[1] for pair in pairs), 4),
        "ratio": round(statistics.median(pair[0] / pair[1] for pair in pairs), 3),
    }


def one_projection(threads: int, repeats: int) -> dict[str, float]:
    """Return seconds that a projection of 512 x 512 takes in 64 slices, and the bytes of its state."""
    torch.set_num_threads(threads)
    slices, edge, rng = 64, 512, np.random.default_rng(0)
    estimator = SessionEstimator((slices, edge, edge), bandwidth=default_bandwidth(6.0), reach=6.0)
    volume = rng.random((slices, edge, edge), dtype=np.float32)

    def slabs(begins: list[int]) -> tuple[NDArray[np.float64], torch.Tensor, torch.Tensor, torch.Tensor]:
        matrix = np.zeros((len(begins), slices))
        for row, begin in enumerate(begins):
            matrix[row, begin : begin + 6] = 1 / 6
        images = torch.from_numpy(np.tensordot(matrix, volume, 1).astype(np.float32))
        variance = torch.full_like(images, 1e-4)
        return matrix, images, variance, slab_light(images, variance)

    for offset in (0, 4):
        estimator.update(*slabs(list(range(offset, slices - 6, 8))))
    seconds = []
    # Made beforehand: numpy's threads wait busily after each product, in the way of torch's.
    for given in [slabs([number * 8 % (slices - 6)]) for number in range(repeats)]:
        began = time.perf_counter()
        estimator.copy().update(*given)
        seconds.append(time.perf_counter() - began)
    return {
        "projection_512_s": round(statistics.median(seconds), 4),
        "state_volumes": round(estimator.nbytes / (4 * volume.size), 2),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="64x128x128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "session_cost.json")
    arguments = parser.parse_args()
    load = {"load": round(os.getloadavg()[0], 1)}  # of others: processes that wanted a core before
    depth, height, width = (int(edge) for edge in arguments.size.split("x"))
    result = estimator_against_network((depth, height, width), arguments.threads, arguments.repeats)
    result |= one_projection(arguments.threads, arguments.repeats)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    machine = about() | load | {"version": microdiffusion.__version__, "commit": commit}
    evaluation.write_json(arguments.json, {"machine": machine, "size": arguments.size} | result)
    print(result)


if __name__ == "__main__":
    main()
