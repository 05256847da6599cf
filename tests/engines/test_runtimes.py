"""Every runtime against torch in float32: on what the network is given, and in the volume that is served.

The network is the one that ships. TensorRT itself needs a GPU; its half-precision graph runs here on ONNX
Runtime, and TensorRT for RTX parses and builds it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.onnx_support import relative_error, small_denoiser
from support.sample_data import CAMERA, header, specimen, sweep_of

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import Denoiser, load_denoiser, middle_slices, shipped_weights
from microdiffusion.engines.pipeline import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.runtimes import select as choose
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT, export_onnx
from microdiffusion.engines.runtimes.openvino_runtime import OpenVINORuntime, find_openvino
from microdiffusion.engines.runtimes.parity import PARITY_LIMIT, parity_error
from microdiffusion.engines.runtimes.select import open_runtime
from microdiffusion.engines.runtimes.tensorrt_build import Profile, build_engine, find_tensorrt, trt_logger
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import ConfigError, DependencyError, EngineError

CPU = torch.device("cpu")
OPENVINO = find_openvino()
SHAPE = (24, 64, 64)

needs_openvino = pytest.mark.skipif(
    OPENVINO is None, reason="openvino is not installed: pip install openvino"
)


@functools.cache
def shipped() -> Denoiser:
    if not shipped_weights().is_file():
        pytest.skip("no weights are shipped with this checkout")
    return load_denoiser(shipped_weights()).eval()


@functools.cache
def graph_of(dtype: torch.dtype) -> bytes:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")
    return export_onnx(shipped(), dtype)


class OnnxRuntime:
    """The exported graph on ONNX Runtime, as a runtime."""

    device, capturable = CPU, False

    def __init__(self, dtype: torch.dtype) -> None:
        onnxruntime = pytest.importorskip(
            "onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime"
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.name, self.multiple = f"onnxruntime {dtype}", shipped().multiple
        self._dtype = dtype
        self._session = onnxruntime.InferenceSession(
            graph_of(dtype), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        fed = {name: value.to(self._dtype).numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        (correction,) = self._session.run([OUTPUT], fed)
        return torch.from_numpy(correction).float() + middle_slices(inputs[1])


class Recording(TorchRuntime):
    """Torch in float32, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(copy.deepcopy(shipped()), CPU, torch.float32)
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(tensor.clone() for tensor in inputs))
        return super().__call__(*inputs)


def torch_in(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: TorchRuntime(copy.deepcopy(shipped()), CPU, dtype)


def openvino_in(precision: str) -> Callable[[], Any]:
    return lambda: OpenVINORuntime(shipped(), CPU, OPENVINO, precision)


RUNTIMES = [
    pytest.param(torch_in(torch.bfloat16), 2e-2, id="torch bfloat16"),
    pytest.param(openvino_in("f32"), 1e-5, id="openvino float32", marks=needs_openvino),
    pytest.param(openvino_in("bf16"), 2e-2, id="openvino bfloat16", marks=needs_openvino),
    pytest.param(lambda: OnnxRuntime(torch.float32), 1e-5, id="graph float32"),
    pytest.param(lambda: OnnxRuntime(torch.float16), PARITY_LIMIT, id="graph float16"),
]


def volume_of(runtime: Any) -> np.ndarray:
    """Return the second volume of a session, of the network's answer alone."""
    config = EngineConfig(
        device="cpu",
        fallback=False,
        memory="sweep",
        inr=InrConfig(bandwidth_z=0.12, bandwidth_xy=0.2, cold_steps=10, warm_steps=5),
    )
    reconstructor = Reconstructor(header(SHAPE), config, Engine(CPU, runtime.name, "", runtime))
    for number in range(2):
        result = reconstructor.reconstruct(sweep_of(specimen(shape=SHAPE, drift=0.3 * number), number))
    assert result.served == "mdd"
    assert result.runtime == runtime.name
    return result.volume


@functools.cache
def recorded() -> tuple[list[tuple[torch.Tensor, ...]], np.ndarray]:
    """Return what the network is given in a reconstruction, and the volume in float32."""
    runtime = Recording()
    volume = volume_of(runtime)
    return runtime.seen, volume


def psnr(volume: np.ndarray) -> float:
    truth = specimen(shape=SHAPE, drift=0.3)
    error = volume - CAMERA.offset - truth
    return float(20 * np.log10(truth.max() / np.sqrt(np.mean(error**2))))


@pytest.mark.parametrize(("make", "limit"), RUNTIMES)
def test_the_correction_of_a_sweep_is_that_of_torch(make: Callable[[], Any], limit: float) -> None:
    runtime = make()
    inputs = recorded()[0][-1]
    with torch.inference_mode():
        wanted = shipped().correction(*inputs)
    clean = runtime(*inputs)
    assert relative_error(clean - middle_slices(inputs[1]), wanted) < limit
    assert relative_error(clean, middle_slices(inputs[1]) + wanted) < PARITY_LIMIT


@pytest.mark.parametrize(("make", "limit"), RUNTIMES)
def test_random_inputs_pass_the_check_before_serving(make: Callable[[], Any], limit: float) -> None:
    found = parity_error(make(), shipped(), 2, 64)
    assert found.correction < limit
    assert found.slices < PARITY_LIMIT


@pytest.mark.parametrize(("make", "limit"), RUNTIMES)
def test_the_volume_is_as_good_as_that_of_torch(make: Callable[[], Any], limit: float) -> None:
    wanted = recorded()[1]
    assert psnr(wanted) > 20  # a volume that is bad anyway would hide a change
    volume = volume_of(make())
    assert abs(psnr(volume) - psnr(wanted)) < 0.05
    # Not for the same prior: the network has a say in it.
    assert np.abs(volume - wanted).max() < 0.05 * wanted.max()


# ---- the graph that ships, in TensorRT for RTX


@pytest.fixture(scope="module")
def trt() -> Any:
    module = find_tensorrt()
    if module is None:
        pytest.skip('no TensorRT is installed: pip install "microdiffusion-daemon[tensorrt-rtx]"')
    if module.__name__ == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("TensorRT builds with a GPU only; TensorRT for RTX builds without")
    return module


def test_every_convolution_is_parsed_in_half_precision_and_the_engine_is_built(trt: Any) -> None:
    graph = graph_of(torch.float16)
    log = trt_logger(trt)
    parsed = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(parsed, log).parse(graph)
    layers = [parsed.get_layer(number) for number in range(parsed.num_layers)]
    found = [
        layer for layer in layers if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    ]
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    assert len(found) == sum(isinstance(module, kinds) for module in shipped().modules())
    assert {layer.get_output(0).dtype for layer in found} == {trt.DataType.HALF}
    # No layer is left in single precision, where it would cost conversions.
    assert trt.DataType.FLOAT not in {
        layer.get_output(number).dtype for layer in layers for number in range(layer.num_outputs)
    }
    shares: list[float] = []
    profile = Profile.of(256, shipped().multiple)
    assert len(build_engine(trt, graph, profile, progress=shares.append)) > 1_000_000
    assert len(shares) > 100
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5 < shares[-1] <= 1


def test_who_raises_in_the_progress_ends_the_build(trt: Any) -> None:
    def give_up(share: float) -> None:
        raise BrokenPipeError("nobody waits any more")

    with pytest.raises(BrokenPipeError, match="nobody waits"):
        build_engine(trt, graph_of(torch.float16), Profile.of(64, 8), progress=give_up)


# ---- the choice on a CPU


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_openvino", lambda: None)


@needs_openvino
@pytest.mark.parametrize("wanted", ["auto", "openvino"])
def test_a_cpu_gets_openvino_where_it_is_installed(wanted: Any) -> None:
    choice = open_runtime(copy.deepcopy(small_denoiser()), CPU, EngineConfig(runtime=wanted))
    assert choice.runtime.name.startswith("openvino ")
    assert choice.why.startswith("; openvino ")
    assert choice.why.endswith("found" if wanted == "auto" else "as configured")
    assert choice.fallback == ""


@pytest.mark.usefixtures("without_openvino")
def test_a_cpu_without_openvino_gets_torch_and_says_so() -> None:
    choice = open_runtime(copy.deepcopy(small_denoiser()), CPU, EngineConfig())
    assert choice.runtime.name.startswith("torch cpu")
    assert (choice.why, choice.fallback) == ("; torch, no OpenVINO is installed", "")
    with pytest.raises(DependencyError, match="pip install openvino"):
        open_runtime(copy.deepcopy(small_denoiser()), CPU, EngineConfig(runtime="openvino"))


def test_openvino_on_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="the device is cuda"):
        open_runtime(small_denoiser(), torch.device("cuda"), EngineConfig(runtime="openvino"))


class _Wrong:
    """A runtime that computes something else, `share` of it."""

    device, multiple, capturable = CPU, 2, False

    def __init__(self, share: float, precision: str) -> None:
        self.name, self._share = f"openvino 1 cpu {precision}", share

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        prior = middle_slices(inputs[1])
        with torch.inference_mode():
            return prior + (1 + self._share) * small_denoiser().correction(*inputs)


@pytest.mark.parametrize(
    ("share", "precision", "serves"),
    [
        pytest.param(0.005, "float32", "openvino", id="rounding"),
        pytest.param(0.03, "float32", "torch", id="float32 has no such rounding"),
        pytest.param(0.2, "bfloat16", "torch", id="a wrong graph in bfloat16"),
        pytest.param(float("nan"), "bfloat16", "torch", id="NaN"),
    ],
)
def test_openvino_that_computes_wrongly_gives_way_to_torch_with_one_warning(
    share: float,
    precision: str,
    serves: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        choose, "find_openvino", lambda: SimpleNamespace(__name__="openvino", __version__="1")
    )
    monkeypatch.setattr(choose, "OpenVINORuntime", lambda *_, **__: _Wrong(share, precision))
    choice = open_runtime(copy.deepcopy(small_denoiser()), CPU, EngineConfig())
    assert choice.runtime.name.split()[0] == serves
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ([choice.fallback] if serves == "torch" else [])
    if serves == "torch":
        assert choice.fallback.startswith("OpenVINO is not used, torch goes on in its place: openvino 1")
        assert "; torch, OpenVINO failed: " in choice.why


def test_the_engine_hands_on_what_the_choice_says(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineError("no such operation")

    monkeypatch.setattr(
        choose, "find_openvino", lambda: SimpleNamespace(__name__="openvino", __version__="1")
    )
    monkeypatch.setattr(choose, "OpenVINORuntime", refuse)
    engine = open_engine(EngineConfig(device="cpu", weights=weights))
    assert engine.fallback == "OpenVINO is not used, torch goes on in its place: no such operation"
    assert engine.reason == "as configured; torch, OpenVINO failed: no such operation"
    assert engine.name.startswith("torch cpu")
