"""What results were made on and with: machine, versions, and the commit where the source is a checkout."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import microdiffusion

_PACKAGES = ("numpy", "scipy", "scikit-image", "torch", "h5py")


def about() -> dict[str, Any]:
    """Return machine, versions, commit and the time, as JSON can hold them."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "mdd": microdiffusion.__version__,
        "commit": _commit(Path(microdiffusion.__file__).resolve().parent),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


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
