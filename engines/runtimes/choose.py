"""Which runtime serves the network on a device, and why.

TensorRT is taken where it is there, and given up for torch, with one warning, where it fails: a slower
answer is worth more than none. Runs on the engine's thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.runtimes.tensorrt_build import Profile, find_tensorrt
from microdiffusion.engines.runtimes.tensorrt_open import open_tensorrt
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.denoiser import SlabDenoiser
    from microdiffusion.engines.runtimes.runtime import Runtime

logger = logging.getLogger("microdiffusion.engines")


def open_runtime(model: SlabDenoiser, device: torch.device, config: EngineConfig) -> tuple[Runtime, str]:
    """Return the runtime that engine.runtime asks for, and why this one, to be added to the device's reason.

    Raises
    ------
    DependencyError
        TensorRT is asked for and is not installed.
    ConfigError
        TensorRT is asked for on a device that is not CUDA.
    """
    wanted = config.runtime
    if wanted == "torch" or (wanted == "auto" and device.type != "cuda"):
        return TorchRuntime(model, device), ""
    trt = find_tensorrt()
    if trt is None:
        if wanted == "tensorrt":
            raise DependencyError(
                "engine.runtime is tensorrt, but no TensorRT is installed: "
                f"{_install_line(device)} (or set engine.runtime to auto)."
            )
        return TorchRuntime(model, device), "; torch, no TensorRT is installed"
    if device.type != "cuda":
        raise ConfigError(
            f"engine.runtime is tensorrt, but the device is {device}: TensorRT needs an NVIDIA GPU and a "
            "torch build with CUDA; set engine.runtime to auto or torch."
        )
    try:
        runtime = open_tensorrt(model, device, Profile.of(config.tile, model.shape.multiple), trt)
    except Exception as error:  # TensorRT's bindings raise what they like, and torch can always go on
        if wanted == "tensorrt" and isinstance(error, DependencyError):
            raise
        logger.warning("TensorRT is not used, torch goes on in its place: %s", error)
        return TorchRuntime(model, device), f"; torch, TensorRT failed: {error}"
    return runtime, f"; {trt.__name__} {trt.__version__} {'found' if wanted == 'auto' else 'as configured'}"


def _install_line(device: torch.device) -> str:
    """Return how to install the TensorRT that runs on this device."""
    # TensorRT for RTX leaves out the data-centre GPUs: Hopper (9.0) and Blackwell's (10.x).
    centre = device.type == "cuda" and 9 <= torch.cuda.get_device_capability(device)[0] < 12
    return f'pip install "microdiffusion-daemon[{"tensorrt" if centre else "tensorrt-rtx"}]"'
