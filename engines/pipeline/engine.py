"""Opens device and network, before any run is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.diffusion import Belonging, load_denoiser, shipped_weights, weights_path
from microdiffusion.engines.pipeline.device import keep_freed_memory
from microdiffusion.engines.runtimes import open_runtime
from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.diffusion import Runtime
    from microdiffusion.engines.runtimes import Progress


@dataclass(frozen=True, slots=True)
class Engine:
    """An open device and, for the method "mdd", the network on it.

    Attributes
    ----------
    name, reason : str
        Runtime, device and precision; why these.
    runtime : Runtime or None
        None for methods without a network.
    weights, weights_sha256 : str
        File name and checksum; empty without a network.
    fallback : str
        A sentence where a runtime failed and torch took its place.
    belonging : Belonging or None
        The specimen that the weights are adapted to; None: they are for all.
    general : Runtime or None
        Of weights that belong to a specimen: the network that ships, their rival (see `rivals.py`).
    """

    device: torch.device
    name: str
    reason: str
    runtime: Runtime | None = None
    weights: str = ""
    weights_sha256: str = ""
    fallback: str = ""
    belonging: Belonging | None = None
    general: Runtime | None = None


def open_engine(config: EngineConfig, *, progress: Progress = lambda share: None) -> Engine:
    """Open device and weights; `progress` gets the share of a TensorRT build that is done.

    Raises
    ------
    ConfigError
        A device or runtime is asked for that is not there.
    DependencyError
        The runtime that is asked for is not installed.
    MissingFileError, InputFileError
        The weights cannot be loaded.
    """
    device, reason = pick_device(config.device)
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.method != "mdd":
        return Engine(device, f"torch {device} float32", reason)
    path = weights_path(config)
    choice = open_runtime(load_denoiser(path), device, config, progress=progress)
    runtime = choice.runtime
    belonging, general = Belonging.of(path), None
    if belonging is not None and config.fallback:
        rival = open_runtime(load_denoiser(shipped_weights()), device, config, progress=progress)
        general = rival.runtime
    return Engine(
        device,
        runtime.name,
        reason + choice.why,
        runtime,
        path.name,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        choice.fallback,
        belonging,
        general,
    )


def pick_device(wanted: str) -> tuple[torch.device, str]:
    """Return the device that engine.device asks for, and why.

    Raises
    ------
    ConfigError
        A CUDA device is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "auto":
        if available:
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} found"
        return torch.device("cpu"), "auto: no CUDA device found"
    device = torch.device(wanted)
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"engine.device is {wanted!r}, but torch sees {torch.cuda.device_count()} CUDA devices: "
            "set it to auto or cpu, or install a torch build with CUDA and its driver."
        )
    return device, "as configured"
