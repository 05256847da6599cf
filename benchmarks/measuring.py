"""What the benchmarks share: the machine, the operator of a sweep, and the scores.

Importing it makes `support`, the helpers of the tests, importable: the campaigns play the scenarios that the
tests play a few of.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.daemon.system import about as machine
from microdiffusion.metrics import axial_sharpness, foreground_psnr, psnr_per_slice, ssim_per_slice
from microdiffusion.optics import projection_operator

__all__ = ["HELD_OUT", "ROOT", "machine", "operator_of", "scores_of"]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
HELD_OUT = ("axons_trailmap_a", "axons_trailmap_b", "axon_olfactory_pn", "dendrite_deepd3")
"""Every neuron of the collection: what the weights of one fold have not seen."""


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
