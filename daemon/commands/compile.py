"""Build the network's TensorRT engines ahead of time, check them against torch, and keep them.

  mdd compile                        what `mdd serve` would build at its first start
  mdd compile --network all          both networks that ship with mdd
  mdd compile --weights mine.safetensors --set engine.tile=512
  mdd compile --check                export, parse and build, and keep nothing; TensorRT for RTX needs no GPU
  mdd compile --list | --clear       what is kept

An engine fits one network, one engine.tile, one GPU, one driver and one TensorRT; docs/runtimes.md explains.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import ConfigError, EngineError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    import torch

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.runtimes import EngineCache

_SAID = {"found": "was there", "built": "built", "healed": "healed"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", type=options.file, metavar="FILE", help="weights of your own")
    which.add_argument(
        "--network", choices=("small", "large", "all"), help="shipped weights; all: both of them"
    )
    parser.add_argument("--device", metavar="NAME", help="auto, cuda or cuda:N")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="build without keeping; needs no GPU with RTX")
    what.add_argument("--list", action="store_true", help="say what is kept")
    what.add_argument("--clear", action="store_true", help="delete what is kept")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Compile, check, list or clear."""
    from microdiffusion.engines.runtimes import EngineCache

    cache = EngineCache()
    if args.list:
        return _list(cache)
    if args.clear:
        files, size = cache.clear()
        say(f"deleted {count_noun(files, 'file')}, {_size(size)}, from {cache.folder}")
        return 0
    config = options.config_from(
        args,
        {
            "engine.weights": args.weights,
            "engine.network": None if args.network == "all" else args.network,
            "engine.device": args.device,
        },
    ).engine
    from microdiffusion.engines.diffusion import shipped_weights, weights_path
    from microdiffusion.engines.pipeline import pick_device

    device, _ = pick_device(config.device)
    every = args.network == "all"
    paths = (
        [shipped_weights(name) for name in ("small", "large")] if every else [weights_path(config, device)]
    )
    if args.check:
        return _check(paths, device, config)
    if device.type == "cpu" and config.device == "auto" and config.runtime != "tensorrt":
        return _ready(paths, config)
    return _compile(paths, device, config)


def _ready(paths: list[Path], config: EngineConfig) -> int:
    """Say what serves on a CPU, where nothing is built ahead; opening it checks it."""
    from microdiffusion.engines.pipeline import open_engine

    for path in paths:
        started = time.perf_counter()
        engine = open_engine(config.model_copy(update={"weights": path, "method": "mdd"}))
        say(
            f"{path.stem}: nothing to build ahead on a CPU; {engine.name} opens in "
            f"{time.perf_counter() - started:.1f} s ({engine.reason})"
        )
    return 0


def _compile(paths: list[Path], device: torch.device, config: EngineConfig) -> int:
    from microdiffusion.daemon.cli import BuildBar
    from microdiffusion.engines.diffusion import load_denoiser
    from microdiffusion.engines.runtimes import Profile, open_tensorrt, require_tensorrt

    trt = require_tensorrt(device)
    if device.type != "cuda":
        raise ConfigError(
            "An engine is built for one GPU, and no CUDA device was found or asked for: compile on the "
            "machine that will serve, or give --check to export, parse and build here without keeping it."
        )
    for path in paths:
        model = load_denoiser(path)
        started = time.perf_counter()
        with BuildBar(path.stem) as bar:
            profile = Profile.of(config.tile, model.multiple)
            engine = open_tensorrt(model, device, profile, trt, progress=bar)
        seconds = time.perf_counter() - started
        if not engine.path.exists():
            raise EngineError(
                f"{engine.runtime.name} was built but cannot be kept in {engine.path.parent}: the folder has "
                "to belong to this user and to have room."
            )
        say(
            f"{path.stem}: {_SAID[engine.state]}, {engine.runtime.name}, agrees with torch, {seconds:.1f} s, "
            f"{_size(engine.path.stat().st_size)}, {engine.path}"
        )
    return 0


def _check(paths: list[Path], device: torch.device, config: EngineConfig) -> int:
    import torch

    from microdiffusion.daemon.cli import BuildBar
    from microdiffusion.engines.diffusion import load_denoiser
    from microdiffusion.engines.runtimes import Profile, build_engine, export_onnx, require_tensorrt

    trt = require_tensorrt(device)
    if trt.__name__ == "tensorrt" and device.type != "cuda":
        raise ConfigError(
            "TensorRT builds on its GPU only, and no CUDA device was found or asked for: check on the "
            "machine that will serve, or install TensorRT for RTX: "
            'pip install "microdiffusion-daemon[tensorrt-rtx]"'
        )
    for path in paths:
        model = load_denoiser(path)
        started = time.perf_counter()
        graph = export_onnx(model, torch.float16)
        exported = time.perf_counter()
        with BuildBar(path.stem) as bar:
            engine = build_engine(trt, graph, Profile.of(config.tile, model.multiple), progress=bar)
        built = time.perf_counter()
        say(
            f"{path.stem}: exported in {exported - started:.1f} s ({_size(len(graph))}), valid, parsed in "
            f"half precision and built by {trt.__name__} {trt.__version__} in {built - exported:.1f} s "
            f"({_size(len(engine))}); not run, not kept"
        )
    return 0


def _list(cache: EngineCache) -> int:
    entries = cache.entries()
    for entry in entries:
        about = entry.built_for
        if "gpu" in about:
            what = f"{about.get('tensorrt', '?')}, driver {about.get('driver', '?')}, {about['gpu']}"
        else:
            what = f"{about.get('format', 'ONNX')} graph" if "weights" in about else "damaged"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
        say(f"{entry.path.name}  {_size(entry.size):>8}  last used {used}  {what}")
    size = _size(sum(entry.size for entry in entries))
    say(f"{count_noun(len(entries), 'file')}, {size}, in {cache.folder}")
    return 0


def _size(number: int) -> str:
    from microdiffusion.daemon.status import size

    return size(number)
