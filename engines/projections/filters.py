"""Box filters: sums and means over the neighbourhood of each pixel.

Sums of shifted images, doubled on the way: a window of 15 costs four additions along each axis, a tenth of
the library's pooling on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_mean(images: Tensor, window: int) -> Tensor:
    """Return the mean over `window` x `window` pixels (odd) around each pixel of images (M, Y, X).

    At the borders it is the mean over the pixels within the image.
    """
    half = window // 2
    rows, columns = (_counts(size, window, images) for size in images.shape[1:])
    return window_sum(F.pad(images, (half, half, half, half)), window) / (rows[:, None] * columns)


def window_sum(images: Tensor, window: int, every: int = 1) -> Tensor:
    """Return the sums (M, Y - window + 1, X - window + 1) over all windows within images (M, Y, X).

    Along an edge that is shorter than the window, over all of it; of both axes, `every` so many.
    """
    rows, columns = (min(window, edge) for edge in images.shape[1:])
    return _sum_along(_sum_along(images, 1, rows)[:, ::every], 2, columns)[..., ::every]


def local_max(images: Tensor) -> Tensor:
    """Return the largest of the 3 x 3 pixels around each pixel of images (M, Y, X)."""
    rows, columns = images.shape[1:]
    wide = F.pad(images[None], (1, 1, 1, 1), mode="replicate")[0]
    high = torch.maximum(torch.maximum(wide[:, :rows], wide[:, 1:-1]), wide[:, 2:])
    return torch.maximum(torch.maximum(high[..., :columns], high[..., 1:-1]), high[..., 2:])


def _sum_along(images: Tensor, axis: int, window: int) -> Tensor:
    length = images.shape[axis] - window + 1
    sums, width = images, 1  # over `width` pixels from each one on
    total, done = None, 0
    while True:
        if window & width:
            part = sums.narrow(axis, done, length)
            total, done = (part if total is None else total + part), done + width
        if done == window and total is not None:
            return total
        rest = sums.shape[axis] - width
        sums, width = sums.narrow(axis, 0, rest) + sums.narrow(axis, width, rest), 2 * width


def _counts(size: int, window: int, like: Tensor) -> Tensor:
    """Return how many pixels of an axis each window around one of them holds."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    half = window // 2
    return 1 + place.clamp_max(half) + (size - 1 - place).clamp_max(half)
