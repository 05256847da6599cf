"""What the benchmarks share: the machine, the operator of a sweep, and the scores."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import microdiffusion
from microdiffusion.metrics import axial_sharpness, foreground_psnr, psnr_per_slice, ssim_per_slice
from microdiffusion.optics import projection_operator

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ("axons_trailmap_a", "axons_trailmap_b", "axon_olfactory_pn", "dendrite_deepd3")
"""Every neuron of the collection: what the weights of one fold have not seen."""


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        model = found.group(1) if found else model
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    packages = ("numpy", "h5py", "pyzmq", "torch", "pycromanager", "pymmcore")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "mdd": microdiffusion.__version__,
        "commit": commit.stdout.strip(),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def operator_of(header: Any, z_um: np.ndarray) -> np.ndarray:
    """Return the operator (M, Z) of slabs at `z_um` in a run."""
    return projection_operator(
        z_um, header.profile, z0_um=header.z0_um, voxel_z_um=header.voxel_size_um[0], shape_z=header.shape[0]
    )


def scores_of(estimate: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Return the scores at a data range of 1, over the slices (Z,) of the mask `seen`."""
    estimate, truth = np.clip(estimate, 0, 1)[seen], np.clip(truth, 0, 1)[seen]
    return {
        "psnr": float(psnr_per_slice(estimate, truth).mean()),
        "ssim": float(ssim_per_slice(estimate, truth).mean()),
        "foreground_psnr": foreground_psnr(estimate, truth),
        "axial_sharpness": axial_sharpness(estimate, truth),
    }
