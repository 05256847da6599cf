"""What a volume was made with, as one text: whoever has it and the projections can make the volume again.

Settings that bear on voxels, weights, runtime, versions, processor and threads. What only says when
something is done (policy, memory, checkpoints) is left out, so that a run has few recipes. Pure but for what
it asks the system; any thread.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microdiffusion import __version__

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.pipeline.engine import Engine

_NOT_OF_VOXELS = {"policy", "backlog", "update", "session_memory_mb", "checkpoint_s", "cuda_graphs"}
_MOST_THREADS = 4096
_PACKAGES = ("torch", "numpy", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings")


def recipe(config: EngineConfig, engine: Engine) -> str:
    """Return the recipe as JSON: see `read_recipe`."""
    left_out = _NOT_OF_VOXELS | ({"reference"} if config.method != "microdiffusion" else set())
    return json.dumps(
        {
            "engine": config.model_dump(mode="json", exclude=left_out),
            "runtime": engine.name,
            "weights": engine.weights,
            "weights_sha256": engine.weights_sha256,
            **_machine(str(engine.device)),
        },
        separators=(",", ":"),
    )


def read_recipe(text: str) -> dict[str, Any]:
    """Return the parts of a recipe.

    They are: engine (settings), runtime, weights, weights_sha256, device, threads, processor, instructions,
    versions.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        parts = json.loads(text)
    except RecursionError:  # brackets without end
        parts = None
    if not isinstance(parts, dict) or not isinstance(parts.get("engine"), dict):
        raise ValueError("not a recipe")
    threads = parts.get("threads", 0)
    if not (
        isinstance(threads, int)
        and 0 <= threads <= _MOST_THREADS
        and isinstance(parts.get("versions", {}), dict)
    ):
        raise ValueError("not a recipe")
    return parts


def differences(recorded: str, here: str) -> list[str]:
    """Return what is not as it was recorded, a sentence each; settings are taken from the recipe anyway."""
    then, now = read_recipe(recorded), read_recipe(here)
    found = [
        f"{name.replace('_', ' ')}: {then.get(name)} then, {now.get(name)} here"
        for name in ("processor", "instructions", "threads", "device", "runtime", "weights_sha256")
        if then.get(name) != now.get(name)
    ]
    versions = then.get("versions", {}), now.get("versions", {})
    for package in sorted({*versions[0], *versions[1]}):
        old, new = (some.get(package, "none") for some in versions)
        if old != new:
            found.append(f"{package}: {old} then, {new} here")
    return found


def _machine(device: str) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return {
        "device": f"{device} {gpu}".strip(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"mdd": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
