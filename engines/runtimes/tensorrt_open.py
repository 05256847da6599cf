"""A checked TensorRT runtime for a network: the kept engine, else one that is built here and now.

A fresh engine is compared with torch at the sizes that the sampler asks for before it is kept or used. A
kept one has passed that; it is compared once more on one small window, which takes some milliseconds, and
one that fails is built anew. The exported graph is kept as well: exporting takes longer than all the rest.

Runs on the engine's thread, or in a process that does nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microdiffusion.engines.diffusion import denoiser
from microdiffusion.engines.runtimes import onnx_export
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.onnx_export import export_onnx
from microdiffusion.engines.runtimes.parity import check_parity
from microdiffusion.engines.runtimes.tensorrt_build import (
    Profile,
    build_engine,
    cache_key,
    driver_version,
    gpu_name,
)
from microdiffusion.engines.runtimes.tensorrt_runtime import TensorRTRuntime
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.diffusion import SlabDenoiser
    from microdiffusion.engines.runtimes.engine_cache import State
    from microdiffusion.engines.runtimes.tensorrt_build import Progress

_KEPT_EDGE = 64  # pixels of the window that a kept engine is compared on


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """A runtime that serves, where its engine came from, and where it is kept."""

    runtime: TensorRTRuntime
    state: State
    path: Path


class NotBuiltError(EngineError):
    """There is no kept engine, and none was to be built."""


def open_tensorrt(
    model: SlabDenoiser,
    device: torch.device,
    profile: Profile,
    trt: Any,
    cache: EngineCache | None = None,
    *,
    build: bool = True,
    progress: Progress | None = None,
) -> OpenedEngine:
    """Return the network on a CUDA device through TensorRT; the model is left as it is.

    Parameters
    ----------
    profile : Profile
        The sizes to build for.
    trt : module
        See `find_tensorrt`.
    cache : EngineCache, optional
    build : bool
        Whether to build where no engine is kept that can be used; takes seconds to minutes.
    progress : callable, optional
        See `build_engine`.

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
    opened: list[TensorRTRuntime] = []
    fresh: list[bytes] = []

    def make() -> bytes:
        if not build:
            raise not_built
        # TensorRT builds for the current device, which need not be the one that serves.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            fresh.append(build_engine(trt, graph, profile, progress=progress))
        return fresh[0]

    def use(engine: bytes) -> bool:
        try:
            opened[:] = [TensorRTRuntime(device, model.shape.multiple, profile, trt, engine)]
            if not fresh:
                check_parity(opened[0], model, 1, min(_KEPT_EDGE, profile.usual[1]))
        except EngineError:
            return False
        return True

    not_built = NotBuiltError(f"No engine of {trt.__name__} {trt.__version__} is built yet.")
    graph_key = export_key(model, torch.float16)
    kept_graph = cache.load(graph_key)
    if kept_graph is None and not build:  # exporting takes seconds, and without a graph there is no engine
        raise not_built
    graph = kept_graph or export_onnx(model, torch.float16)
    if kept_graph is None:
        cache.store(graph_key, graph)
    key = cache_key(trt, graph, profile, gpu_name(device), driver_version())
    state = cache.open(key, build=make, use=use, check=lambda: check_parity(opened[0], model, *profile.usual))
    return OpenedEngine(opened[0], state, cache.path(key))


def export_key(model: SlabDenoiser, dtype: torch.dtype) -> dict[str, str]:
    """Return everything that an exported graph depends on: weights, precision, the code and its versions.

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed.
    """
    weights = hashlib.sha256(repr(model.shape).encode())
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().numpy().tobytes())
    code = hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in (denoiser, onnx_export)))
    return {
        "weights": weights.hexdigest(),
        "precision": str(dtype).removeprefix("torch."),
        "exporter": f"{_exporter()}, code {code.hexdigest()[:16]}",
    }


def _exporter() -> str:
    """Return what exports, with versions, without importing it: that takes longer than reading a graph."""
    try:
        return ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnx", "onnxscript")
        )
    except importlib.metadata.PackageNotFoundError:
        onnx_export.require_onnx()  # says what is missing
        raise
