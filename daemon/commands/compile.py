"""Build the network's TensorRT engines ahead of time, check and keep them.

  mdd compile                  what `mdd serve` would build at its first start
  mdd compile --network all    both networks that come with mdd
  mdd compile --weights mine.safetensors --set engine.tile=512
  mdd compile --check          export, parse and build, keep nothing; TensorRT
                               for RTX needs no GPU for it
  mdd compile --list           list what is kept
  mdd compile --clear          delete it

An engine fits one network, engine.tile, GPU, driver and TensorRT; see
docs/runtimes.md. Each is compared with torch before it is kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import Progress, options, say
from microdiffusion.daemon.status import size
from microdiffusion.errors import ConfigError, EngineError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    import torch

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.runtimes import EngineCache

_STATES = {"found": "already built", "built": "built", "healed": "rebuilt"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    which = parser.add_mutually_exclusive_group()
    options.add(which, "--weights FILE", "your own weights", options.file, key="engine.weights")
    options.add(which, "--network", "shipped weights", choices=("small", "large", "all"))
    options.add(parser, "--device NAME", "auto, cuda or cuda:N", key="engine.device")
    what = parser.add_mutually_exclusive_group()
    options.add(what, "--check", "build without keeping; needs no GPU with TensorRT for RTX")
    options.add(what, "--list", "list what is kept")
    options.add(what, "--clear", "delete what is kept")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Compile, check, list or clear."""
    from microdiffusion.engines.runtimes import EngineCache

    cache = EngineCache()
    if args.list:
        _list(cache)
        return 0
    if args.clear:
        files, freed = cache.clear()
        say(f"deleted {count_noun(files, 'file')}, {size(freed)}, from {cache.folder}")
        return 0
    every = args.network == "all"
    vars(args)["engine.network"] = None if every else args.network
    config = options.config_from(args).engine
    from microdiffusion.engines.diffusion import shipped_weights, weights_path
    from microdiffusion.engines.pipeline import pick_device

    device, _ = pick_device(config.device)
    shipped = [shipped_weights(name) for name in ("small", "large")]
    paths = shipped if every else [weights_path(config, device)]
    if args.check:
        _check(paths, device, config)
    elif device.type == "cpu" and config.device == "auto" and config.runtime != "tensorrt":
        _open(paths, config)
    else:
        _compile(paths, device, config)
    return 0


def _open(paths: list[Path], config: EngineConfig) -> None:
    """Say what serves on a CPU, where nothing is built ahead; opening it checks it."""
    from microdiffusion.engines.pipeline import open_engine

    for path in paths:
        started = time.perf_counter()
        engine = open_engine(config.model_copy(update={"weights": path, "method": "mdd"}))
        took_s = time.perf_counter() - started
        say(
            f"{path.stem}: nothing to build ahead on a CPU; {engine.name} opens in {took_s:.1f} s "
            f"({engine.reason})"
        )


def _compile(paths: list[Path], device: torch.device, config: EngineConfig) -> None:
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
        with Progress(path.stem, every_s=10.0) as bar:
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


def _check(paths: list[Path], device: torch.device, config: EngineConfig) -> None:
    import torch

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
        with Progress(path.stem, every_s=10.0) as bar:
            engine = build_engine(trt, graph, Profile.of(config.tile, model.multiple), progress=bar)
        built = time.perf_counter()
        say(
            f"{path.stem}: exported in {exported - started:.1f} s ({size(len(graph))}), valid, parsed in "
            f"half precision and built by {trt.__name__} {trt.__version__} in {built - exported:.1f} s "
            f"({size(len(engine))}); not run, not kept"
        )


def _list(cache: EngineCache) -> None:
    entries = cache.entries()
    for entry in entries:
        about = entry.built_for
        if "gpu" in about:
            what = f"{about.get('tensorrt', '?')}, driver {about.get('driver', '?')}, {about['gpu']}"
        else:
            what = f"{about.get('format', 'ONNX')} graph" if "weights" in about else "damaged"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
        say(f"{entry.path.name}  {size(entry.size):>8}  last used {used}  {what}")
    say(
        f"{count_noun(len(entries), 'file')}, {size(sum(entry.size for entry in entries))}, in {cache.folder}"
    )
