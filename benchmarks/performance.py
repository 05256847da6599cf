"""What a volume costs: by size, runtime and evaluations, and the INR warm against cold.

    python benchmarks/performance.py [--only PART,PART] [--device cpu] [--quick]

Each part replaces its own entry in benchmarks/results/performance.json, with machine, commit and the seconds
it took, so a part that failed or was disturbed is run again alone. On two quiet cores: sizes ten minutes,
growth three, runtimes and INR one each. What is compared takes turns; the machine should have
nothing else to do all the same. The figure docs/images/performance.png and the tables
(performance_tables.py) come from the file alone.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, machine
from performance_figure import draw
from torch import Tensor, nn

from microdiffusion.config.load import load_config
from microdiffusion.daemon.bench.measure import Bench
from microdiffusion.daemon.bench.network import EagerRuntime
from microdiffusion.daemon.bench.scene import Scene, make_scene
from microdiffusion.daemon.bench.settings import (
    CPU_SIZES,
    CUDA_SIZES,
    QUICK,
    WARM_UP,
    BenchSettings,
    Size,
    size_name,
)
from microdiffusion.daemon.bench.timing import QUIET, Turn, take_turns
from microdiffusion.engines.diffusion import Denoiser, load_denoiser, middle_slices, weights_path
from microdiffusion.engines.diffusion.runtime import Runtime
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.runtimes.onnx_export import INPUTS, export_onnx
from microdiffusion.engines.runtimes.openvino_runtime import OpenVINORuntime, find_openvino
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import DependencyError

RESULTS = ROOT / "benchmarks" / "results" / "performance.json"
SIZE = (64, 128, 128)
AREAS: tuple[Size, ...] = (SIZE, (64, 256, 256), (64, 512, 512))
DEPTHS: tuple[Size, ...] = ((32, 128, 128), SIZE, (130, 128, 128))
ROUNDS = 9
SWEEPS = 8


class OnnxRuntime:
    """The denoiser in onnxruntime, float32: for comparison only."""

    capturable = False

    def __init__(self, model: Denoiser, device: torch.device) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.device, self.multiple = device, model.multiple
        self.name = f"onnxruntime {onnxruntime.__version__} cpu float32"
        self._session = onnxruntime.InferenceSession(
            export_onnx(model), options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X)."""
        inputs = zip(INPUTS, (state, prior, deviation, image, conditions), strict=True)
        answer = self._session.run(None, {name: value.numpy() for name, value in inputs})[0]
        return middle_slices(prior) + torch.from_numpy(answer)


def runtimes_of(path: Path, device: torch.device) -> list[Runtime]:
    """Return every runtime that is installed here, plain eager code first."""
    made: list[Callable[[], Runtime]] = [
        lambda: EagerRuntime(load_denoiser(path), device),
        lambda: TorchRuntime(load_denoiser(path), device, torch.float32),
        lambda: TorchRuntime(load_denoiser(path), device),
    ]
    if device.type == "cpu":
        openvino = find_openvino()
        if openvino is not None:
            made += [
                lambda: OpenVINORuntime(load_denoiser(path), device, openvino, "f32"),
                lambda: OpenVINORuntime(load_denoiser(path), device, openvino),
            ]
        made.append(lambda: OnnxRuntime(load_denoiser(path), device))
    found: dict[str, Runtime] = {}
    for make in made:
        try:
            runtime = make()
        except (ImportError, DependencyError) as error:
            print(f"left out: {error}", flush=True)
            continue
        found.setdefault(runtime.name, runtime)
    return list(found.values())


def sizes(bench: Bench) -> dict[str, Any]:
    """Return the whole bench of every size, and its byte floor."""
    copied = copy_rate(bench.device)
    found = {size_name(size): bench.size(size) for size in (*CPU_SIZES, *CUDA_SIZES)}
    for size in (*CPU_SIZES, *CUDA_SIZES):
        figures = found[size_name(size)]
        figures["floors"] |= byte_floor(bench, bench.scene(size), copied)
        figures["copy_fraction"] = figures["floors"]["bytes_s"] / figures["volume_s"]
    return {"sizes": found, "engine": bench.about_engine(), "settings": dataclasses.asdict(bench.settings)}


def copy_rate(device: torch.device) -> float:
    """Return the bytes read plus bytes written in a second of copying memory."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 26), device=device)  # beyond any cache
    target = torch.empty_like(source)
    seconds = take_turns({"copy": lambda: target.copy_(source)}, device, 6)["copy"]
    return 2 * source.numel() * source.element_size() / min(seconds)


def byte_floor(bench: Bench, scene: Scene, copied: float) -> dict[str, float]:
    """Return the bytes that an update moves at least, and their seconds at the rate of a memory copy.

    `bytes`: were everything fused that can be. Projections are read as they came (2 bytes a pixel) and once
    more for each consistency (4); of volumes (4 bytes a voxel) the prior is written once; each evaluation
    reads state, prior and deviation and writes its result, the consistency reads and writes that; at last the
    answer is read and handed over. `layer_bytes`: where each of the network's layers reads its input and
    weights, and writes its output, once.
    """
    evaluations = bench.settings.evaluations[0]
    slices, rows, columns = scene.header.shape
    pixels, voxels = scene.projections * rows * columns, slices * rows * columns
    moved = float(pixels * (2 + 4 * (1 + evaluations)) + 4 * voxels * (1 + 6 * evaluations + 2))
    ghost = copy.deepcopy(bench.model).to("meta")
    values = 0

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel() + sum(p.numel() for p in layer.parameters())

    for layer in ghost.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    calls_of = bench.network_calls(scene)
    with torch.no_grad():
        for shape, times in calls_of.counts.items():
            for _ in range(times):
                ghost(*(torch.empty(part.shape, device="meta") for part in calls_of.batches[shape]))
    layers = values * bench.dtype.itemsize
    return {
        "copy_bytes_per_s": copied,
        "bytes": moved,
        "bytes_s": moved / copied,
        "layer_bytes": layers,
        "layer_bytes_s": layers / copied,
    }


def runtimes(bench: Bench) -> dict[str, Any]:
    """Return seconds of network and update in every runtime, all of them taking turns, and their errors."""
    scene = bench.scene(SIZE)
    calls_of = bench.network_calls(scene)
    found = runtimes_of(weights_path(bench.config.engine), bench.device)
    shape = next(iter(calls_of.batches))
    truth = found[0](*calls_of.batches[shape])
    calls = {runtime.name: calls_of.on(runtime)[shape] for runtime in found}
    take_turns(calls, bench.device, 2)
    network = take_turns(calls, bench.device, ROUNDS)
    turn = Turn(bench.reconstructor(scene, 1), scene)
    turns = {runtime.name: turn.on(bench.engine_of(runtime)) for runtime in found}
    take_turns(turns, bench.device, 1)
    volume = take_turns(turns, bench.device, ROUNDS)
    eager = found[0].name
    rows = {}
    for runtime in found:
        name = runtime.name
        error = (runtime(*calls_of.batches[shape]) - truth).norm() / truth.norm()
        rows[name] = {
            "network_s": min(network[name]),
            "volume_s": min(volume[name]),
            "network_median_s": float(np.median(network[name])),
            "volume_median_s": float(np.median(volume[name])),
            "ratio_network": min(network[eager]) / min(network[name]),
            "ratio_volume": min(volume[eager]) / min(volume[name]),
            "relative_error": float(error),
        }
    return {"size": size_name(SIZE), "rounds": ROUNDS, "runtimes": rows}


def inr(bench: Bench) -> dict[str, Any]:
    """Return what the INR costs warm and cold on the same sweeps, until another specimen comes."""
    return {
        "size": size_name(SIZE),
        "specimens": {
            "the demo's": inr_of(bench, {}),
            "neurons alone": inr_of(bench, {"vessels": 0, "nuclei": 0}),
        },
    }


def inr_of(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    """Return rows of one specimen: for every sweep the warm session's fit, and a new session's."""
    specimen = bench.config.specimen.model_copy(update=changes)
    config = bench.config.model_copy(update={"specimen": specimen})
    scene = make_scene(config, SIZE, seed=bench.settings.seed)
    other = make_scene(config, SIZE, seed=bench.settings.seed + 10)
    engine = config.engine.model_copy(update={"method": "inr", "memory": "sweep"})
    warm = Reconstructor(scene.header, engine, bench.engine)
    rows = []
    for number in range(2 * SWEEPS):
        changed = number >= SWEEPS
        shown: Scene = other if changed else scene
        row: dict[str, Any] = {"sweep": number, "another_specimen": changed}
        row["held_out"] = bool(len(shown.sweep(number).held_out_stage))
        for name, reconstructor in {
            "warm": warm,
            "cold": Reconstructor(scene.header, engine, bench.engine),
        }.items():
            result = reconstructor.reconstruct(shown.sweep(number))
            row[name] = {
                "inr_s": result.seconds["inr"],
                "iterations": result.inr_iterations,
                "residual": result.residual,
            }
        rows.append(row)
    usual = [row for row in rows[1:] if row["sweep"] != SWEEPS]
    held = [row for row in usual if row["held_out"]]
    sudden = rows[SWEEPS]
    return {
        "rows": rows,
        "cold_over_warm": _cold_over_warm(usual),
        "cold_over_warm, with a held-out projection": _cold_over_warm(held),
        "worst residual warm over cold": max(r["warm"]["residual"] / r["cold"]["residual"] for r in usual),
        "sudden change, warm over cold": {
            key: sudden["warm"][key] / max(sudden["cold"][key], 1e-9) for key in ("inr_s", "residual")
        },
    }


def _cold_over_warm(rows: list[dict[str, Any]]) -> float:
    return float(np.median([row["cold"]["inr_s"] / row["warm"]["inr_s"] for row in rows]))


def growth(bench: Bench) -> dict[str, Any]:
    """Return the cost of an update against area, depth, evaluations and sessions.

    Everything of one comparison takes turns, so that a machine with other work slows all of it alike.
    """
    evaluations = bench.settings.evaluations[0]

    def over_sizes(sizes: tuple[Size, ...]) -> dict[str, Any]:
        turns = {}
        for size in sizes:
            scene = bench.scene(size)
            turns[size_name(size)] = Turn(bench.reconstructor(scene, evaluations), scene)
        return growth_of(least(bench, turns), [math.prod(size) for size in sizes], linear=True)

    scene, voxels = bench.scene(SIZE), math.prod(SIZE)
    steps = {str(n): Turn(bench.reconstructor(scene, n), scene) for n in (1, 2, 4, 8)}
    result = {
        "area": over_sizes(AREAS),
        "depth": over_sizes(DEPTHS),
        "evaluations": growth_of(least(bench, steps), [voxels] * len(steps)),
    }
    shared = {str(n): sessions(bench.reconstructor(scene, evaluations), scene, n) for n in (1, 2, 4)}
    each = {name: seconds / int(name) for name, seconds in least(bench, shared).items()}
    return {"growth": result | {"sessions": growth_of(each, [voxels] * len(each))}}


def sessions(reconstructor: Reconstructor, scene: Scene, count: int) -> Callable[[], None]:
    """Return a call that updates each of so many sessions that share a reconstructor; they are warm."""
    numbers = itertools.count(1000)

    def update() -> None:
        number = next(numbers)
        for position in range(count):
            sweep = scene.sweep(number, made=QUIET[number % len(QUIET)])
            sweep.position = position
            reconstructor.reconstruct(sweep)

    for _ in range(WARM_UP):
        update()
    return update


def least(bench: Bench, turns: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Return the least seconds of calls that take turns."""
    seconds = take_turns(turns, bench.device, bench.settings.rounds)
    return {name: min(values) for name, values in seconds.items()}


def growth_of(seconds: dict[str, float], voxels: list[int], *, linear: bool = False) -> dict[str, Any]:
    """Return seconds and nanoseconds per voxel, and how much more the last costs per voxel than the first."""
    each = {name: 1e9 * s / count for (name, s), count in zip(seconds.items(), voxels, strict=True)}
    result: dict[str, Any] = {"volume_s": seconds, "ns_per_voxel": each}
    if linear:
        ordered = list(each.values())
        result["largest_over_smallest"] = ordered[-1] / ordered[0]
    return result


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "sizes": sizes, "growth": growth, "runtimes": runtimes, "inr": inr
}  # fmt: skip


def main() -> None:
    """Run the parts that are asked for, one after the other, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="as mdd bench --quick: to try this script out")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "performance.png")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else []
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    results = json.loads(arguments.json.read_text("utf-8")) if arguments.json.is_file() else {}
    if wanted:
        settings = QUICK if arguments.quick else BenchSettings()
        config = load_config("demo", overrides={"engine.device": arguments.device})
        bench = Bench(config, settings, lambda text: print(text, file=sys.stderr, flush=True))
    for part in wanted:
        begun = time.perf_counter()
        result = PARTS[part](bench)
        took = round(time.perf_counter() - begun, 1)
        results[part] = {"machine": machine(), "took_s": took, "quick": arguments.quick, **result}
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {took} s", flush=True)
    draw(results, arguments.figure)


if __name__ == "__main__":
    main()
