"""TensorRT: the build, the check against torch, the choice of the runtime, and the runtime itself.

Parsing and building run without a GPU on TensorRT for RTX. What needs a GPU is marked so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.onnx_support import relative_error, small_denoiser, small_graph, some_inputs

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import (
    SLICES,
    NetworkInputs,
    SamplerSettings,
    SlabUNet,
    VolumeDenoiser,
    middle_slices,
    save_denoiser,
)
from microdiffusion.engines.diffusion.conditioning import SliceConditions
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.runtimes import select as choose
from microdiffusion.engines.runtimes import tensorrt_build, tensorrt_runtime
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT
from microdiffusion.engines.runtimes.parity import PARITY_LIMIT, check_parity, parity_error
from microdiffusion.engines.runtimes.select import open_runtime
from microdiffusion.engines.runtimes.tensorrt_build import Profile, build_engine, find_tensorrt
from microdiffusion.engines.runtimes.tensorrt_runtime import TensorRTRuntime, context_settings, open_tensorrt
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import ConfigError, DependencyError, EngineError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Profile.of(32, 2)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache" / "engines")


@pytest.fixture(scope="module")
def trt() -> Any:
    """Return a TensorRT that can build on this machine."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")
    module = find_tensorrt()
    if module is None:
        pytest.skip('no TensorRT is installed: pip install "microdiffusion-daemon[tensorrt-rtx]"')
    if module.__name__ == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("TensorRT builds with a GPU only; TensorRT for RTX builds without")
    return module


# ---- parsing and building


def test_graph_is_parsed_in_half_precision_and_built(trt: Any) -> None:
    assert len(build_engine(trt, small_graph(torch.float16), SMALL)) > 10_000


def test_graph_in_another_precision_is_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match=r"Expected convolutions in HALF, but .* was parsed as FLOAT"):
        build_engine(trt, small_graph(torch.float32), SMALL)


def test_foreign_graph_is_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match="refused the denoiser's ONNX graph"):
        build_engine(trt, b"nothing of the kind", SMALL)


def test_impossible_sizes_are_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match="refused the sizes"):
        build_engine(trt, small_graph(torch.float16), Profile((1, 8), (1, 4), (1, 2)))


@pytest.mark.parametrize("tile", [32, 256, 512, 4096])
def test_profile_is_ordered_and_below_the_largest_tensor(tile: int) -> None:
    profile = Profile.of(tile, 8)
    sizes = np.array([profile.smallest, profile.usual, profile.largest])
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert (sizes[:, 1] % 8 == 0).all()
    assert profile.largest[0] * profile.largest[1] ** 2 * 48 < 2**31


@pytest.mark.parametrize("multiple", [8, 32])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
@pytest.mark.parametrize(
    ("tile", "rows", "columns"),
    [(32, 16, 100), (64, 65, 131), (128, 96, 300), (256, 257, 17), (48, 205, 205)],
)
def test_sampler_stays_within_the_profile(
    tile: int, rows: int, columns: int, guidance: float, multiple: int
) -> None:
    profile, seen = Profile.of(tile, multiple), []

    class Recording:
        device, name, multiple = CPU, "recording", profile.smallest[1]

        def __call__(self, state: torch.Tensor, prior: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            seen.append(profile.holds(*state.shape[2:]))
            return prior[:, :SLICES]

    operator = np.full((2, 8), 1 / 8)
    conditions = SliceConditions.of(operator, np.array([2.0, 6.0]), 8.0)
    settings = SamplerSettings(guidance=guidance, tile=tile)
    prior = torch.zeros(8, rows, columns)
    shown = NetworkInputs(prior, prior, torch.zeros(2, rows, columns), torch.tensor(0.1))
    VolumeDenoiser(Recording(), conditions, settings)(prior, shown, 1.0)
    assert seen
    assert all(seen)


# ---- the check against torch


def test_right_runtime_passes_the_check_and_a_wrong_one_does_not() -> None:
    model = small_denoiser()
    right = TorchRuntime(SlabUNet(**model.settings), CPU, torch.float32)
    right._model.load_state_dict(model.state_dict())
    assert parity_error(right, model, 2, 16).correction < 1e-5
    check_parity(right, model, *SMALL.usual)
    with torch.no_grad():
        right._model.head.weight[0] *= 1.1
    assert parity_error(right, model, 2, 16).correction > PARITY_LIMIT
    with pytest.raises(EngineError, match="differs from torch by"):
        check_parity(right, model, *SMALL.usual)
    with torch.no_grad():
        right._model.head.bias[0] = torch.nan
    with pytest.raises(EngineError, match="differs from torch by nan"):
        check_parity(right, model, *SMALL.usual)


def test_check_leaves_out_the_prior_which_would_hide_errors() -> None:
    class Nothing:
        device, name, multiple = CPU, "nothing", 2

        def __call__(self, _: torch.Tensor, prior: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
            return middle_slices(prior)

    assert parity_error(Nothing(), small_denoiser(), 1, 16).correction == pytest.approx(1, abs=1e-4)
    silent = SlabUNet(**small_denoiser().settings)
    torch.nn.init.zeros_(silent.head.bias)
    assert parity_error(Nothing(), silent, 1, 16).correction == 0


# ---- the choice


class _Stub:
    """Stands for a runtime on a device that is not here."""

    multiple = 8

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return switches: is TensorRT installed, what happens on opening it, and the GPU's generation."""
    state = SimpleNamespace(installed=True, failure=None, capability=(8, 6))

    def tensorrt(_: object, device: torch.device, *__: object, **___: object) -> SimpleNamespace:
        if state.failure is not None:
            raise state.failure
        return SimpleNamespace(runtime=_Stub("tensorrt", device))

    module = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1")
    monkeypatch.setattr(choose, "find_tensorrt", lambda: module if state.installed else None)
    monkeypatch.setattr(choose, "open_tensorrt", tensorrt)
    monkeypatch.setattr(choose, "TorchRuntime", lambda _, device, **__: _Stub("torch", device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: state.capability)
    return state


@pytest.mark.parametrize(
    ("wanted", "device", "installed", "name", "reason"),
    [
        pytest.param("auto", CUDA, True, "tensorrt", "; tensorrt_rtx 1.7.1 found", id="all there"),
        pytest.param("auto", CUDA, False, "torch", "; torch, no TensorRT is installed", id="no package"),
        pytest.param("torch", CUDA, True, "torch", "", id="torch as configured"),
        pytest.param(
            "tensorrt", CUDA, True, "tensorrt", "; tensorrt_rtx 1.7.1 as configured", id="as configured"
        ),
    ],
)
def test_choice(
    wanted: Any, device: torch.device, installed: bool, name: str, reason: str, machine: SimpleNamespace
) -> None:
    machine.installed = installed
    choice = open_runtime(small_denoiser(), device, EngineConfig(runtime=wanted))
    assert (choice.runtime.name, choice.runtime.device, choice.why) == (name, device, reason)
    assert choice.fallback == ""


@pytest.mark.parametrize(
    ("device", "capability", "extra"),
    [
        pytest.param(CPU, None, "tensorrt-rtx", id="no GPU"),
        pytest.param(CUDA, (8, 9), "tensorrt-rtx", id="Ada"),
        pytest.param(CUDA, (12, 0), "tensorrt-rtx", id="RTX Blackwell"),
        pytest.param(CUDA, (9, 0), "tensorrt", id="Hopper"),
        pytest.param(CUDA, (10, 0), "tensorrt", id="Blackwell"),
    ],
)
def test_tensorrt_that_is_not_installed_is_named_with_its_install_line(
    device: torch.device, capability: Any, extra: str, machine: SimpleNamespace
) -> None:
    machine.installed, machine.capability = False, capability
    with pytest.raises(DependencyError) as caught:
        open_runtime(small_denoiser(), device, EngineConfig(runtime="tensorrt"))
    assert f'pip install "microdiffusion-daemon[{extra}]"' in str(caught.value)
    assert caught.value.exit_code == 2


def test_tensorrt_on_a_cpu_is_refused(machine: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="the device is cpu"):
        open_runtime(small_denoiser(), CPU, EngineConfig(runtime="tensorrt"))


@pytest.mark.parametrize("wanted", ["auto", "tensorrt"])
@pytest.mark.parametrize("kind", [EngineError, RuntimeError, TypeError])
def test_failing_tensorrt_gives_way_to_torch_with_one_warning(
    wanted: Any, kind: type[Exception], machine: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    machine.failure = kind("off by 3e-1")
    with caplog.at_level(logging.WARNING):
        choice = open_runtime(small_denoiser(), CUDA, EngineConfig(runtime=wanted))
    assert choice.runtime.name == "torch"
    assert choice.why == "; torch, TensorRT failed: off by 3e-1"
    assert choice.fallback == "TensorRT is not used, torch goes on in its place: off by 3e-1"
    assert [record.getMessage() for record in caplog.records] == [choice.fallback]


def test_missing_exporter_is_an_error_only_where_tensorrt_is_asked_for(machine: SimpleNamespace) -> None:
    machine.failure = DependencyError("pip install onnx onnxscript")
    assert open_runtime(small_denoiser(), CUDA, EngineConfig()).runtime.name == "torch"
    with pytest.raises(DependencyError, match="pip install onnx onnxscript"):
        open_runtime(small_denoiser(), CUDA, EngineConfig(runtime="tensorrt"))


def test_engine_on_a_cpu_says_nothing_of_tensorrt(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_denoiser(small_denoiser(), path, {})
    opened = open_engine(EngineConfig(device="cpu", weights=path, runtime="torch"))
    assert (opened.reason, opened.name.split()[0]) == ("as configured", "torch")


def test_folder_called_tensorrt_is_not_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tensorrt_build.MODULES:
        (tmp_path / name).mkdir()
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "tensorrt" / "__init__.py").write_text("raise OSError('libnvinfer.so is not there')")
    (tmp_path / "tensorrt_rtx_bindings" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_tensorrt() is None
    for name in tensorrt_build.MODULES:
        sys.modules.pop(name, None)


def test_modules_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = SimpleNamespace(Builder=1, OnnxParser=1)
    for name in tensorrt_build.MODULES:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**vars(usable), name=name))
    found = []
    for name in tensorrt_build.MODULES:
        found.append(find_tensorrt().name)  # type: ignore[union-attr]
        monkeypatch.setitem(sys.modules, name, None)
    assert found == ["tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"]
    assert find_tensorrt() is None


# ---- the runtime round a stand-in for TensorRT that computes with torch, on the processor's memory


class _Context:
    """Reads and writes what the addresses point to, as an execution context does."""

    def __init__(self, module: _TensorRT) -> None:
        self.module = module
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.settings = 0
        self.streams: list[int] = []

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.module.scratch
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.settings += 1
        self.shapes[name] = shape
        return shape[0] <= SMALL.largest[0]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.settings += 1
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)

        def memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
            raw = (ctypes.c_uint16 * int(np.prod(shape))).from_address(self.addresses[name])
            return np.frombuffer(raw, np.float16).reshape(shape)

        inputs = [torch.from_numpy(memory(name, self.shapes[name]).copy()).float() for name in INPUTS]
        batch, _, rows, columns = inputs[0].shape
        result = self.module.gain * small_denoiser().correction(*inputs)
        memory(OUTPUT, (batch, SLICES, rows, columns))[:] = result.numpy()
        return not self.module.fails


class _TensorRT:
    """As much of the module as running an engine takes."""

    __name__, __version__ = "stand-in", "1"

    class ILogger:
        VERBOSE, ERROR, INTERNAL_ERROR = range(3)

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="shared")
    scratch = 1000

    def __init__(self, gain: float = 1.0) -> None:
        self.gain, self.fails = gain, False
        self.contexts: list[_Context] = []

    def context(self, strategy: str) -> _Context:
        assert strategy == "shared"
        self.contexts.append(_Context(self))
        return self.contexts[-1]

    def Runtime(self, _: object) -> SimpleNamespace:
        opened = SimpleNamespace(create_execution_context=self.context, device_memory_size_v2=self.scratch)
        return SimpleNamespace(deserialize_cuda_engine=lambda blob: opened if blob == b"engine" else None)


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(number: int) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda _: None, cuda_stream=number)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream(1))
    default = stream(0)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(tensorrt_runtime, "gpu_name", lambda _: "none")
    monkeypatch.setattr(tensorrt_runtime, "export_onnx", lambda *_: b"graph")
    monkeypatch.setattr(tensorrt_runtime, "_exporter", lambda: "none")
    monkeypatch.setattr(tensorrt_runtime, "build_engine", lambda *_, **__: b"engine")


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1, 2, 2), id="smallest"),
        pytest.param((64, 16, 34), id="a whole pass"),
        pytest.param((70, 16, 34), id="more than a pass"),
    ],
)
def test_runtime_hands_over_shapes_and_memory(size: tuple[int, int, int], cache: EngineCache) -> None:
    runtime = open_tensorrt(small_denoiser(), CPU, SMALL, _TensorRT(), cache).runtime
    inputs = some_inputs(*size)
    with torch.inference_mode():
        wanted = small_denoiser().correction(*inputs)
    # Other orders of memory have to arrive in the right one.
    fed = [tensor.to(memory_format=torch.channels_last) for tensor in inputs[:-1]]
    clean = runtime(*fed, inputs[-1])
    assert clean.dtype == torch.float32
    assert relative_error(clean - middle_slices(inputs[1]), wanted) < 2e-3


@pytest.mark.usefixtures("no_gpu_needed")
def test_prior_is_added_in_single_precision(cache: EngineCache) -> None:
    trt = _TensorRT()
    runtime = open_tensorrt(small_denoiser(), CPU, SMALL, trt, cache).runtime
    inputs = some_inputs(1, 8, 8)
    trt.gain = 0.0
    assert torch.equal(runtime(*inputs), middle_slices(inputs[1]))


@pytest.mark.usefixtures("no_gpu_needed")
def test_miscompiled_engine_is_not_opened_and_not_kept(cache: EngineCache) -> None:
    with pytest.raises(EngineError, match=r"stand-in 1 cpu float16 differs from torch by 5\..e-02"):
        open_tensorrt(small_denoiser(), CPU, SMALL, _TensorRT(gain=1.05), cache)
    assert not [path for path in cache.folder.glob("*.engine") if b'"gpu"' in path.read_bytes()[:2000]]


@pytest.mark.usefixtures("no_gpu_needed")
def test_what_the_engine_cannot_run_is_an_error(cache: EngineCache) -> None:
    trt = _TensorRT()
    runtime = open_tensorrt(small_denoiser(), CPU, SMALL, trt, cache).runtime
    with pytest.raises(EngineError, match="built for tiles of 2 to 80 pixels, got 82 x 16"):
        runtime(*some_inputs(1, 82, 16))
    trt.fails = True
    with pytest.raises(EngineError, match="failed to run"):
        runtime(*some_inputs(1, 16, 16))


@pytest.mark.usefixtures("no_gpu_needed")
def test_each_size_is_set_once_with_buffers_of_its_own(cache: EngineCache) -> None:
    trt = _TensorRT()
    runtime = open_tensorrt(small_denoiser(), CPU, SMALL, trt, cache).runtime
    known = len(trt.contexts)
    one, other = some_inputs(3, 16, 16), some_inputs(2, 8, 16)
    first = runtime(*one).clone()
    runtime(*other)
    runtime(*(2 * tensor for tensor in one))
    assert torch.equal(runtime(*one), first)
    mine = trt.contexts[known:]
    assert [context.settings for context in mine] == [2 * len(INPUTS) + 1] * 2
    assert [len(context.streams) for context in mine] == [3, 1]
    addresses = [address for context in mine for address in context.addresses.values()]
    assert len(set(addresses)) == len(addresses)
    assert len({context.scratch for context in mine}) == 1


@pytest.mark.usefixtures("no_gpu_needed")
def test_runs_on_the_current_stream_unless_that_is_the_default_one(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = _TensorRT()
    runtime = open_tensorrt(small_denoiser(), CPU, SMALL, trt, cache).runtime
    runtime(*some_inputs(2, 8, 8))
    recording = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: recording)
    runtime(*some_inputs(2, 8, 8))
    assert trt.contexts[-1].streams == [1, 7]


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "for RTX"])
def test_contexts_of_rtx_keep_the_kernels_of_their_shape_and_share_them(rtx: bool) -> None:
    kernels, done = object(), {}
    settings = SimpleNamespace(
        set_execution_context_allocation_strategy=lambda strategy: done.update(memory=strategy),
        create_runtime_cache=lambda: kernels,
        set_runtime_cache=lambda cache: done.update(cache=cache),
    )
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"))
    if rtx:
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="at once")
    engine = SimpleNamespace(create_runtime_config=lambda: settings)
    if not rtx:
        assert context_settings(trt, engine) == ("ours", None)
        return
    assert context_settings(trt, engine) == (settings, kernels)
    assert settings.dynamic_shapes_kernel_specialization_strategy == "at once"
    assert done == {"memory": "ours", "cache": kernels}


def test_names_that_rtx_is_asked_for_exist(trt: Any) -> None:
    if not trt.__name__.startswith("tensorrt_rtx"):
        pytest.skip("another TensorRT")
    assert trt.BuilderFlag.REQUIRE_USER_ALLOCATION is not None
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER is not None
    assert {"create_runtime_cache", "set_runtime_cache"} <= set(dir(trt.IRuntimeConfig))
    assert trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy.fset is not None


# ---- on a GPU


@pytest.fixture
def gpu_runtime(trt: Any, cache: EngineCache) -> TensorRTRuntime:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return open_tensorrt(small_denoiser(), CUDA, SMALL, trt, cache).runtime


@pytest.mark.gpu
@pytest.mark.parametrize(
    "size", [pytest.param((1, 2, 2), id="smallest"), pytest.param((70, 80, 34), id="more than a pass")]
)
def test_gpu_computes_what_torch_computes(gpu_runtime: TensorRTRuntime, size: tuple[int, int, int]) -> None:
    inputs = some_inputs(*size)
    with torch.inference_mode():
        wanted = small_denoiser().correction(*inputs)
    got = gpu_runtime(*(tensor.to(CUDA) for tensor in inputs)).cpu() - middle_slices(inputs[1])
    assert relative_error(got, wanted) < PARITY_LIMIT


@pytest.mark.gpu
def test_engine_is_built_once(
    gpu_runtime: TensorRTRuntime, trt: Any, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [tensor.to(CUDA) for tensor in some_inputs(3, 16, 16)]
    wanted = gpu_runtime(*inputs)
    monkeypatch.setattr(tensorrt_runtime, "build_engine", None)
    again = open_tensorrt(small_denoiser(), CUDA, SMALL, trt, cache).runtime
    assert relative_error(again(*inputs), wanted) < 1e-3


@pytest.mark.gpu
def test_tile_beyond_the_profile_is_refused(gpu_runtime: TensorRTRuntime) -> None:
    with pytest.raises(EngineError, match="was built for tiles of 2 to 80 pixels"):
        gpu_runtime(*(tensor.to(CUDA) for tensor in some_inputs(1, 82, 16)))
