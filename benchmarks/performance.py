"""What a volume costs: by size, network, runtime and evaluations, and the INR warm against cold.

    python benchmarks/performance.py [--only PART,PART] [--device cpu] [--quick]

Each part replaces its own entry in benchmarks/results/performance.json, with machine, commit and the seconds
it took, so a part that failed or was disturbed is run again alone. On two quiet cores: sizes ten minutes,
growth three, networks, runtimes and INR one each. What is compared takes turns; the machine should have
nothing else to do all the same. The figure docs/images/performance.png and the tables
(performance_tables.py) come from the file alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, machine
from performance_figure import draw

from microdiffusion.config.load import load_config
from microdiffusion.daemon.bench.growth import all_growth
from microdiffusion.daemon.bench.measure import Bench
from microdiffusion.daemon.bench.network import Asked, EagerRuntime
from microdiffusion.daemon.bench.scene import Scene, make_scene
from microdiffusion.daemon.bench.settings import CPU_SIZES, CUDA_SIZES, BenchSettings, size_name
from microdiffusion.daemon.bench.timing import take_turns
from microdiffusion.daemon.bench.turn import Turn
from microdiffusion.engines.diffusion.denoiser import SlabDenoiser, load_denoiser
from microdiffusion.engines.diffusion.runtime import Runtime
from microdiffusion.engines.pipeline.engine import weights_path
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.runtimes.openvino_runtime import OpenVINORuntime, find_openvino
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import DependencyError

RESULTS = ROOT / "benchmarks" / "results" / "performance.json"
SIZE = (64, 128, 128)
ROUNDS = 9
SWEEPS = 8


class OnnxRuntime:
    """The denoiser in onnxruntime, float32: for comparison only."""

    capturable = False

    def __init__(self, model: SlabDenoiser, device: torch.device) -> None:
        import onnxruntime

        from microdiffusion.engines.runtimes.onnx_export import export_onnx

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.device, self.multiple = device, model.shape.multiple
        self.name = f"onnxruntime {onnxruntime.__version__} cpu float32"
        self._session = onnxruntime.InferenceSession(
            export_onnx(model), options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, state: torch.Tensor, prior: torch.Tensor, image: torch.Tensor, conditions: torch.Tensor
    ) -> torch.Tensor:
        """Return the clean slices (B, SLICES, Y, X)."""
        inputs = {"state": state, "prior": prior, "image": image, "conditions": conditions}
        answer = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        return SlabDenoiser.middle_slices(prior) + torch.from_numpy(answer)


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
    found = {}
    for make in made:
        try:
            runtime = make()
        except (ImportError, DependencyError) as error:
            print(f"left out: {error}", flush=True)
            continue
        found.setdefault(runtime.name, runtime)
    return list(found.values())


def sizes(bench: Bench) -> dict[str, Any]:
    """Return the whole bench of every size."""
    return {
        "sizes": {size_name(size): bench.size(size) for size in (*CPU_SIZES, *CUDA_SIZES)},
        "engine": bench.about_engine(),
        "settings": dataclasses.asdict(bench.settings),
    }


def networks(bench: Bench) -> dict[str, Any]:
    """Return the small and the large network at one size, in one engine each."""
    result = {}
    for network in ("small", "large"):
        engine = bench.config.engine.model_copy(update={"network": network})
        own = Bench(bench.config.model_copy(update={"engine": engine}), bench.settings)
        result[network] = own.size(SIZE, reference=False) | {"engine": own.about_engine()}
    return {"size": size_name(SIZE), "networks": result}


def runtimes(bench: Bench) -> dict[str, Any]:
    """Return seconds of network and update in every runtime, all of them taking turns, and their errors."""
    scene = bench.scene(SIZE)
    asked: Asked = bench.asked(scene)
    found = runtimes_of(weights_path(bench.config.engine, bench.device), bench.device)
    shape = next(iter(asked.batches))
    truth = found[0](*asked.batches[shape])
    calls = {runtime.name: asked.calls(runtime)[shape] for runtime in found}
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
        error = (runtime(*asked.batches[shape]) - truth).norm() / truth.norm()
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
    engine = config.engine.model_copy(update={"method": "inr", "merge_sweeps": "off"})
    warm = Reconstructor(scene.header, engine, bench.engine)
    rows = []
    for number in range(2 * SWEEPS):
        changed = number >= SWEEPS
        shown: Scene = other if changed else scene
        row: dict[str, Any] = {"sweep": number, "another_specimen": changed}
        row["held_out"] = bool(shown.sweep(number).held_out_z_um.size)
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
    """Return how the cost grows."""
    return {"growth": all_growth(bench)}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "sizes": sizes, "growth": growth, "networks": networks, "runtimes": runtimes, "inr": inr
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
        settings = BenchSettings.quick() if arguments.quick else BenchSettings()
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
