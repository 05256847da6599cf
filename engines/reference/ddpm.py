"""The reference's diffusion: linear betas, noise prediction, ancestral sampling that is pulled to the INR.

Before every step ``x_t <- s x_t + (1 - s) INR`` with s = 0.1, then the ancestral step with the guided noise
``(1 + w) ε(x_t, c) - w ε(x_t, 0)`` (Ho et al. 2020; Ho and Salimans 2022).

**The shortcut.** After n pulls what is left of the start is s^n of it, and the network's own share is as
small as the steps near t = 0 let it be (the factor of ε is 0.01 there). So the last few of T steps, started
from the INR itself, give what all T give: the noise of step t is drawn from its own generator, and is
the same whichever step came first.

Pure functions and small objects, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FORGOTTEN = 1e-3
"""The start's weight at which it counts as forgotten."""


class Schedule:
    """Linear betas over T steps, scaled so that any T ends in the same noise; float64 on the CPU.

    Attributes
    ----------
    beta, alpha_bar : (T,) float64
    variance : (T,) float64
        Of the noise that an ancestral step adds: beta, and the posterior's for the last step.
    """

    def __init__(self, timesteps: int = 1000) -> None:
        scale = 1000.0 / timesteps
        self.beta = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64).clamp_max(
            0.999
        )
        self.alpha_bar = torch.cumprod(1.0 - self.beta, dim=0)
        self.variance = self.beta.clone()

    def __len__(self) -> int:
        return self.beta.numel()

    def noised(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = √ᾱ x_0 + √(1 - ᾱ) ε of images (N, 1, Y, X) at steps `t` (N,)."""
        kept = self.alpha_bar[t.cpu()].to(clean)[:, None, None, None]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def ancestral(self, state: Tensor, t: int, predicted: Tensor, noise: Tensor) -> Tensor:
        """Return x_{t-1}: ``(x_t - β / √(1 - ᾱ) ε) / √(1 - β) + √β z``, without noise where t is 0."""
        beta, kept = float(self.beta[t]), float(self.alpha_bar[t])
        mean = (state - beta / math.sqrt(1 - kept) * predicted) / math.sqrt(1 - beta)
        return mean if t == 0 else mean + math.sqrt(beta) * noise


def interpolated(state: Tensor, prior: Tensor, share: float) -> Tensor:
    """Return the INR-noise interpolation ``share · state + (1 - share) · prior``."""
    return share * state + (1.0 - share) * prior


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return the guided noise ``(1 + w) ε_c - w ε_u``."""
    return (1.0 + weight) * conditional - weight * unconditional


def steps_needed(timesteps: int, shortcut: int, share: float) -> int:
    """Return how many of the last steps are sampled.

    `shortcut` of them, or more where a weaker pull takes longer to forget the start; all of them where
    `shortcut` is 0 or nothing pulls (share 1).
    """
    if shortcut == 0 or share >= 1.0:
        return timesteps
    forgetting = 1 if share <= 0 else math.ceil(math.log(FORGOTTEN) / math.log(share) - 1e-9)
    return min(timesteps, max(shortcut, forgetting))


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the sampler: number of last steps, share of the state in the pull, guidance, seed."""

    steps: int
    share: float = 0.1
    guidance: float = 1.8
    seed: int = 0


@torch.no_grad()
def draw(
    schedule: Schedule,
    predict: Callable[[Tensor, int, bool], Tensor],
    prior: Tensor,
    settings: Sampling,
    *,
    first: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return images (N, 1, Y, X) drawn under the pull of `prior` (N, 1, Y, X).

    Parameters
    ----------
    predict : callable
        Noise of a state at a step, with the condition (True) or with none (False).
    first : int
        Number of the first image in its volume: each image's noise is its own, however they are batched.
    on_step : callable
        Called after every step.
    """
    start = min(settings.steps, len(schedule))
    state = _noise(prior, settings.seed, len(schedule), first) if start == len(schedule) else prior
    for t in range(start - 1, -1, -1):
        state = interpolated(state, prior, settings.share)
        predicted = predict(state, t, True)
        if settings.guidance > 0:
            predicted = guided(predicted, predict(state, t, False), settings.guidance)
        state = schedule.ancestral(state, t, predicted, _noise(prior, settings.seed, t, first))
        on_step()
    return state


def _noise(like: Tensor, seed: int, t: int, first: int) -> Tensor:
    """Return unit noise shaped as `like`, that depends on seed, step and the images' numbers alone."""
    drawn = []
    for number in range(first, first + like.shape[0]):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + t) * 8191 + number)
        drawn.append(torch.randn(like.shape[1:], generator=generator))
    return torch.stack(drawn).to(like)
