"""Facts about this computer: processor, package versions, a process's memory, free disk space.

What the system does not tell is None, never an error: these are shown, not relied upon. Any thread.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import microdiffusion
from microdiffusion.text import count_noun

_PACKAGES = (
    "numpy", "scipy", "scikit-image", "h5py", "pyzmq", "pydantic", "rich", "torch", "openvino", "onnx",
    "onnxscript", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13-bindings", "pycromanager", "mmpycorex",
    "pyjavaz", "pymmcore", "mm-test-adapters",
)  # fmt: skip


def processor_name() -> str:
    """Return the processor's name, without its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_versions() -> dict[str, str]:
    """Return the versions of what mdd builds on, as far as it is installed, by distribution."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """Return the processor's name and number of cores."""
    return f"{processor_name()}, {count_noun(os.cpu_count() or 1, 'core')}"


def disk_free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk that holds `path`, or its closest folder that exists."""
    path = path.absolute()
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def resident_mb(pid: int | None = None) -> float | None:
    """Return the resident memory of process `pid` (None: this one) in MB (10^6 bytes)."""
    import psutil

    try:
        return float(psutil.Process(pid).memory_info().rss / 1e6)
    except (psutil.Error, OSError):
        return None


def about() -> dict[str, Any]:
    """Return machine, versions of what is installed, commit and time, ready for JSON."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cuda = torch.cuda.is_available()
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _driver() if cuda else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **package_versions(),
        "mdd": microdiffusion.__version__,
        "commit": _commit(Path(microdiffusion.__file__).resolve().parent),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str:
    from microdiffusion.engines.runtimes import driver_version

    return driver_version()


def _commit(folder: Path) -> str | None:
    """Return the commit of the checkout that `folder` lies in, from git's files; None elsewhere."""
    git = next((parent / ".git" for parent in folder.parents if (parent / ".git").is_dir()), None)
    # An installed wheel may lie in another project's checkout.
    if git is None or not (git.parent / "api" / "metrics.py").is_file():
        return None
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
