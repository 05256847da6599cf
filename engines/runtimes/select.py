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
    _check_device(config.runtime, device)
    if config.runtime == "torch":
        return Choice(TorchRuntime(model, device))
    cuda = device.type == "cuda"
    product, install = (
        ("TensorRT", install_tensorrt(device)) if cuda else ("OpenVINO", "pip install openvino")
    )
    asked = config.runtime == product.lower()
    module = find_tensorrt() if cuda else find_openvino()
    if module is None:
        if asked:
            raise DependencyError(_not_installed(product, install))
        why = f"; torch, no {product} is installed"
        return Choice(TorchRuntime(model, device), why)
    name = f"{module.__name__} {module.__version__.partition('-')[0]}"
    fallback = ""
    try:
        runtime = (_tensorrt if cuda else _openvino)(model, device, config, module, progress)
        return Choice(runtime, f"; {name} {'as configured' if asked else 'found'}")
    except NotBuiltError:
        why = f"; torch, no engine of {name} is built, as configured"
    except Exception as error:  # bindings raise what they like, and torch can always go on
        if asked and isinstance(error, DependencyError):
            raise
        why = f"; torch, {product} failed: {error}"
        fallback = f"{product} is not used, torch goes on in its place: {error}"
        logger.warning(fallback)
    return Choice(TorchRuntime(model, device), why, fallback)


def _check_device(wanted: str, device: torch.device) -> None:
    if wanted == "tensorrt" and device.type != "cuda":
        if find_tensorrt() is None:
            raise DependencyError(_not_installed("TensorRT", install_tensorrt(device)))
        raise ConfigError(
            f"engine.runtime is tensorrt, but the device is {device}: TensorRT needs an NVIDIA GPU and a "
            "torch build with CUDA; set engine.runtime to auto or torch."
        )
    if wanted == "openvino" and device.type != "cpu":
        raise ConfigError(
            f"engine.runtime is openvino, but the device is {device}: here OpenVINO runs on the CPU alone; "
            'set engine.runtime to auto, or engine.device to "cpu".'
        )


def _tensorrt(
    model: Denoiser, device: torch.device, config: EngineConfig, trt: Any, progress: Progress
) -> Runtime:
    profile = Profile.of(config.tile, model.multiple)
    return open_tensorrt(model, device, profile, trt, build=config.compile, progress=progress).runtime


def _openvino(
    model: Denoiser, device: torch.device, config: EngineConfig, openvino: Any, progress: Progress
) -> Runtime:
    runtime = OpenVINORuntime(model, device, openvino, threads=config.threads)
    check_parity(runtime, model, *_CHECKED, coarse=runtime.name.endswith("bfloat16"))
    return runtime


def _not_installed(product: str, install: str) -> str:
    return (
        f"engine.runtime is {product.lower()}, but no {product} is installed: {install} "
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
