"""Evaluation of the network: torch, OpenVINO or TensorRT."""

from microdiffusion.engines.runtimes.openvino_runtime import find_openvino
from microdiffusion.engines.runtimes.select import open_runtime, require_tensorrt
from microdiffusion.engines.runtimes.tensorrt_build import (
    Profile,
    Progress,
    driver_version,
    find_tensorrt,
)
from microdiffusion.engines.runtimes.tensorrt_runtime import open_tensorrt
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime, best_dtype

__all__ = [
    "Profile",
    "Progress",
    "TorchRuntime",
    "best_dtype",
    "driver_version",
    "find_openvino",
    "find_tensorrt",
    "open_runtime",
    "open_tensorrt",
    "require_tensorrt",
]
