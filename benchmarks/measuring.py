"""What the benchmarks share: the machine and the scores.

Importing it makes `support`, the helpers of the tests, importable: the campaigns play the scenarios that the
tests play a few of.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from microdiffusion.daemon.system import about as machine
from microdiffusion.metrics import axial_sharpness, foreground_psnr, psnr_per_slice, ssim_per_slice

__all__ = ["HELD_OUT", "ROOT", "machine", "scores_of"]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
HELD_OUT = ("axons_trailmap_a", "axons_trailmap_b", "axon_olfactory_pn", "dendrite_deepd3")
"""Every neuron of the collection: what the weights of one fold have not seen."""


def scores_of(estimate: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Return the scores at a data range of 1, over the slices (Z,) of the mask `seen`."""
    estimate, truth = np.clip(estimate, 0, 1)[seen], np.clip(truth, 0, 1)[seen]
    return {
        "psnr": float(psnr_per_slice(estimate, truth).mean()),
        "ssim": float(ssim_per_slice(estimate, truth).mean()),
        "foreground_psnr": foreground_psnr(estimate, truth),
        "axial_sharpness": axial_sharpness(estimate, truth),
    }
