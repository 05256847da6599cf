"""One bench: opens the engine once, then measures size after size.

Owns the engine and the machine's limits. A size is measured in this order: the whole way of its volumes; the
network alone, in turns with plain eager code and with matrix products; the update, in turns with parts of the
reference. Single-threaded, apart from sender, ingest and recorder, which are the daemon's own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from microdiffusion.config import Config
from microdiffusion.daemon.bench import reference_cost
from microdiffusion.daemon.bench.limits import Limits, matrix_product, measure_limits
from microdiffusion.daemon.bench.network import (
    EagerRuntime,
    Listener,
    NetworkCalls,
    Shape,
    flop_of,
    precision_of,
)
from microdiffusion.daemon.bench.scene import Scene, make_scene
from microdiffusion.daemon.bench.settings import BenchSettings, Size, size_name
from microdiffusion.daemon.bench.timing import QUIET, Turn, take_turns
from microdiffusion.daemon.bench.volumes import summary, whole_way
from microdiffusion.daemon.system import resident_mb
from microdiffusion.engines.diffusion import Runtime, load_denoiser, weights_path
from microdiffusion.engines.evaluation import measured
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine
from microdiffusion.errors import EngineError

_CUDA_REFERENCE = 2e14  # operations: seconds there


class Bench:
    """Measures volumes of any size.

    `config` is the demo's, with the engine that is wanted; `progress` gets what is being measured, in words.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        The engine cannot be opened as configured.
    """

    def __init__(
        self, config: Config, settings: BenchSettings, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        self.config = config
        self.settings = settings
        self._progress = progress
        progress("opening the engine")
        self.engine = open_engine(config.engine)
        if self.engine.runtime is None:
            raise EngineError("A bench needs the network: leave engine.method at mdd.")
        self.runtime: Runtime = self.engine.runtime
        self.device = self.engine.device
        self.model = load_denoiser(weights_path(config.engine))
        self.eager = EagerRuntime(load_denoiser(weights_path(config.engine)), self.device)
        self.dtype = precision_of(self.runtime)
        progress("the machine's limits")
        self.limits: Limits = measure_limits(self.device, self.dtype, settings.matrix_sizes)

    def about_engine(self) -> dict[str, Any]:
        """Return which runtime and network were measured, and the limits they are compared with."""
        return {
            "runtime": self.engine.name,
            "reason": self.engine.reason,
            "weights": self.engine.weights,
            "weights_sha256": self.engine.weights_sha256,
            "parameters": sum(value.numel() for value in self.model.parameters()),
            "limits": asdict(self.limits),
        }

    def scene(self, size: Size) -> Scene:
        """Return the sweeps of a size."""
        self._progress(f"{size_name(size)}: the specimen")
        return make_scene(self.config, size, seed=self.settings.seed)

    def size(self, size: Size) -> dict[str, Any]:
        """Return all figures of one size."""
        scene, name = self.scene(size), size_name(size)
        by_evaluations: dict[str, Any] = {}
        for evaluations in reversed(self.settings.evaluations):  # the first is the last that is measured
            self._progress(f"{name}: volumes with {evaluations} evaluations")
            reconstructor = self.reconstructor(scene, evaluations)
            figures = self._volumes(reconstructor, scene)
            by_evaluations[str(evaluations)] = {
                key: figures[key] for key in ("volume_s", "pipeline_s", "cold_s", "voxels_per_s", "stages")
            }
        self._progress(f"{name}: the network")
        network = self._network(scene, figures["volume_s"])
        return {
            "evaluations": self.settings.evaluations[0],
            **figures,
            "by_evaluations": dict(reversed(by_evaluations.items())),
            **network,
            **self._against_reference(Turn(reconstructor, scene), name),
        }

    def reconstructor(
        self, scene: Scene, evaluations: int, runtime: Runtime | None = None, **changes: Any
    ) -> Reconstructor:
        """Return a reconstructor without sessions yet; another runtime, other settings where given."""
        config = self.config.engine.model_copy(update={"steps": evaluations, **changes})
        return Reconstructor(scene.header, config, self.engine_of(runtime or self.runtime))

    def engine_of(self, runtime: Runtime) -> Engine:
        """Return the engine with another runtime of the same network."""
        return replace(self.engine, runtime=runtime, name=runtime.name)

    def network_calls(self, scene: Scene) -> NetworkCalls:
        """Return which batches the sampler evaluates for one volume, the test of the network left out."""
        listener = Listener(self.runtime)
        reconstructor = self.reconstructor(
            scene, self.settings.evaluations[0], listener, fallback=False, memory="sweep"
        )
        reconstructor.reconstruct(scene.sweep(0, made=QUIET[0]))
        return listener.heard

    def _volumes(self, reconstructor: Reconstructor, scene: Scene) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        before_mb = resident_mb()
        with measured(self.device, resident_mb) as cost:
            samples = whole_way(reconstructor, scene, self.settings.volumes, self.config.recorder)
        return {
            **summary(samples, scene),
            "peak_resident_mb": None if before_mb is None else before_mb + cost.memory_mb,
            "peak_cuda_mb": cost.device_memory_mb if cuda else None,
            "host_share": self._host_share(Turn(reconstructor, scene)) if cuda else None,
        }

    def _host_share(self, turn: Turn) -> float:
        """Return the share of an update's time in which the GPU computes nothing."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            total_s = take_turns({"volume": turn}, self.device, 1)["volume"][0]
        busy_us: float = sum(event.self_device_time_total for event in profile.key_averages())
        return max(0.0, 1.0 - busy_us * 1e-6 / total_s)

    def _network(self, scene: Scene, volume_s: float) -> dict[str, Any]:
        """Return what the network's evaluations of one volume cost, against eager code and the limits."""
        network = self.network_calls(scene)
        least: dict[str, dict[Shape, float]] = {"runtime": {}, "eager": {}}
        flop_per_s = 0.0
        for shape in network.counts:
            calls: dict[str, Callable[[], object]] = {
                "runtime": network.on(self.runtime)[shape],
                "eager": network.on(self.eager)[shape],
            }
            once = take_turns(calls, self.device, 2)  # first calls choose their kernels
            product, product_flop = self._products(min(once["runtime"]))
            seconds = take_turns({**calls, "product": product}, self.device, self.settings.rounds)
            for name, each in least.items():
                each[shape] = min(seconds[name])
            flop_per_s = max(flop_per_s, product_flop / min(seconds["product"]))
        runtime_s, eager_s = network.total(least["runtime"]), network.total(least["eager"])
        flop = flop_of(self.model, network)
        return {
            "ratio_eager_fp32": eager_s / runtime_s,
            "limit_fraction": flop / runtime_s / flop_per_s,
            "limit_fraction_volume": flop / flop_per_s / volume_s,
            "floors": {"flop": flop, "flop_per_s": flop_per_s, "arithmetic_s": flop / flop_per_s},
            "network": {
                "runtime_s": runtime_s,
                "eager_fp32_s": eager_s,
                "batches": {"x".join(map(str, shape)): count for shape, count in network.counts.items()},
            },
        }

    def _products(self, seconds: float) -> tuple[Callable[[], None], float]:
        """Return matrix products that take about so long together, and their operations.

        As long as what they are compared with: a short call slips through where others use the machine too.
        """
        product = matrix_product(self.device, self.dtype, self.limits.edge)
        flop = 2.0 * self.limits.edge**3
        count = max(1, round(seconds * self.limits.flop_per_s / flop))

        def products() -> None:
            for _ in range(count):
                product()

        return products, count * flop

    def _against_reference(self, turn: Turn, name: str) -> dict[str, Any]:
        header, sweep = turn.scene.header, turn.scene.sweep(0, made=QUIET[0])
        operator = header.operator_at(sweep.stage)
        images = torch.from_numpy(sweep.projections).to(self.device)
        images = (images - images.min()) / (images.max() - images.min()).clamp_min(1e-6)
        cuda = self.device.type == "cuda"
        parts = reference_cost.reference_parts(
            self.config.engine.reference,
            torch.from_numpy(operator).float().to(self.device),
            images,
            _CUDA_REFERENCE if cuda else self.settings.reference_flop,
        )
        ours, measured = [], {}
        for part, call in parts.calls.items():
            self._progress(f"{name}: in turns with the reference's {part}")
            ours += take_turns({"volume": turn}, self.device, 1)["volume"]
            # On a GPU the first call chooses kernels; on a CPU a second one takes longer than that is worth.
            measured[part] = min(call() for _ in range(2 if cuda else 1))
        ours += take_turns({"volume": turn}, self.device, 1)["volume"]
        return reference_cost.summary(parts, measured, statistics.median(ours))
