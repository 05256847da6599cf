"""What the denoiser is trained for: the volume that is served, after the pull towards the projections.

Each term is relative to the error of the state that the network started from. Gain is what is measured, in
decibel, so a cube that nobody can restore must not drown the others; and along the bridge the task gets
smaller with the state's own error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.projections import DataConsistency

if TYPE_CHECKING:
    from microdiffusion.engines.training.degrade import Batch, Column

_RAW_SHARE = 0.3
"""Weight of the network's own answer, before the pull: where the pull clips, only this has a gradient."""
_SSIM_SHARE = 0.5


def served(column: Column, predicted: Tensor) -> Tensor:
    """Return what the sampler makes of a prediction (Z, Y, X): pulled towards the projections."""
    group, floor = column.group, column.group.floor[column.cube]
    pull = DataConsistency(group.operator)
    images, variance = group.projections[column.cube], group.variance[column.cube]
    return pull(predicted - floor, images - floor, variance) + floor


def loss_of(batch: Batch, predicted: Tensor) -> Tensor:
    """Return the loss of the clean slices (B, SLICES, Y, X) that the network predicts for a batch."""
    volumes = predicted.unflatten(0, (len(batch.columns), -1)).flatten(1, 2)
    terms = [_column_loss(column, volume) for column, volume in zip(batch.columns, volumes, strict=True)]
    return torch.stack(terms).mean()


def _column_loss(column: Column, predicted: Tensor) -> Tensor:
    truth = column.truth
    answer = served(column, predicted)
    before, prior = column.state - truth, column.prior - truth
    loss = relative_error(answer - truth, before, prior)
    raw = relative_error(predicted - truth, before, prior)
    similar, reference = 1 - _ssim(answer[::2], truth[::2]), 1 - _ssim(column.prior[::2], truth[::2])
    return (loss + _RAW_SHARE * raw) / (1 + _RAW_SHARE) + _SSIM_SHARE * similar / (reference + 0.02)


def relative_error(error: Tensor, before: Tensor, prior: Tensor) -> Tensor:
    """Return the error (Z, Y, X) relative to the state's error `before`, mean over groups of slices.

    Squares for the bright structures (PSNR), absolute values for the background (SSIM). A share of the
    prior's error keeps the last steps of the bridge, where next to nothing is wrong, from ruling the rest;
    and a state of mere noise is not worse than the prior, which the network sees as well.
    """
    error, before, prior = (x.unflatten(0, (8, -1)).flatten(1) for x in (error, before, prior))
    start, all_of_it = before.square().mean(1), prior.square().mean(1)
    squares = error.square().mean(1) / (torch.minimum(start, all_of_it) + 0.1 * all_of_it + 1e-4)
    start, all_of_it = before.abs().mean(1), prior.abs().mean(1)
    absolutes = error.abs().mean(1) / (torch.minimum(start, all_of_it) + 0.3 * all_of_it + 3e-3)
    return (squares + absolutes).mean()


def _ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """Return the mean SSIM of slices (N, Y, X) at a data range of 1, uniform window of 7."""

    def box(images: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(images[:, None], (7, 1), stride=1), (1, 7), stride=1)[:, 0]

    mean_a, mean_b = box(estimate), box(truth)
    var_a = box(estimate * estimate) - mean_a * mean_a
    var_b = box(truth * truth) - mean_b * mean_b
    both = box(estimate * truth) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2))).mean()
