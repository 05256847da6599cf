"""What results were made on and with: machine, versions, and the commit where the source is a checkout.

The one answer to that question, for `mdd evaluate`, `mdd bench` and the benchmarks. Imports torch.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import microdiffusion
from microdiffusion.daemon.machine import package_versions, processor_name

_PACKAGES = (
    "numpy", "scipy", "scikit-image", "h5py", "pyzmq", "torch", "openvino", "onnxruntime", "tensorrt",
    "tensorrt-rtx-cu13-bindings", "pycromanager", "pymmcore",
)  # fmt: skip


def about() -> dict[str, Any]:
    """Return machine, versions, commit and the time, as JSON can hold them, without what is not installed."""
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
        **package_versions(_PACKAGES),
        "mdd": microdiffusion.__version__,
        "commit": _commit(Path(microdiffusion.__file__).resolve().parent),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str:
    from microdiffusion.engines.runtimes.tensorrt_build import driver_version

    return driver_version()


def _commit(folder: Path) -> str | None:
    """Return the commit of the checkout that `folder` lies in, from git's files; None elsewhere."""
    git = next((parent / ".git" for parent in folder.parents if (parent / ".git").is_dir()), None)
    # Of a wheel in somebody's environment: another project's checkout may lie around it.
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
