"""Scores of a network while it trains, on volumes that the pool never sees.

Under the protocol of `mdd evaluate`: one evaluation in a single sweep, from Tikhonov's answer, pulled towards
the data as served; and one after a session's first sweeps, from what the session has learned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import (
    Denoiser,
    NetworkInputs,
    SamplerSettings,
    SliceConditions,
    VolumeDenoiser,
)
from microdiffusion.engines.evaluation import Case, Protocol, SessionPlan, make_case, normalise, still_session
from microdiffusion.engines.inr import default_bandwidth, sweep_deviation
from microdiffusion.engines.pipeline import Engine, Reconstructor
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
_SWEEPS = 8
_CROP = (64, 96, 96)  # of a session's specimen

METHODS = ("linear", "tikhonov", "network", "learned", "learned_network")
"""The answers that are scored: of a single sweep, and of what a session has learned."""
Table = dict[str, dict[str, float]]
"""Volume to score ("network", "network_ssim", "tikhonov" ...) to value; see `METHODS`."""


def validate(
    model: Denoiser,
    volumes: dict[str, NDArray[np.float32]],
    device: torch.device,
    say: Callable[[str], None],
) -> Table:
    """Score the network, and what it has to be better than, on each of the volumes (Z, Y, X)."""
    runtime = TorchRuntime(model, device, torch.float32)
    table: Table = {}
    for name, volume in volumes.items():
        case = make_case(normalise(volume), _PROTOCOL)
        row = table[name] = {}
        for method, answer in _answers(runtime, case).items():
            image, truth = np.clip(answer, 0, 1)[case.seen], case.truth[case.seen]
            row[method] = float(psnr_per_slice(image, truth).mean())
            row[f"{method}_ssim"] = float(ssim_per_slice(image, truth).mean())
        answers, truth, seen = _session_answers(runtime, volume)
        for method, answer in answers.items():
            row[method] = float(psnr_per_slice(np.clip(answer, 0, 1)[seen], truth[seen]).mean())
            row[f"{method}_ssim"] = float(ssim_per_slice(np.clip(answer, 0, 1)[seen], truth[seen]).mean())
        shown = (f"{m} {row[m]:.2f}/{row[f'{m}_ssim']:.3f}" for m in METHODS)
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
    level = torch.tensor(noise, device=device)
    variance = torch.full_like(images, noise**2)
    sure = sweep_deviation(case.operator, images - floor, variance, default_bandwidth(_PROTOCOL.length))
    shown = NetworkInputs(prior, sure, images, level)
    predicted = denoise(prior, shown, 1.0)
    pull = DataConsistency(tensor_of(case.operator, device))
    answers = {
        "linear": along_z(tensor_of(interpolation_matrix(centres, len(case.truth)), device), images),
        "tikhonov": prior,
        "network": pull(predicted - floor, images - floor, variance) + floor,
    }
    return {name: (answer * (high - low) + low).cpu().numpy() for name, answer in answers.items()}


def _session_answers(
    runtime: TorchRuntime, volume: NDArray[np.float32]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32], NDArray[np.bool_]]:
    """Return what a session has learned, without and with the network; the truth, and the slices seen."""
    truth = normalise(volume, _CROP)
    header, sweeps, seen = still_session(truth, _PROTOCOL, SessionPlan(_SWEEPS))
    config = EngineConfig(method="mdd", steps=1, interpolation=0.0, fallback=False)
    engine = Engine(runtime.device, runtime.name, "", runtime)
    reconstructor = Reconstructor(header, config, engine)
    for sweep in sweeps[:-1]:
        reconstructor.reconstruct(sweep, effort=2)
    # A rolling update leaves the session as it is.
    learned = reconstructor.reconstruct(sweeps[-1], lane="rolling", effort=2).volume
    served = reconstructor.reconstruct(sweeps[-1]).volume
    return {"learned": learned, "learned_network": served}, truth, seen
