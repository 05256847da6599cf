"""The denoiser over whole volumes: windows of slices along z, tiles across.

Both have a margin that is discarded, so neither shows in the volume; batches bound the memory of the
features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microdiffusion.engines.diffusion.conditioning import SliceConditions, with_noise
from microdiffusion.engines.diffusion.denoiser import CONTEXT, SLICES, WINDOW
from microdiffusion.engines.diffusion.runtime import Runtime
from microdiffusion.engines.diffusion.sampler import SamplerSettings, bridge_times

HALO = 24  # pixels around a tile that are computed and discarded; a multiple of the network's own
BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 20}
"""Windows times pixels of one pass: bounds the memory of the features, 0.1 GB each on CUDA."""


@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """The network's inputs beside the state, normalised.

    `prior` (Z, Y, X) is the INR's volume, `deviation` (Z, Y, X) its standard deviation, `images` (M, Y, X)
    the projections, `noise` () their rms noise.
    """

    prior: Tensor
    deviation: Tensor
    images: Tensor
    noise: Tensor


class VolumeDenoiser:
    """The denoiser over whole volumes: windows, tiles and guidance.

    Whatever is the same for every sweep of a geometry is kept on the runtime's device, so that a call never
    synchronises with the host. Only the bridge times of `settings` can be evaluated.
    """

    def __init__(self, runtime: Runtime, conditions: SliceConditions, settings: SamplerSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._multiple = runtime.multiple
        self._guided = settings.guidance > 0
        windows = window_indices(len(conditions.nearest))
        self._windows = windows.to(runtime.device)
        self._nearest = conditions.nearest[windows].to(runtime.device)

        def tables(*, image: bool) -> dict[float, Tensor]:
            return {
                time: conditions.table(windows, time=time, kappa=settings.kappa, image=image).to(
                    runtime.device
                )
                for time in bridge_times(settings.steps)
            }

        self._tables = tables(image=True)
        self._blind_tables = tables(image=False) if self._guided else self._tables

    def __call__(self, state: Tensor, shown: NetworkInputs, time: float) -> Tensor:
        """Return the clean volume (Z, Y, X) predicted from the state (Z, Y, X) at `time`."""
        result = torch.empty_like(shown.prior)
        told = with_noise(self._tables[time], shown.noise)
        blind = with_noise(self._blind_tables[time], shown.noise) if self._guided else told
        for rows, columns, keep_rows, keep_columns, inner in self._tiles(*shown.prior.shape[1:]):
            view = (slice(None), rows, columns)
            stacks = (state[view], shown.prior[view], shown.deviation[view])
            part = self._tile(*stacks, shown.images[view], told, blind)
            result[:, keep_rows, keep_columns] = part[:, inner[0], inner[1]]
        return result

    def _tile(
        self, state: Tensor, prior: Tensor, deviation: Tensor, images: Tensor, told: Tensor, blind: Tensor
    ) -> Tensor:
        slices, rows, columns = prior.shape
        pad = (0, -columns % self._multiple, 0, -rows % self._multiple)

        def padded(stack: Tensor) -> Tensor:
            return torch.nn.functional.pad(stack[None], pad, mode="replicate")[0] if any(pad) else stack

        volumes, images = [padded(each) for each in (state, prior, deviation)], padded(images)
        pixels = images.shape[1] * images.shape[2] * (2 if self._guided else 1)
        most = max(1, BATCH_PIXELS.get(images.device.type, 1 << 18) // pixels)
        count = len(self._windows)
        # Passes of equal size: a last one with a single window would cost as much as a full one on a GPU.
        size = -(-count // -(-count // most))
        parts = []
        for some in torch.arange(count, device=images.device).split(size):
            index = self._windows[some]
            inputs = [_gather(each, index) for each in volumes]
            image = _gather(images, self._nearest[some])
            if self._guided:
                # Both branches in one batch; condition dropout trained the blank image.
                inputs = [each.repeat(2, 1, 1, 1) for each in inputs]
                inputs += [torch.cat([image, torch.zeros_like(image)]), torch.cat([told[some], blind[some]])]
                seen, unseen = self._runtime(*inputs).unflatten(0, (2, -1)).unbind(0)
                clean = seen + self._settings.guidance * (seen - unseen)
            else:
                inputs += [image, told[some]]
                clean = self._runtime(*inputs)
            parts.append(clean.flatten(0, 1))
        return torch.cat(parts)[:slices, :rows, :columns]

    def _tiles(
        self, rows: int, columns: int
    ) -> Iterator[tuple[slice, slice, slice, slice, tuple[slice, slice]]]:
        """Yield for each tile: rows and columns to compute (with halo), to keep, and their place within."""

        def cuts(size: int) -> Iterator[tuple[slice, slice, slice]]:
            count, grid = -(-size // self._settings.tile), self._multiple
            for number in range(count):
                # Tiles begin on the grid that strided layers see in the whole image.
                low = number * size // count // grid * grid
                high = (number + 1) * size // count // grid * grid if number + 1 < count else size
                start, stop = max(0, low - HALO), min(size, high + HALO)
                yield slice(start, stop), slice(low, high), slice(low - start, high - start)

        for row in cuts(rows):
            for column in cuts(columns):
                yield row[0], column[0], row[1], column[1], (row[2], column[2])


def _gather(stack: Tensor, index: Tensor) -> Tensor:
    """Return stack[index], copying whole images; indexing with a table copies pixel by pixel."""
    gathered: Tensor = stack.index_select(0, index.flatten()).unflatten(0, index.shape)
    return gathered


def window_indices(slices: int) -> Tensor:
    """Return (B, WINDOW) int64: slice numbers of the windows whose middles tile a volume of `slices`.

    Beyond the ends the outermost slice is repeated; the last middle may reach past the end and is cut off.
    """
    starts = torch.arange(0, slices, SLICES)
    return (starts[:, None] - CONTEXT + torch.arange(WINDOW)[None, :]).clamp_(0, slices - 1)
