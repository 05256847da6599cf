"""Builds engines ahead of time, so that a start finds them: `mdd compile`, and the daemon's builder.

Runs in a process that does nothing else, or on the command's thread; a build takes seconds to minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microdiffusion.engines.diffusion import load_denoiser
from microdiffusion.engines.runtimes.engine_cache import EngineCache
from microdiffusion.engines.runtimes.onnx_export import export_onnx
from microdiffusion.engines.runtimes.select import install_tensorrt
from microdiffusion.engines.runtimes.tensorrt_build import Profile, build_engine, find_tensorrt
from microdiffusion.engines.runtimes.tensorrt_runtime import open_tensorrt
from microdiffusion.errors import DependencyError, EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.runtimes.engine_cache import State
    from microdiffusion.engines.runtimes.tensorrt_build import Progress


@dataclass(frozen=True, slots=True)
class Compiled:
    """An engine that is kept, compared with torch: what runs it, where it came from, what that took."""

    runtime: str
    state: State
    seconds: float
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class Checked:
    """An engine that was built and not kept: by what, seconds and bytes of graph and engine."""

    builder: str
    export_s: float
    graph_size: int
    build_s: float
    size: int


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


def compile_network(
    weights: Path,
    device: torch.device,
    tile: int,
    *,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Build the engine of a network for a CUDA device and tiles of `tile` pixels, where none is kept.

    Raises
    ------
    MissingFileError, InputFileError
        The weights cannot be loaded.
    DependencyError
        TensorRT or the exporter is not installed.
    EngineError
        The engine cannot be built, differs from torch, or cannot be kept.
    """
    trt = require_tensorrt(device)
    model = load_denoiser(weights)
    started = time.perf_counter()
    profile = Profile.of(tile, model.multiple)
    opened = open_tensorrt(model, device, profile, trt, cache, progress=progress)
    seconds = time.perf_counter() - started
    if not opened.path.exists():
        raise EngineError(
            f"{opened.runtime.name} was built but cannot be kept in {opened.path.parent}: the folder has to "
            "belong to this user and to have room."
        )
    return Compiled(opened.runtime.name, opened.state, seconds, opened.path.stat().st_size, opened.path)


def check_network(weights: Path, tile: int, trt: Any, *, progress: Progress | None = None) -> Checked:
    """Export, check, parse and build a network without keeping or running it.

    With TensorRT for RTX this needs no GPU.

    Raises
    ------
    MissingFileError, InputFileError
        The weights cannot be loaded.
    DependencyError
        The exporter is not installed.
    EngineError
        The graph is refused or cannot be built.
    """
    model = load_denoiser(weights)
    started = time.perf_counter()
    graph = export_onnx(model, torch.float16)
    exported = time.perf_counter()
    engine = build_engine(trt, graph, Profile.of(tile, model.multiple), progress=progress)
    built = time.perf_counter()
    name = f"{trt.__name__} {trt.__version__}"
    return Checked(name, exported - started, len(graph), built - exported, len(engine))
