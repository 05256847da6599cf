"""The denoiser on TensorRT, or on TensorRT for RTX, which has nearly the same interface.

What runs is the half-precision ONNX graph of `onnx_export`, strongly typed: the precision of every layer
is the graph's, and the parsed convolutions are checked for it. Building (`build_engine`) needs a GPU for
TensorRT and none for TensorRT for RTX. A fresh engine is compared with torch before it is kept or
used; cached engines have passed that check. TensorRT itself is imported only when it is wanted.

Runs on the engine's thread. The engine works on a stream of its own that waits for torch's and is waited
for, so callers need not know of it.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import importlib
import logging
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microdiffusion.engines.denoiser import CONDITIONS, SLICES, WINDOW, SlabDenoiser
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT, export_onnx
from microdiffusion.engines.sampler import BATCH_PIXELS, HALO
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.runtimes.runtime import Runtime

logger = logging.getLogger("microdiffusion.engines")

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
# Half precision costs some 1e-3; a miscompiled graph is off by far more.
PARITY_LIMIT = 1e-2
_PARITY_EDGE = 512  # pixels; the comparison runs on the CPU
# Windows times pixels of the largest pass: bounds the scratch memory (about 0.3 GB at 32 channels).
_PROFILE_PIXELS = 4 * BATCH_PIXELS
_PROFILE_BATCH = 64


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes that an engine is built for, each as (windows, edge of the tile in pixels)."""

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]

    @classmethod
    def of(cls, tile: int, multiple: int) -> Profile:
        """Return the sizes that the sampler asks for with tiles of `tile` pixels."""
        usual = -(-tile // multiple) * multiple
        largest = -(-(usual + 2 * HALO) // multiple) * multiple
        batch = max(1, min(_PROFILE_BATCH, _PROFILE_PIXELS // largest**2))
        return cls((1, multiple), (max(1, min(batch, BATCH_PIXELS // usual**2)), usual), (batch, largest))

    def holds(self, rows: int, columns: int) -> bool:
        """Whether a tile of this size can run."""
        return min(rows, columns) >= self.smallest[1] and max(rows, columns) <= self.largest[1]


def find_tensorrt() -> Any | None:
    """Return the first TensorRT module that can be imported and can build engines; None without one."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            # OSError: the bindings are there, one of their libraries is not.
            if not isinstance(error, ModuleNotFoundError):
                logger.info("%s cannot be imported: %s", name, error)
            continue
        # A folder of that name on the path imports too.
        if hasattr(module, "Builder") and hasattr(module, "OnnxParser"):
            return module
    return None


def build_engine(trt: Any, graph: bytes, profile: Profile, *, dtype: str = "HALF") -> bytes:
    """Return the serialised engine of an ONNX graph from `onnx_export`.

    `dtype` is the type (a name of TensorRT's DataType) that the convolutions have to have.

    Raises
    ------
    EngineError
        TensorRT refuses the graph, parsed it in another precision, or cannot build it.
    """
    log = _log(trt)
    builder = trt.Builder(log)
    # The only mode since TensorRT 11; before, it has to be asked for.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} {trt.__version__} refused the denoiser's ONNX graph: {reasons}")
    check_precision(trt, network, dtype)
    log.last = ""  # without a GPU even a good start complains
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name in INPUTS:
        sizes = (_input_shape(name, batch, edge, edge) for batch, edge in _sizes(profile))
        shapes.set_shape(name, *sizes)
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{trt.__name__} {trt.__version__} refused the sizes {profile}. {log.last}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} could not build the denoiser. {log.last}")
    return bytes(engine)


def check_precision(trt: Any, network: Any, dtype: str) -> None:
    """Check that all convolutions of a parsed network compute in `dtype`.

    Raises
    ------
    EngineError
        One does not, or there is none.
    """
    wanted, found = getattr(trt.DataType, dtype), 0
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            continue
        found += 1
        types = {layer.get_input(0).dtype, layer.get_output(0).dtype}
        if types != {wanted}:
            names = ", ".join(sorted(type_.name for type_ in types))
            raise EngineError(f"Expected convolutions in {dtype}, but {layer.name} was parsed as {names}.")
    if not found:
        raise EngineError("Expected convolutions in the denoiser's graph, but TensorRT parsed none.")


def cache_key(trt: Any, graph: bytes, profile: Profile, gpu: str, driver: str) -> dict[str, str]:
    """Return everything that an engine depends on."""
    return {
        "graph": hashlib.sha256(graph).hexdigest(),
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "machine": platform.node(),
        "gpu": gpu,
        "driver": driver,
        "shapes": str(_sizes(profile)),
    }


def parity_error(runtime: Runtime, model: SlabDenoiser, batch: int, edge: int) -> float:
    """Return how far a runtime's correction is from torch's in float32 on the CPU, relative (L2 norm)."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(batch, WINDOW, edge, edge, generator=generator)
    state = prior + 0.05 * torch.randn(prior.shape, generator=generator)
    conditions = 2 * torch.rand(batch, CONDITIONS, generator=generator) - 1
    inputs = (state, prior, prior.roll(1, dims=1), conditions)
    twin = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        wanted = twin.correction(*inputs)
        clean = runtime(*(tensor.to(runtime.device) for tensor in inputs)).cpu()
        got = clean - SlabDenoiser.middle_slices(prior)
        # A network whose head is zero corrects nothing.
        return float((got - wanted).norm() / wanted.norm().clamp_min(1e-6))


def check_parity(runtime: Runtime, model: SlabDenoiser, profile: Profile) -> None:
    """Check that a runtime computes what torch computes.

    Raises
    ------
    EngineError
        It does not.
    """
    batch, edge = profile.usual
    error = parity_error(runtime, model, batch, min(edge, _PARITY_EDGE))
    if not error < PARITY_LIMIT:  # NaN has to fail
        raise EngineError(
            f"{runtime.name} differs from torch by {error:.1e}, more than {PARITY_LIMIT:.0e}: "
            "its engine is not used."
        )
    logger.info("%s differs from torch by %.1e (relative)", runtime.name, error)


class TensorRTRuntime:
    """The denoiser on a CUDA device through TensorRT, in half precision.

    Parameters
    ----------
    model : SlabDenoiser
        Left as it is.
    device : torch.device
        A CUDA device.
    profile : Profile
        Larger batches are cut, larger tiles are refused.
    trt : module
        See `find_tensorrt`.
    cache : EngineCache, optional

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed.
    EngineError
        The engine cannot be built, cannot run on this GPU, or computes something else than torch.
    """

    def __init__(
        self,
        model: SlabDenoiser,
        device: torch.device,
        profile: Profile,
        trt: Any,
        cache: EngineCache | None = None,
    ) -> None:
        self.device = device
        self.multiple = model.shape.multiple
        self.name = f"{trt.__name__} {trt.__version__} {device} float16"
        self.profile = profile
        self._trt = trt
        self._log = _log(trt)
        cache = cache or EngineCache()
        graph = export_onnx(model, torch.float16)
        key = cache_key(trt, graph, profile, _gpu(device), driver_version())
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            cache.open(
                key,
                build=lambda: build_engine(trt, graph, profile),
                use=self._use,
                check=lambda: check_parity(self, model, profile),
            )

    @torch.inference_mode()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32.

        Raises
        ------
        EngineError
            The tile is larger than the engine was built for, or TensorRT failed.
        """
        rows, columns = state.shape[2:]
        if not self.profile.holds(rows, columns):
            raise EngineError(
                f"The engine was built for tiles of {self.profile.smallest[1]} to "
                f"{self.profile.largest[1]} pixels, got {rows} x {columns}: "
                "use the engine.tile it was opened with."
            )
        size = self.profile.largest[0]
        inputs = zip(*(t.half().split(size) for t in (state, prior, image, conditions)), strict=True)
        correction = torch.cat([self._correction(*part) for part in inputs])
        # The prior is added back in float32: half precision then only rounds the correction.
        return correction.float() + SlabDenoiser.middle_slices(prior)

    def _correction(self, *inputs: Tensor) -> Tensor:
        batch, _, rows, columns = inputs[0].shape
        output = torch.empty(batch, SLICES, rows, columns, dtype=torch.float16, device=self.device)
        # TensorRT reads plain row-major memory; the names stay bound until the work is queued and waited for.
        tensors = [tensor.contiguous() for tensor in inputs]
        for name, tensor in zip(INPUTS, tensors, strict=True):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"TensorRT refused {name} {tuple(tensor.shape)}. {self._log.last}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(OUTPUT, output.data_ptr())
        # On torch's default stream TensorRT would synchronise the device with every call.
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self.device):
            done = self._context.execute_async_v3(self._stream.cuda_stream)
        # Torch reuses freed memory in the order of its own stream, which from here on waits for the engine.
        current.wait_stream(self._stream)
        if not done:
            raise EngineError(f"TensorRT failed to run the denoiser. {self._log.last}")
        return output

    def _use(self, blob: bytes) -> bool:
        """Take an engine into use; False where this TensorRT or GPU refuses it."""
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        return self._context is not None


def driver_version() -> str:
    """Return the version of the NVIDIA driver; "unknown" where its management library is absent."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() != 0:
            return "unknown"
        failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return "unknown"
    return "unknown" if failed else text.value.decode()


def _gpu(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def _sizes(profile: Profile) -> tuple[tuple[int, int], ...]:
    return profile.smallest, profile.usual, profile.largest


def _input_shape(name: str, batch: int, rows: int, columns: int) -> tuple[int, ...]:
    return (batch, CONDITIONS) if name == "conditions" else (batch, WINDOW, rows, columns)


def _log(trt: Any) -> Any:
    """Return a TensorRT logger that writes to Python's, and keeps the last error for our own messages."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = message.strip()
            # Never louder: it knows of no dashboard, and what matters comes back as an exception.
            if severity != trt.ILogger.VERBOSE:
                logger.debug("%s: %s", trt.__name__, message)

    return Log()
