"""The few-step guided sampler: a bridge from the INR's volume to the clean one.

Forward, in training:   x_t = (1 - t) x_0 + t (INR + κ ε),   0 ≤ t ≤ 1

This is MicroDiffusion's linear interpolation between the INR's output and noise, made trainable: the
start t = 1 is the INR plus noise instead of noise alone, so one to eight evaluations suffice. It is flow
matching with another source (Liu et al. 2023; Albergo and Vanden-Eijnden 2023), integrated by Euler
steps. After each evaluation the prediction is pulled towards the measured projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microdiffusion.engines.conditioning import window_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from microdiffusion.engines.conditioning import SliceConditions
    from microdiffusion.engines.runtimes.runtime import Runtime

HALO = 24  # pixels around a tile that are computed and thrown away; a multiple of the network's own
BATCH_PIXELS = 1 << 18  # windows times pixels of one evaluation: bounds the memory of the features


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Evaluations per volume, guidance weight, noise κ of the bridge, tile edge in pixels."""

    steps: int = 2
    guidance: float = 0.0
    kappa: float = 0.05
    tile: int = 256


def bridge_times(steps: int) -> list[float]:
    """Return the times t of `steps` evaluations, from 1 downwards (0 is never evaluated)."""
    return [1.0 - number / steps for number in range(steps)]


class Denoise:
    """The denoiser over whole volumes: windows along z, tiles across, guidance.

    Parameters
    ----------
    runtime : Runtime
    prior, images : (Z, Y, X) and (M, Y, X)
        The INR's volume and the projections, normalised.
    conditions : SliceConditions
    noise : float
        Noise of the projections, rms, normalised.
    """

    def __init__(
        self,
        runtime: Runtime,
        prior: Tensor,
        images: Tensor,
        conditions: SliceConditions,
        noise: float,
        settings: SamplerSettings,
    ) -> None:
        self._runtime = runtime
        self._prior = prior
        self._images = images
        self._conditions = conditions
        self._noise = noise
        self._settings = settings
        self._multiple = runtime.multiple
        self._windows = window_indices(prior.shape[0])
        self.evaluations = 0

    def __call__(self, state: Tensor, time: float) -> Tensor:
        """Return the clean volume (Z, Y, X) predicted from the state (Z, Y, X) at `time`."""
        result = torch.empty_like(self._prior)
        for rows, columns, keep_rows, keep_columns, inner in self._tiles():
            view = (slice(None), rows, columns)
            part = self._tile(state[view], self._prior[view], self._images[view], time)
            result[:, keep_rows, keep_columns] = part[:, inner[0], inner[1]]
        self.evaluations += 1
        return result

    def _tile(self, state: Tensor, prior: Tensor, images: Tensor, time: float) -> Tensor:
        slices, rows, columns = prior.shape
        pad = (0, -columns % self._multiple, 0, -rows % self._multiple)

        def padded(stack: Tensor) -> Tensor:
            return torch.nn.functional.pad(stack[None], pad, mode="replicate")[0] if any(pad) else stack

        state, prior, images = padded(state), padded(prior), padded(images)
        nearest = self._conditions.nearest.to(prior.device)
        guided = self._settings.guidance > 0
        kappa = self._settings.kappa
        size = max(1, BATCH_PIXELS // (prior.shape[1] * prior.shape[2] * (2 if guided else 1)))
        parts = []
        for windows in self._windows.split(size):
            index = windows.to(prior.device)
            state_w, prior_w, image_w = state[index], prior[index], images[nearest[index]]
            vector = self._vector(windows, time, kappa, image=True)
            if guided:
                # Both branches in one batch; the blank image is what condition dropout trained.
                blank = self._vector(windows, time, kappa, image=False)
                both = self._runtime(
                    state_w.repeat(2, 1, 1, 1),
                    prior_w.repeat(2, 1, 1, 1),
                    torch.cat([image_w, torch.zeros_like(image_w)]),
                    torch.cat([vector, blank]),
                )
                shown, hidden = both.unflatten(0, (2, -1)).unbind(0)
                clean = shown + self._settings.guidance * (shown - hidden)
            else:
                clean = self._runtime(state_w, prior_w, image_w, vector)
            parts.append(clean.flatten(0, 1))
        return torch.cat(parts)[:slices, :rows, :columns]

    def _vector(self, windows: Tensor, time: float, kappa: float, *, image: bool) -> Tensor:
        return self._conditions.vector(windows, noise=self._noise, time=time, kappa=kappa, image=image).to(
            self._prior.device
        )

    def _tiles(self) -> Iterator[tuple[slice, slice, slice, slice, tuple[slice, slice]]]:
        """Yield for each tile: what to compute (with halo), what to keep, and where that lies within."""

        def cuts(size: int) -> Iterator[tuple[slice, slice, slice]]:
            count, grid = -(-size // self._settings.tile), self._multiple
            for number in range(count):
                # Strided layers see the same grid as in the whole image where tiles begin on it.
                low = number * size // count // grid * grid
                high = (number + 1) * size // count // grid * grid if number + 1 < count else size
                start, stop = max(0, low - HALO), min(size, high + HALO)
                yield slice(start, stop), slice(low, high), slice(low - start, high - start)

        _, rows, columns = self._prior.shape
        for row in cuts(rows):
            for column in cuts(columns):
                yield row[0], column[0], row[1], column[1], (row[2], column[2])


def sample(
    denoise: Callable[[Tensor, float], Tensor],
    prior: Tensor,
    settings: SamplerSettings,
    consistent: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Return the clean volume (Z, Y, X) from the INR's volume `prior`.

    `denoise(x_t, t)` predicts x_0; `consistent` pulls a prediction towards the projections. `generator`
    lives on the CPU, so that a seed gives the same noise on every device.
    """
    noise = torch.randn(prior.shape, generator=generator).to(prior.device)
    state = prior + settings.kappa * noise
    times = bridge_times(settings.steps)
    for time, following in zip(times, [*times[1:], 0.0], strict=True):
        clean = consistent(denoise(state, time))
        # Euler step of dx/dt = (x_t - x_0) / t.
        state = clean + (following / time) * (state - clean)
    return state
