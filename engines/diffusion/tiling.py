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


_BLOCK, _WORTH = 16, 0.1


@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """The network's inputs beside the state, normalised.

    `prior` (Z, Y, X) is the INR's volume, `images` (M, Y, X) the projections, `noise` () their rms noise.
    """

    prior: Tensor
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

    def __call__(
        self, state: Tensor, shown: NetworkInputs, time: float, wanted: Tensor | None = None
    ) -> Tensor:
        """Return the clean volume (Z, Y, X) predicted from the state (Z, Y, X) at `time`.

        `wanted` (N,) are the windows to evaluate, see `worth_evaluating`; None for all. Elsewhere the volume
        is the prior.
        """
        if wanted is not None and not len(wanted):
            return shown.prior
        result = torch.empty_like(shown.prior)
        told = with_noise(self._tables[time], shown.noise)
        blind = with_noise(self._blind_tables[time], shown.noise) if self._guided else told
        for rows, columns, keep_rows, keep_columns, inner in self._tiles(*shown.prior.shape[1:]):
            view = (slice(None), rows, columns)
            part = self._tile(state[view], shown.prior[view], shown.images[view], told, blind, wanted)
            result[:, keep_rows, keep_columns] = part[:, inner[0], inner[1]]
        return result

    def _tile(
        self,
        state: Tensor,
        prior: Tensor,
        images: Tensor,
        told: Tensor,
        blind: Tensor,
        wanted: Tensor | None,
    ) -> Tensor:
        slices, rows, columns = prior.shape
        pad = (0, -columns % self._multiple, 0, -rows % self._multiple)

        def padded(stack: Tensor) -> Tensor:
            return torch.nn.functional.pad(stack[None], pad, mode="replicate")[0] if any(pad) else stack

        state, prior, images = padded(state), padded(prior), padded(images)
        pixels = prior.shape[1] * prior.shape[2] * (2 if self._guided else 1)
        most = max(1, BATCH_PIXELS.get(prior.device.type, 1 << 18) // pixels)
        every = torch.arange(len(self._windows), device=prior.device) if wanted is None else wanted
        # Passes of equal size: a last one with a single window would cost as much as a full one on a GPU.
        size = -(-len(every) // -(-len(every) // most))
        parts = []
        for some in every.split(size):
            index = self._windows[some]
            state_w, prior_w = _gather(state, index), _gather(prior, index)
            image_w = _gather(images, self._nearest[some])
            if self._guided:
                # Both branches in one batch; condition dropout trained the blank image.
                both = self._runtime(
                    state_w.repeat(2, 1, 1, 1),
                    prior_w.repeat(2, 1, 1, 1),
                    torch.cat([image_w, torch.zeros_like(image_w)]),
                    torch.cat([told[some], blind[some]]),
                )
                seen, unseen = both.unflatten(0, (2, -1)).unbind(0)
                clean = seen + self._settings.guidance * (seen - unseen)
            else:
                clean = self._runtime(state_w, prior_w, image_w, told[some])
            parts.append(clean.flatten(0, 1))
        clean = torch.cat(parts)
        if wanted is not None:
            places = (wanted[:, None] * SLICES + torch.arange(SLICES, device=wanted.device)).flatten()
            inside = places < slices
            clean = prior.index_copy(0, places[inside], clean[inside])
        return clean[:slices, :rows, :columns]

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


def worth_evaluating(share: Tensor) -> Tensor:
    """Return the windows (N,) in which the network has something to say, a power of two of them or all.

    `share` (Z, Y, X) is how much of the network's correction counts. What is asked is the mean over blocks of
    `SLICES` x 16 x 16 voxels: a structure that is new fills one, a scattered voxel does not. A power of two,
    as a runtime compiles every number of windows for itself.
    """
    count = -(-len(share) // SLICES)
    padded = torch.nn.functional.pad(share, (0, 0, 0, 0, 0, count * SLICES - len(share)))
    slabs = padded.unflatten(0, (count, SLICES)).mean(1)
    most = torch.nn.functional.avg_pool2d(slabs[:, None], _BLOCK, ceil_mode=True).amax((1, 2, 3))
    needed = int((most > _WORTH).sum())
    if not needed:
        return torch.empty(0, dtype=torch.int64)
    return most.topk(min(count, 1 << (needed - 1).bit_length())).indices.sort().values


def window_indices(slices: int) -> Tensor:
    """Return (B, WINDOW) int64: slice numbers of the windows whose middles tile a volume of `slices`.

    Beyond the ends the outermost slice is repeated; the last middle may reach past the end and is cut off.
    """
    starts = torch.arange(0, slices, SLICES)
    return (starts[:, None] - CONTEXT + torch.arange(WINDOW)[None, :]).clamp_(0, slices - 1)
