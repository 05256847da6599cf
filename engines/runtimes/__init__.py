"""What evaluates the network: torch, OpenVINO or TensorRT."""

from microdiffusion.engines.runtimes.compile import check_network, compile_network, require_tensorrt
from microdiffusion.engines.runtimes.engine_cache import EngineCache, user_cache_folder
from microdiffusion.engines.runtimes.openvino_runtime import find_openvino
from microdiffusion.engines.runtimes.select import open_runtime
from microdiffusion.engines.runtimes.tensorrt_build import Progress, driver_version, find_tensorrt
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime, best_dtype

__all__ = [
    "EngineCache",
    "Progress",
    "TorchRuntime",
    "best_dtype",
    "check_network",
    "compile_network",
    "driver_version",
    "find_openvino",
    "find_tensorrt",
    "open_runtime",
    "require_tensorrt",
    "user_cache_folder",
]
