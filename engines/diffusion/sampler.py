"""The few-step sampler: a bridge from the INR's volume to the clean one.

Forward, in training:   x_t = (1 - t) x_0 + t (INR + κ ε),   0 ≤ t ≤ 1

This is MicroDiffusion's linear interpolation between the INR's output and noise, made trainable: the
start t = 1 is the INR plus noise instead of noise alone, so one to eight evaluations suffice. It is flow
matching with another source (Liu et al. 2023; Albergo and Vanden-Eijnden 2023), integrated by Euler
steps. After each evaluation the prediction is pulled towards the measured projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Evaluations per volume, guidance weight, noise κ of the bridge, tile edge in pixels."""

    steps: int = 2
    guidance: float = 0.0
    kappa: float = 0.05
    tile: int = 256


def bridge_times(steps: int) -> list[float]:
    """Return the times t of `steps` evaluations, from 1 downwards; 0 is never evaluated."""
    return [1.0 - number / steps for number in range(steps)]


def bridge_noise(shape: tuple[int, int, int], seed: int, device: torch.device) -> Tensor:
    """Return the noise ε (Z, Y, X) of the bridge's start, the same for a seed on every device.

    Drawn on the CPU, once: with different noise in every sweep, what the network invents would flicker from
    one time point to the next.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def sample(
    denoise: Callable[[Tensor, float], Tensor],
    prior: Tensor,
    settings: SamplerSettings,
    consistent: Callable[[Tensor], Tensor],
    noise: Tensor | None,
) -> Tensor:
    """Return the clean volume (Z, Y, X) from the INR's volume `prior`.

    `denoise(x_t, t)` predicts x_0; `consistent` pulls a prediction towards the projections; `noise`
    (Z, Y, X) is `bridge_noise`, None for none.
    """
    state = prior if noise is None else prior + settings.kappa * noise
    times = bridge_times(settings.steps)
    for time, following in zip(times, [*times[1:], 0.0], strict=True):
        clean = consistent(denoise(state, time))
        # Euler step of dx/dt = (x_t - x_0) / t.
        state = clean + (following / time) * (state - clean) if following else clean
    return state
