"""Selects the runtime that serves the network on a device, and says why.

CUDA: TensorRT where it is installed, CPU: OpenVINO where it is installed; each compared with torch before it
serves, and given up for torch, with one warning, where it fails: a slower answer is worth more than none. An
engine of TensorRT's that is not kept yet is built here and now, unless the configuration says to serve with
torch instead. Runs on the engine's thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from microdiffusion.engines.runtimes.openvino_runtime import OpenVINORuntime, find_openvino
from microdiffusion.engines.runtimes.parity import check_parity
from microdiffusion.engines.runtimes.tensorrt_build import Profile, find_tensorrt
from microdiffusion.engines.runtimes.tensorrt_runtime import NotBuiltError, open_tensorrt
from microdiffusion.engines.runtimes.torch_runtime import TorchRuntime
from microdiffusion.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.diffusion import Denoiser, Runtime
    from microdiffusion.engines.runtimes.tensorrt_build import Progress

logger = logging.getLogger("microdiffusion.engines")

_CHECKED = (2, 64)  # windows and pixels that a runtime on the CPU is compared with torch on


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime that serves.

    `why` is added to the device's reason; `fallback` is one sentence, where another one was to serve and
    failed.
    """

    runtime: Runtime
    why: str = ""
    fallback: str = ""


def open_runtime(
    model: Denoiser,
    device: torch.device,
    config: EngineConfig,
    *,
    progress: Progress = lambda share: None,
) -> Choice:
    """Return the runtime that engine.runtime asks for; torch changes the model's precision and place.

    Raises
    ------
    DependencyError
        The runtime that is asked for is not installed.
    ConfigError
        It does not run on this device.
    """
    wanted = config.runtime
    _check_device(wanted, device)
    if wanted == "torch":
        return Choice(_torch(model, device, config))
    if device.type == "cuda":
        return _on_cuda(model, device, config, progress)
    return _on_cpu(model, device, config)


def _check_device(wanted: str, device: torch.device) -> None:
    if wanted == "tensorrt" and device.type != "cuda":
        if find_tensorrt() is None:
            raise DependencyError(_not_installed("tensorrt", install_tensorrt(device)))
        raise ConfigError(
            f"engine.runtime is tensorrt, but the device is {device}: TensorRT needs an NVIDIA GPU and a "
            "torch build with CUDA; set engine.runtime to auto or torch."
        )
    if wanted == "openvino" and device.type != "cpu":
        raise ConfigError(
            f"engine.runtime is openvino, but the device is {device}: here OpenVINO runs on the CPU alone; "
            'set engine.runtime to auto, or engine.device to "cpu".'
        )


def _on_cuda(model: Denoiser, device: torch.device, config: EngineConfig, progress: Progress) -> Choice:
    asked = config.runtime == "tensorrt"
    trt = find_tensorrt()
    if trt is None:
        if asked:
            raise DependencyError(_not_installed("tensorrt", install_tensorrt(device)))
        return Choice(_torch(model, device, config), "; torch, no TensorRT is installed")
    name = f"{trt.__name__} {trt.__version__}"
    profile = Profile.of(config.tile, model.multiple)
    try:
        opened = open_tensorrt(model, device, profile, trt, build=config.compile, progress=progress)
    except NotBuiltError:
        return Choice(_torch(model, device, config), f"; torch, no engine of {name} is built, as configured")
    except Exception as error:  # TensorRT's bindings raise what they like, and torch can always go on
        if asked and isinstance(error, DependencyError):
            raise
        return _fallen_back(model, device, config, "TensorRT", error)
    return Choice(opened.runtime, f"; {name} {'as configured' if asked else 'found'}")


def _on_cpu(model: Denoiser, device: torch.device, config: EngineConfig) -> Choice:
    asked = config.runtime == "openvino"
    openvino = find_openvino()
    if openvino is None:
        if asked:
            raise DependencyError(_not_installed("openvino", "pip install openvino"))
        return Choice(TorchRuntime(model, device), "; torch, no OpenVINO is installed")
    try:
        runtime = OpenVINORuntime(model, device, openvino, threads=config.threads)
        check_parity(runtime, model, *_CHECKED, coarse=runtime.name.endswith("bfloat16"))
    except Exception as error:  # as above
        return _fallen_back(model, device, config, "OpenVINO", error)
    version = openvino.__version__.partition("-")[0]
    return Choice(runtime, f"; openvino {version} {'as configured' if asked else 'found'}")


def _torch(model: Denoiser, device: torch.device, config: EngineConfig) -> TorchRuntime:
    """Return torch where it is there to stay: then fusing the network is worth the wait."""
    if config.torch_compile and device.type == "cuda":
        return TorchRuntime(model, device, fused=True)
    return TorchRuntime(model, device)


def _fallen_back(
    model: Denoiser, device: torch.device, config: EngineConfig, name: str, error: Exception
) -> Choice:
    fallback = f"{name} is not used, torch goes on in its place: {error}"
    logger.warning(fallback)
    return Choice(_torch(model, device, config), f"; torch, {name} failed: {error}", fallback=fallback)


def _not_installed(runtime: str, install: str) -> str:
    product = {"tensorrt": "TensorRT", "openvino": "OpenVINO"}[runtime]
    return (
        f"engine.runtime is {runtime}, but no {product} is installed: {install} "
        "(or set engine.runtime to auto)."
    )


def require_tensorrt(device: torch.device) -> Any:
    """Return the module of the TensorRT that is installed.

    Raises
    ------
    DependencyError
        There is none.
    """
    trt = find_tensorrt()
    if trt is None:
        raise DependencyError(
            "Compiling needs TensorRT, and none is installed: "
            f"{install_tensorrt(device)} (a CPU needs no engines: OpenVINO and torch start without)."
        )
    return trt


def install_tensorrt(device: torch.device) -> str:
    """Return how to install the TensorRT that runs on this device."""
    # TensorRT for RTX leaves out the data-centre GPUs: Hopper (9.0) and Blackwell's (10.x).
    centre = device.type == "cuda" and 9 <= torch.cuda.get_device_capability(device)[0] < 12
    return f'pip install "microdiffusion-daemon[{"tensorrt" if centre else "tensorrt-rtx"}]"'
