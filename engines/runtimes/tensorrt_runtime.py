"""The denoiser on TensorRT, or on TensorRT for RTX, which has nearly the same interface: opened and run.

Opening takes the kept engine, else builds one here and now. A fresh engine is compared with torch at the
sizes that the sampler asks for before it is kept or used. A kept one has passed that; it is compared once
more on one small window, which takes some milliseconds, and one that fails is built again. The exported graph
is kept as well: exporting takes longer than all the rest.

Each size of a batch has an execution context and buffers of its own, made when it first occurs: from then on
a call sets no shape and no address, takes no memory and waits for nothing, and a CUDA graph can hold it
(TensorRT forbids to change a context that is in one). Scratch memory is shared, since one call follows the
other. A run has few sizes: whole batches and last ones, of a few shapes of tiles.

Runs on the engine's thread, in order on the current stream.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from microdiffusion.engines.diffusion import SLICES, Denoiser, middle_slices
from microdiffusion.engines.runtimes import onnx_export
from microdiffusion.engines.runtimes.engine_cache import EngineCache, network_key
from microdiffusion.engines.runtimes.onnx_export import OUTPUT, export_onnx, input_shapes
from microdiffusion.engines.runtimes.parity import check_parity
from microdiffusion.engines.runtimes.tensorrt_build import (
    Profile,
    Progress,
    build_engine,
    cache_key,
    driver_version,
    gpu_name,
    trt_logger,
)
from microdiffusion.errors import EngineError

_KEPT_EDGE = 64  # pixels of the window that a kept engine is compared on


@dataclass(slots=True, eq=False)
class _Sized:
    """Runs batches of one size: a context that knows the addresses of these buffers."""

    context: Any
    inputs: tuple[Tensor, ...]
    output: Tensor


class TensorRTRuntime:
    """The denoiser on a CUDA device through TensorRT, in half precision.

    Larger batches than `profile` says the `engine` was built for are cut, larger tiles are refused.

    Raises
    ------
    EngineError
        This TensorRT or GPU does not accept the engine.
    """

    capturable = True

    def __init__(
        self, device: torch.device, multiple: int, profile: Profile, trt: Any, engine: bytes
    ) -> None:
        self.device = device
        self.multiple = multiple
        self.name = f"{trt.__name__} {trt.__version__} {device} float16"
        self.profile = profile
        self._log = trt_logger(trt)
        self._sizes: dict[tuple[int, int, int], _Sized] = {}
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise EngineError(f"{self.name} does not accept the engine. {self._log.last}")
            self._how, self._kernels = context_settings(trt, self._engine)
            if self._engine.create_execution_context(self._how) is None:
                raise EngineError(f"{self.name} does not accept the engine. {self._log.last}")
            scratch = max(1, int(self._engine.device_memory_size_v2))
            self._scratch = torch.empty(scratch, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
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
        # In parts of like size: one with few windows would cost as much, and a context of its own.
        count = -(-len(state) // self.profile.largest[0])
        size = -(-len(state) // count)
        inputs = (state, prior, deviation, image, conditions)
        parts = zip(*(tensor.split(size) for tensor in inputs), strict=True)
        # Each correction leaves its buffer before the next part of the same size is queued.
        corrections = [self._correction(*part).float() for part in parts]
        correction = torch.cat(corrections) if len(corrections) > 1 else corrections[0]
        # The prior is added back in float32: half precision then only rounds the correction.
        return correction + middle_slices(prior)

    def _correction(self, *inputs: Tensor) -> Tensor:
        """Return the correction (B, SLICES, Y, X) float16: a buffer, good until the next call of its size."""
        batch, _, rows, columns = inputs[0].shape
        sized = self._sizes.get((batch, rows, columns))
        if sized is None:
            sized = self._sizes[batch, rows, columns] = self._sized(batch, rows, columns)
        for buffer, tensor in zip(sized.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        current = torch.cuda.current_stream(self.device)
        # On torch's default stream TensorRT would synchronise the device with every call.
        aside = current == torch.cuda.default_stream(self.device)
        stream = self._stream if aside else current
        if aside:
            stream.wait_stream(current)
        with torch.cuda.device(self.device):
            done = sized.context.execute_async_v3(stream.cuda_stream)
        if aside:
            current.wait_stream(stream)
        if not done:
            raise EngineError(f"TensorRT failed to run the denoiser. {self._log.last}")
        return sized.output

    def _sized(self, batch: int, rows: int, columns: int) -> _Sized:
        def buffer(shape: tuple[int, ...]) -> Tensor:
            # Plain row-major memory, as TensorRT reads and writes it.
            return torch.zeros(shape, dtype=torch.float16, device=self.device)

        inputs = {name: buffer(shape) for name, shape in input_shapes(batch, rows, columns).items()}
        output = buffer((batch, SLICES, rows, columns))
        with torch.cuda.device(self.device):
            context = self._engine.create_execution_context(self._how)
        if context is None:
            raise EngineError(f"TensorRT has no memory for another size of batches. {self._log.last}")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"TensorRT refused {name} {tuple(tensor.shape)}. {self._log.last}")
            context.set_tensor_address(name, tensor.data_ptr())
        context.set_tensor_address(OUTPUT, output.data_ptr())
        return _Sized(context, tuple(inputs.values()), output)


def context_settings(trt: Any, engine: Any) -> tuple[Any, Any]:
    """Return how contexts of an engine are made, and what has to live as long as they do.

    TensorRT for RTX compiles kernels on the GPU that runs them. Left alone it begins with general ones and
    compiles the ones for a shape meanwhile; a CUDA graph would keep the general ones for good. So they are
    compiled at a shape's first call, and the contexts of all sizes share what was compiled.
    """
    memory = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is None:
        return memory, None
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(memory)
    settings.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    kernels = settings.create_runtime_cache()
    settings.set_runtime_cache(kernels)
    return settings, kernels


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """A runtime that serves, where its engine is kept, and where it came from.

    `state`: "found", "built" as there was none, or "healed": built as the kept one was refused.
    """

    runtime: TensorRTRuntime
    state: Literal["found", "built", "healed"]
    path: Path


class NotBuiltError(EngineError):
    """There is no kept engine, and none was to be built."""


def open_tensorrt(
    model: Denoiser,
    device: torch.device,
    profile: Profile,
    trt: Any,
    cache: EngineCache | None = None,
    *,
    build: bool = True,
    progress: Progress = lambda share: None,
) -> OpenedEngine:
    """Return the network on a CUDA device through TensorRT; the model is left as it is.

    Parameters
    ----------
    profile : Profile
        The sizes to build for.
    trt : module
        See `find_tensorrt`.
    build : bool
        Whether to build where no engine is kept that can be used; takes seconds to minutes.
    progress : callable
        Told the share of a build that is done; 1 at once where none is needed.

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed.
    NotBuiltError
        An engine has to be built first.
    EngineError
        The engine cannot be built, cannot run on this GPU, or computes something else than torch.
    """
    cache = cache or EngineCache()
    not_built = NotBuiltError(f"No engine of {trt.__name__} {trt.__version__} is built yet.")
    graph_key = {**network_key(model, onnx_export), "precision": "float16", "exporter": _exporter()}
    graph = cache.load(graph_key)
    if graph is None:
        if not build:  # exporting takes seconds, and without a graph there is no engine
            raise not_built
        progress(0.0)
        graph = export_onnx(model, torch.float16)
        cache.store(graph_key, graph)
    key = cache_key(trt, graph, profile, gpu_name(device), driver_version())
    path = cache.path(key)
    refused = path.exists()
    kept = cache.load(key)
    if kept is not None:
        progress(1.0)
        with contextlib.suppress(EngineError):
            runtime = TensorRTRuntime(device, model.multiple, profile, trt, kept)
            check_parity(runtime, model, 1, min(_KEPT_EDGE, profile.usual[1]))
            return OpenedEngine(runtime, "found", path)
    if not build:
        raise not_built
    progress(0.0)
    # TensorRT builds for the current device, which need not be the one that serves.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        engine = build_engine(trt, graph, profile, progress=progress)
    runtime = TensorRTRuntime(device, model.multiple, profile, trt, engine)
    check_parity(runtime, model, *profile.usual)
    cache.store(key, engine)
    return OpenedEngine(runtime, "healed" if refused else "built", path)


def _exporter() -> str:
    """Return what exports, with versions, without importing it: that takes longer than reading a graph."""
    try:
        return ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnx", "onnxscript")
        )
    except importlib.metadata.PackageNotFoundError:
        onnx_export.require_onnx()  # says what is missing
        raise
