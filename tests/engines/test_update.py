"""The update asks the host nothing, and CUDA graphs replay what it does.

Torch's device "meta" has shapes and no memory. What takes a number or a tensor out of it, or has shapes that
hang on values, fails there, where it would stall a GPU or break a recording; what brings in a tensor of the
host is caught by looking at every operation. What needs a real GPU is marked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import SHAPE, header, positions, specimen, sweep_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import (
    SlabUNet,
)
from microdiffusion.engines.diffusion.sampler import SamplerSettings, bridge_noise
from microdiffusion.engines.pipeline import device as device_module
from microdiffusion.engines.pipeline.cuda_graphs import CudaRecorder, Graphs, Tensors
from microdiffusion.engines.pipeline.device import Clock
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.geometry import Geometries, Geometry
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.update import SCORES, Update, UpdateSettings
from microdiffusion.engines.projections.closed_form import along_z
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.engines.trust.scores import Scores, measure, measure_held
from microdiffusion.frames import Reconstruction, StagePositions

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
SETTINGS = SamplerSettings(steps=1, kappa=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# No host round trip -------------------------------------------------------------------------------


class _LeftTheDevice(Exception):
    pass


class _OnDevice(TorchDispatchMode):
    """Fails with the first operation that sees a tensor of the host, or hands one of its numbers over."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise _LeftTheDevice("a number")
        result = operation(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, Tensor) and each.device != META:
                raise _LeftTheDevice(f"{operation}")
        return result


@contextmanager
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Watch what is done, and refuse the constructors whose copy from the host is no operation of its own."""

    def refuse(*_: object, **__: object) -> None:
        raise _LeftTheDevice("a tensor from the host's numbers")

    with monkeypatch.context() as patch, _OnDevice():
        for name in ("tensor", "as_tensor", "asarray", "from_numpy"):
            patch.setattr(torch, name, refuse)
        yield


class _Meddling:
    """A runtime that does something to the prior on the side."""

    def __init__(self, runtime: TorchRuntime, meddle: Callable[[Tensor], object]) -> None:
        self.device, self.multiple = runtime.device, runtime.multiple
        self.name, self.capturable = "meddling", True
        self._runtime, self._meddle = runtime, meddle

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        self._meddle(prior)
        return self._runtime(state, prior, deviation, image, conditions)


def some_runtime() -> TorchRuntime:
    return TorchRuntime(SlabUNet((4, 6), 1, 8), META, torch.float16)


def geometry_of(device: torch.device, number: int = 0) -> Geometry:
    """Return the geometry of even and odd sweeps (0 and 1), and of one that lost its last frame (2)."""
    places = positions(2, hold_out=False)[number % 2]
    stage = StagePositions.along_z(places[:-1] if number == 2 else places)
    return Geometries(header(), device).of(stage)


def given_for(geometry: Geometry, *, held: bool, seed: int = 0) -> Tensors:
    """Return inputs of an update: numbers that mean nothing."""
    device, slabs = geometry.operator.device, len(geometry.operator)
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    given = {
        "images": some(slabs, *SHAPE[1:]),
        "variance": 0.01 + 0.001 * some(slabs, *SHAPE[1:]),
        "light": some(slabs, *SHAPE[1:]).clamp(0.0, 1.0),
        "floor": some() * 0.01,
        "closed": geometry.tikhonov,
        "prior": some(*SHAPE),
        "deviation": 0.05 * some(*SHAPE),
        "leeway": torch.eye(SHAPE[0], device=device) + 0.01 * some(SHAPE[0], SHAPE[0]),
    }
    if held:
        given |= {
            "held": some(1, *SHAPE[1:]),
            "held_variance": 0.01 + 0.001 * some(1, *SHAPE[1:]),
            "held_operator": geometry.operator[:1].clone(),
        }
    return given


def update_on(device: torch.device, runtime: Any, settings: SamplerSettings) -> tuple[Update, Geometry]:
    geometry = geometry_of(device)
    noise = bridge_noise(SHAPE, 0, device)
    return Update(geometry, UpdateSettings("mdd", settings), runtime, noise), geometry


@pytest.mark.parametrize("held", [False, True], ids=["blind", "held out"])
@pytest.mark.parametrize("tile", [256, 32], ids=["whole", "tiles"])
@pytest.mark.parametrize("guidance", [0.0, 0.7], ids=["plain", "guided"])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_update_never_leaves_the_device(
    steps: int, guidance: float, tile: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        update, geometry = update_on(META, some_runtime(), SamplerSettings(steps, guidance, 0.01, tile // 2))
        given = given_for(geometry, held=held)
        with on_device(monkeypatch):
            answers = update(given)
    assert set(answers) == {"mdd", "inr", "tikhonov", "linear", SCORES}
    assert {tensor.device for tensor in answers.values()} == {META}
    assert answers["mdd"].shape == SHAPE
    assert answers[SCORES].shape == (9 + 12 * held,)


@pytest.mark.parametrize(
    "meddle",
    [
        pytest.param(lambda prior: float(prior.mean()), id="a number"),
        pytest.param(lambda prior: prior.mean().item(), id="an item"),
        pytest.param(lambda prior: prior.flatten()[:3].tolist(), id="a list"),
        pytest.param(lambda prior: 1 if prior.sum() > 0 else 0, id="a decision"),
        pytest.param(lambda prior: prior[prior > 0], id="a shape that hangs on values"),
        pytest.param(lambda prior: prior.cpu(), id="a copy on the host"),
        pytest.param(lambda prior: prior * torch.ones(()), id="a constant of the host"),
        pytest.param(lambda prior: torch.arange(3).to(prior.device), id="a table of the host"),
        pytest.param(lambda prior: torch.tensor([1.0, 2.0], device=prior.device), id="a list of the host"),
        pytest.param(lambda prior: prior.numpy(), id="an array"),
    ],
)
def test_what_leaves_the_device_is_found(
    meddle: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        update, geometry = update_on(META, _Meddling(some_runtime(), meddle), SETTINGS)
        given = given_for(geometry, held=True)
        with on_device(monkeypatch), pytest.raises((_LeftTheDevice, RuntimeError, TypeError)):
            update(given)


def test_whatever_is_served_is_dark_where_a_whole_slab_was() -> None:
    with torch.no_grad():
        update, geometry = update_on(CPU, TorchRuntime(SlabUNet((4, 6), 1, 8), CPU, torch.float32), SETTINGS)
        given = given_for(geometry, held=False)
        given["light"] = torch.zeros_like(given["light"])
        answers = update(given)
        dark = (geometry.operator > 0).any(0)
        for name in ("mdd", "inr", "tikhonov", "linear"):
            assert torch.allclose(answers[name][dark], given["floor"], atol=1e-6), name


# The scores --------------------------------------------------------------------------------------


def test_the_figures_of_a_blend_are_those_that_are_measured() -> None:
    geometry = geometry_of(CPU)
    given = given_for(geometry, held=True)
    generator = torch.Generator().manual_seed(1)
    names = ["mdd", "inr", "tikhonov"]
    volumes = [torch.rand(SHAPE, generator=generator) for _ in names]

    def figures_of(named: dict[str, Tensor]) -> Scores:
        answers, miss = list(named.values()), torch.tensor(0.25)
        found = torch.cat(
            [
                measure(answers, geometry.operator, given["images"], given["variance"], miss),
                measure_held(
                    answers,
                    given["held_operator"],
                    given["held"],
                    given["held_variance"],
                    geometry.between,
                ),
            ]
        )
        return Scores.read(found.tolist(), list(named), held=True)

    scores = figures_of(dict(zip(names, volumes, strict=True)))
    scores.blend("blend", "mdd", "tikhonov", 0.3)
    measured = figures_of({"blend": 0.3 * volumes[0] + 0.7 * volumes[2]})
    assert scores.residuals["blend"] == pytest.approx(measured.residuals["blend"], rel=1e-5)
    assert scores.errors["blend"] == pytest.approx(measured.errors["blend"], rel=1e-5)
    assert scores.miss == 0.25
    assert set(scores.shares) == {"inr", "tikhonov"}
    misfit = along_z(geometry.operator, volumes[1]) - given["images"]
    rms = float((misfit.square() / given["variance"]).mean().sqrt())
    assert scores.residuals["inr"] == pytest.approx(rms, rel=1e-5)


def test_the_noise_of_the_bridge_is_the_same_in_every_sweep_and_another_for_another_seed() -> None:
    one, again, other = (bridge_noise(SHAPE, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert abs(float((one * other).mean())) < 0.05
    assert float(one.std()) == pytest.approx(1.0, abs=0.05)


# Graphs -------------------------------------------------------------------------------------------


class _Tape:
    """Stands for CUDA's recorder: runs the function again, which fills the buffers of the first time."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        function()

        def replay() -> None:
            self.replayed += 1
            function()

        return replay


def doubled(given: Tensors) -> Tensors:
    return {"double": 2 * given["one"]}


def ask(graphs: Graphs, key: str, value: float, size: int = 3) -> float | None:
    answer = graphs(key, doubled, {"one": torch.full((size,), value)})
    return None if answer is None else float(answer["double"][0])


def test_a_graph_is_recorded_after_two_calls_and_follows_its_inputs() -> None:
    tape = _Tape()
    graphs = Graphs(tape)
    assert [ask(graphs, "a", value) for value in (1.0, 2.0, 3.0, 4.0)] == [None, None, 6.0, 8.0]
    assert (tape.recorded, tape.replayed) == (1, 2)


def test_a_graph_keeps_its_memory() -> None:
    graphs, one = Graphs(_Tape()), torch.ones(3)
    answers = [graphs("a", doubled, {"one": one}) for _ in range(4)]
    assert answers[2] is not None
    assert answers[3] is not None
    assert answers[2]["double"].data_ptr() == answers[3]["double"].data_ptr()
    one.fill_(9.0)  # the caller's, not the graph's
    assert float(answers[3]["double"][0]) == 2.0


def test_graphs_of_the_same_shapes_share_their_memory() -> None:
    graphs, answers = Graphs(_Tape()), {}
    for key, size in (("a", 3), ("b", 3), ("c", 5)):
        for _ in range(3):
            answers[key] = graphs(key, doubled, {"one": torch.ones(size)})
    places = {key: answer["double"].data_ptr() for key, answer in answers.items() if answer is not None}
    assert places["a"] == places["b"] != places["c"]
    assert [ask(graphs, key, 7.0) for key in "ab"] == [14.0, 14.0]


def test_another_key_or_shape_is_another_graph() -> None:
    tape = _Tape()
    graphs = Graphs(tape)
    for key, size in (("a", 3), ("b", 3), ("a", 5)):
        assert [ask(graphs, key, 1.0, size) for _ in range(3)] == [None, None, 2.0]
    assert tape.recorded == 3
    assert [ask(graphs, key, 4.0, size) for key, size in (("a", 3), ("b", 3), ("a", 5))] == [8.0] * 3


def test_the_graph_that_was_not_used_for_longest_goes() -> None:
    tape = _Tape()
    graphs = Graphs(tape, most=2)
    for key in ("a", "b"):
        assert [ask(graphs, key, 1.0) for _ in range(3)][2] == 2.0
    assert ask(graphs, "a", 1.0) == 2.0
    assert [ask(graphs, "c", 1.0) for _ in range(3)][2] == 2.0
    assert ask(graphs, "a", 1.0) == ask(graphs, "c", 1.0) == 2.0
    assert ask(graphs, "b", 1.0) is None


def test_rare_keys_record_nothing() -> None:
    tape = _Tape()
    graphs = Graphs(tape)
    assert [ask(graphs, str(number % 100), 1.0) for number in range(300)] == [None] * 300
    assert tape.recorded == 0


def test_what_cannot_be_recorded_is_said_once_and_left_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def refuse(function: Callable[[], None]) -> Any:
        calls.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(refuse)
    with caplog.at_level(logging.WARNING):
        assert [ask(graphs, key, 1.0) for key in "aaaaabbbb"] == [None] * 9
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The update is not recorded as a CUDA graph, it runs step by step: "
        "operation not permitted when stream is capturing"
    ]


def test_recordings_share_a_pool_and_leave_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pools, streams, log = [], ["own"], []

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def stream(wanted: str) -> Iterator[None]:
        before = list(streams)
        streams.append(wanted)
        try:
            yield
        finally:
            streams[:] = before

    @contextmanager
    def graph(_: Graph, *, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        pools.append(pool)
        streams.append("capture")
        yield  # as torch's own, which does not come back from a recording that fails
        streams.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    recorder = CudaRecorder()
    replays = []
    for _ in range(2):
        replays.append(recorder(lambda: log.append(streams[-1])))
        replays[-1]()
    assert log == ["capture", "replay"] * 2
    assert pools[0] is pools[1] is not None
    replays.clear()  # torch refuses the pool of graphs that are all gone
    recorder(lambda: None)
    assert pools[2] not in (None, pools[0])
    with pytest.raises(ZeroDivisionError):
        recorder(lambda: log.append(str(1 / 0)))
    assert streams == ["own"]


# The reconstructor --------------------------------------------------------------------------------


def configure(weights: Path, **changes: Any) -> EngineConfig:
    inr = InrConfig(cold_steps=20, warm_steps=4)
    return EngineConfig(
        **({"weights": weights, "device": "cpu", "threads": 1, "inr": inr, "runtime": "torch"} | changes)
    )


def reconstruct(
    config: EngineConfig, graphs: Graphs | None, engine: Engine | None = None
) -> tuple[Reconstructor, list[Reconstruction]]:
    """Return the volumes of sweeps that move, of two geometries, with and without held-out projections."""
    reconstructor = Reconstructor(header(), config, engine)
    reconstructor._graphs = graphs
    results = []
    for number in range(9):
        sweep = sweep_of(specimen(drift=0.4 * number), number, seed=number)
        if number % 3:
            sweep = replace(sweep, held_out_stage=sweep.held_out_stage[:0], held_out=sweep.held_out[:0])
        results.append(reconstructor.reconstruct(sweep))
    return reconstructor, results


class _Capturable(_Meddling):
    def __init__(self, runtime: Any) -> None:
        super().__init__(runtime, lambda prior: None)


def capturable(config: EngineConfig) -> Engine:
    engine = open_engine(config)
    return replace(engine, runtime=_Capturable(engine.runtime))


def test_sweeps_through_graphs_are_what_they_are_step_by_step(weights: Path) -> None:
    config, tape = configure(weights, memory="sweep", steps=2), _Tape()
    _, stepwise = reconstruct(config, None)
    _, replayed = reconstruct(config, Graphs(tape), capturable(config))
    assert tape.replayed >= 1
    for one, other in zip(stepwise, replayed, strict=True):
        np.testing.assert_array_equal(one.volume, other.volume)
        assert one.candidate_errors == other.candidate_errors
        assert (one.served, one.residual) == (other.served, other.residual)


def test_a_runtime_that_cannot_be_captured_is_not_recorded(weights: Path) -> None:
    config, tape = configure(weights, memory="sweep"), _Tape()
    reconstruct(config, Graphs(tape))
    assert tape.recorded == 0


def test_other_settings_are_never_replayed_from_the_graphs_of_the_last(weights: Path) -> None:
    config, tape = configure(weights, memory="sweep", fallback=False), _Tape()
    reconstructor, _ = reconstruct(config, Graphs(tape), capturable(config))
    recorded, sweep = tape.recorded, sweep_of(specimen(), 9)
    before = reconstructor.reconstruct(sweep).volume
    reconstructor.configure(config.model_copy(update={"steps": config.steps + 1}))
    assert not np.array_equal(reconstructor.reconstruct(sweep).volume, before)
    assert tape.recorded == recorded


# Times --------------------------------------------------------------------------------------------


def test_stages_on_a_gpu_are_timed_by_events_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Event:
        """The device's clock: one second for each event."""

        count = 0.0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.count += 1.0
            self.time = Event.count**2

        def synchronize(self) -> None:
            waits.append(self.time)

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.time - self.time)

    monkeypatch.setattr(device_module.torch.cuda, "Event", Event)
    clock = Clock(CUDA)
    for stage in ("prepare", "sampler", "consistency", "sampler"):
        clock.lap(stage)
    seconds = clock.seconds()
    assert seconds.pop("total") >= 0
    assert seconds == pytest.approx({"prepare": 3.0, "sampler": 5.0 + 9.0, "consistency": 7.0})
    assert waits == [25.0]


# On a GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("steps", "guidance", "tile"), [(1, 0.0, 256), (4, 0.0, 256), (2, 0.7, 32)])
def test_gpu_graphs_compute_what_single_steps_do(
    weights: Path, steps: int, guidance: float, tile: int
) -> None:
    runtime = open_engine(configure(weights, device="cuda")).runtime
    assert runtime is not None
    assert runtime.capturable
    graphs, settings = Graphs(), SamplerSettings(steps, guidance, 0.01, tile)
    noise = bridge_noise(SHAPE, 0, CUDA)
    with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
        updates = []
        for number in range(3):
            geometry = geometry_of(CUDA, number)
            updates.append((geometry, Update(geometry, UpdateSettings("mdd", settings), runtime, noise)))
        for seed in range(5):  # two calls to warm up, then new inputs each time
            for geometry, update in updates:
                given = given_for(geometry, held=True, seed=seed)
                wanted = {name: tensor.clone() for name, tensor in update(given).items()}
                replayed = graphs(update, update, given)
                assert (replayed is not None) == (seed >= 2)
                for name, tensor in (replayed or {}).items():
                    torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_sweeps_through_graphs_are_what_they_are_step_by_step(weights: Path) -> None:
    config = configure(weights, device="cuda", memory="sweep", steps=2)
    graphs = Graphs()
    _, stepwise = reconstruct(config, None)
    _, replayed = reconstruct(config, graphs)
    assert graphs._graphs
    for one, other in zip(stepwise, replayed, strict=True):
        span = float(np.ptp(one.volume))
        np.testing.assert_allclose(other.volume, one.volume, atol=1e-2 * span)
