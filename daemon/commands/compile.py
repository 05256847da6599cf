"""Build the network's TensorRT engine ahead of time, check and keep it.

  mdd compile            what `mdd serve` would build at its first start
  mdd compile --weights mine.safetensors --set engine.tile=512

An engine fits one network, engine.tile, GPU, driver and TensorRT; see
docs/runtimes.md. It is compared with torch before it is kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say
from microdiffusion.daemon.status import size
from microdiffusion.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    import torch

    from microdiffusion.config import EngineConfig

_STATES = {"found": "already built", "built": "built", "healed": "rebuilt"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "--weights FILE", "your own weights", options.file, key="engine.weights")
    options.add(parser, "--device NAME", "auto, cuda or cuda:N", key="engine.device")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Compile, or say what serves without."""
    config = options.config_from(args).engine
    from microdiffusion.engines.pipeline import pick_device

    device, _ = pick_device(config.device)
    if device.type == "cpu" and config.device == "auto" and config.runtime != "tensorrt":
        _open(config)
    else:
        _compile(device, config)
    return 0


def _open(config: EngineConfig) -> None:
    """Say what serves on a CPU, where nothing is built ahead; opening it checks it."""
    from microdiffusion.engines.diffusion import weights_path
    from microdiffusion.engines.pipeline import open_engine

    started = time.perf_counter()
    engine = open_engine(config.model_copy(update={"method": "mdd"}))
    took_s = time.perf_counter() - started
    say(
        f"{weights_path(config).stem}: nothing to build ahead on a CPU; {engine.name} opens in "
        f"{took_s:.1f} s ({engine.reason})"
    )


def _compile(device: torch.device, config: EngineConfig) -> None:
    from microdiffusion.engines.diffusion import load_denoiser, weights_path
    from microdiffusion.engines.runtimes import Profile, open_tensorrt, require_tensorrt

    trt = require_tensorrt(device)
    if device.type != "cuda":
        raise ConfigError(
            "An engine is built for one GPU, and no CUDA device was found or asked for: compile on the "
            "machine that will serve."
        )
    path = weights_path(config)
    model = load_denoiser(path)
    started = time.perf_counter()
    with ProgressBar(path.stem, every_s=10.0) as bar:
        engine = open_tensorrt(model, device, Profile.of(config.tile, model.multiple), trt, progress=bar)
    took_s = time.perf_counter() - started
    if not engine.path.exists():
        raise EngineError(
            f"{engine.runtime.name} was built but cannot be kept in {engine.path.parent}: the folder "
            "must belong to this user and have free space."
        )
    say(
        f"{path.stem}: {_STATES[engine.state]}, {engine.runtime.name}, agrees with torch, "
        f"{took_s:.1f} s, {size(engine.path.stat().st_size)}, {engine.path}"
    )
