"""A checked TensorRT runtime for a network: the kept engine, else one that is built here and now.

A fresh engine is compared with torch before it is kept or used; kept ones have passed that check.

Runs on the engine's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.onnx_export import export_onnx
from microdiffusion.engines.runtimes.parity import check_parity
from microdiffusion.engines.runtimes.tensorrt_build import build_engine, cache_key, driver_version, gpu_name
from microdiffusion.engines.runtimes.tensorrt_runtime import TensorRTRuntime
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.denoiser import SlabDenoiser
    from microdiffusion.engines.runtimes.tensorrt_build import Profile


def open_tensorrt(
    model: SlabDenoiser, device: torch.device, profile: Profile, trt: Any, cache: EngineCache | None = None
) -> TensorRTRuntime:
    """Return the network on a CUDA device through TensorRT; the model is left as it is.

    Raises
    ------
    DependencyError
        onnx or onnxscript is not installed.
    EngineError
        The engine cannot be built, cannot run on this GPU, or computes something else than torch.
    """
    opened: list[TensorRTRuntime] = []

    def use(engine: bytes) -> bool:
        try:
            opened[:] = [TensorRTRuntime(device, model.shape.multiple, profile, trt, engine)]
        except EngineError:
            return False
        return True

    graph = export_onnx(model, torch.float16)
    (cache or EngineCache()).open(
        cache_key(trt, graph, profile, gpu_name(device), driver_version()),
        build=lambda: build_engine(trt, graph, profile),
        use=use,
        check=lambda: check_parity(opened[0], model, *profile.usual),
    )
    return opened[0]
