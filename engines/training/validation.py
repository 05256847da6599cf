"""How training is judged: the evaluation protocol on volumes that the pool never sees.

Slab of 6 slices, box profile, white noise of 0.01, the middle 130 x 128 x 128 voxels scaled by the
percentiles 1 and 99.9; PSNR and SSIM per slice at a data range of 1, over the slices between the first and
the last that a projection saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.diffusion import NetworkInputs, SamplerSettings, SliceConditions, VolumeDenoiser
from microdiffusion.engines.projections import DataConsistency, along_z, interpolation_matrix, tikhonov_matrix
from microdiffusion.engines.runtimes import TorchRuntime
from microdiffusion.metrics import psnr_per_slice, seen_slices, ssim_per_slice
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.engines.diffusion import SlabDenoiser

_LENGTH, _STEP, _NOISE = 6.0, 6.0, 0.01

Table = dict[str, dict[str, float]]
"""Volume to score ("network", "network_ssim", "tikhonov" ...) to value."""


def protocol_crop(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the middle of a volume (Z, Y, X), at most 130 x 128 x 128, scaled and clipped to [0, 1]."""
    start = [max(0, (n - m) // 2) for n, m in zip(volume.shape, (130, 128, 128), strict=True)]
    part = volume[start[0] : start[0] + 130, start[1] : start[1] + 128, start[2] : start[2] + 128]
    low, high = np.percentile(part, [1, 99.9])
    return np.asarray(np.clip((part - low) / (high - low), 0, 1), dtype=np.float32)


def validate(
    model: SlabDenoiser, volumes: dict[str, NDArray[np.float32]], say: Callable[[str], None]
) -> Table:
    """Score one evaluation from Tikhonov's answer, pulled towards the data as served, and linear answers."""
    runtime = TorchRuntime(model, torch.device("cpu"), torch.float32)
    table = {}
    for name, volume in volumes.items():
        row = table[name] = _scores(runtime, protocol_crop(volume))
        shown = (
            f"{method} {row[method]:.2f}/{row[f'{method}_ssim']:.3f}"
            for method in ("linear", "tikhonov", "network")
        )
        say(f"  {name:24s} {'  '.join(shown)}")
    return table


def _scores(runtime: TorchRuntime, truth: NDArray[np.float32]) -> dict[str, float]:
    slices = truth.shape[0]
    z = sweep_positions(length_um=_LENGTH, step_um=_STEP, z0_um=0, voxel_z_um=1, shape_z=slices)
    matrix = projection_operator(z, AxialProfile.box(_LENGTH), z0_um=0, voxel_z_um=1, shape_z=slices)
    noise = np.random.default_rng(0).standard_normal((len(z), *truth.shape[1:]))
    measured = np.tensordot(matrix, truth, 1) + _NOISE * noise
    low, high = (float(value) for value in np.percentile(measured, [1.0, 99.9]))
    images = torch.from_numpy(((measured - low) / (high - low)).astype(np.float32))

    def closed(weights: NDArray[np.float64]) -> Tensor:
        return along_z(torch.from_numpy(weights.astype(np.float32)), images)

    prior = closed(tikhonov_matrix(matrix))
    conditions = SliceConditions.of(matrix, z, _LENGTH)
    denoise = VolumeDenoiser(runtime, conditions, SamplerSettings(steps=1, kappa=0.0))
    shown = NetworkInputs(prior, images, torch.tensor(_NOISE / (high - low)))
    floor = -low / (high - low)
    variance = torch.full_like(images, (_NOISE / (high - low)) ** 2)
    pull = DataConsistency(torch.from_numpy(matrix.astype(np.float32)))
    answers = {
        "linear": closed(interpolation_matrix(z, slices)),
        "tikhonov": prior,
        "network": pull(denoise(prior, shown, 1.0) - floor, images - floor, variance) + floor,
    }
    seen = seen_slices(matrix)
    row = {}
    for method, answer in answers.items():
        image = np.clip(answer.numpy() * (high - low) + low, 0, 1)[seen]
        row[method] = float(psnr_per_slice(image, truth[seen]).mean())
        row[f"{method}_ssim"] = float(ssim_per_slice(image, truth[seen]).mean())
    return row
