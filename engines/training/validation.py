"""Validation of a training: the evaluation protocol on volumes that are never trained on.

Slab of 6 slices, box profile, white noise of 0.01, the middle 130 x 128 x 128 voxels scaled by the
percentiles 1 and 99.9; PSNR and SSIM per slice at a data range of 1, over the slices between the first and
the last that a projection saw. The network takes one evaluation from Tikhonov's answer, pulled towards the
data as served, without the INR.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.engines.diffusion import (
    Denoiser,
    NetworkInputs,
    SamplerSettings,
    SliceConditions,
    VolumeDenoiser,
)
from microdiffusion.engines.evaluation import Case, Protocol, make_case, normalise
from microdiffusion.engines.projections import (
    DataConsistency,
    along_z,
    interpolation_matrix,
    tensor_of,
    tikhonov_matrix,
)
from microdiffusion.engines.runtimes import TorchRuntime
from microdiffusion.metrics import psnr_per_slice, ssim_per_slice

_PROTOCOL = Protocol()

Table = dict[str, dict[str, float]]
"""Volume to score ("network", "network_ssim", "tikhonov" ...) to value."""


def validate(
    model: Denoiser,
    volumes: dict[str, NDArray[np.float32]],
    device: torch.device,
    say: Callable[[str], None],
) -> Table:
    """Score the network, Tikhonov's and the linear answer on each of the volumes (Z, Y, X)."""
    runtime = TorchRuntime(model, device, torch.float32)
    table: Table = {}
    for name, volume in volumes.items():
        case = make_case(normalise(volume), _PROTOCOL)
        row = table[name] = {}
        for method, answer in _answers(runtime, case).items():
            image, truth = np.clip(answer, 0, 1)[case.seen], case.truth[case.seen]
            row[method] = float(psnr_per_slice(image, truth).mean())
            row[f"{method}_ssim"] = float(ssim_per_slice(image, truth).mean())
        shown = (f"{m} {row[m]:.2f}/{row[f'{m}_ssim']:.3f}" for m in ("linear", "tikhonov", "network"))
        say(f"  {name:24s} {'  '.join(shown)}")
    return table


@torch.no_grad()
def _answers(runtime: TorchRuntime, case: Case) -> dict[str, NDArray[np.float32]]:
    device, centres = runtime.device, case.header.centres_of(case.sweep.stage)
    low, high = (float(value) for value in np.percentile(case.sweep.projections, [1.0, 99.9]))
    images = torch.from_numpy((case.sweep.projections - low) / (high - low)).to(device)

    prior = along_z(tensor_of(tikhonov_matrix(case.operator), device), images)
    conditions = SliceConditions.of(case.operator, centres, _PROTOCOL.length)
    denoise = VolumeDenoiser(runtime, conditions, SamplerSettings(steps=1, kappa=0.0))
    noise, floor = _PROTOCOL.noise / (high - low), -low / (high - low)
    predicted = denoise(prior, NetworkInputs(prior, images, torch.tensor(noise, device=device)), 1.0)
    pull = DataConsistency(tensor_of(case.operator, device))
    answers = {
        "linear": along_z(tensor_of(interpolation_matrix(centres, len(case.truth)), device), images),
        "tikhonov": prior,
        "network": pull(predicted - floor, images - floor, torch.full_like(images, noise**2)) + floor,
    }
    return {name: (answer * (high - low) + low).cpu().numpy() for name, answer in answers.items()}
