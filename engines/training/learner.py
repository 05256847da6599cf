"""The network while it learns: its loss, its optimiser, and the running average (EMA) of its weights.

The loss is that of the volume as served, after the pull towards the projections. Each of its terms is
relative to the error of the state that the network started from: the figure of merit is a gain in decibels,
so a cube that cannot be restored must not drown the others; and along the bridge the task gets smaller with
the error of the state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdiffusion.engines.diffusion import Denoiser, middle_slices
from microdiffusion.engines.projections import DataConsistency, along_z
from microdiffusion.engines.training.degrade import Batch, CubeColumn

_RAW_SHARE = 0.3
"""Weight of the network's own answer, before the pull: where the pull clips, only this has a gradient."""
_SSIM_SHARE = 0.5


class Learner:
    """A network on its way from one set of weights to another.

    Products run in `dtype` (with a gradient scaler for float16), parameters stay in float32.

    Attributes
    ----------
    model, average : Denoiser
        The network, and the average of its weights, which is what is validated and written.
    """

    def __init__(
        self,
        model: Denoiser,
        device: torch.device,
        dtype: torch.dtype,
        *,
        rate: float,
        weight_decay: float,
        share: Callable[[nn.Module], nn.Module] = lambda step: step,
    ) -> None:
        self.average = copy.deepcopy(model).to(device)
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._rate, self._device, self._dtype = rate, device, dtype
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=rate, weight_decay=weight_decay, betas=(0.9, 0.98)
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self._step = share(_Step(self))

    def predict(self, batch: Batch) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) of a batch on the device."""
        half = self._dtype is not torch.float32
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=half):
            change = self.model.correction(
                batch.state, batch.prior, batch.deviation, batch.image, batch.conditions
            )
        clean: Tensor = change.float() + middle_slices(batch.prior)
        return clean

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch; under torchrun its gradients will be averaged over the processes."""
        loss: Tensor = self._step(batch.to(self._device))
        return loss

    def update(
        self, loss: Tensor, iteration: int, share: float, *, warm_up: int, least: float, memory: float
    ) -> None:
        """Descend one step.

        Parameters
        ----------
        iteration, share
            The steps that were taken, and their share of the whole from 0 to 1.
        warm_up : int
            Iterations over which the rate grows to its full value.
        least : float
            Share of the rate that the cosine ends at.
        memory : float
            Most that the average keeps of itself in a step; less in the first steps.
        """
        cosine = least + (1 - least) * 0.5 * (1 + math.cos(math.pi * share))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * min(1.0, (iteration + 1) / warm_up) * cosine
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        kept = min(memory, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - kept)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint has to keep."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


class _Step(nn.Module):
    """From a batch to its loss: one module, so that DistributedDataParallel sees the whole step."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model = learner.model  # registered: its parameters are those of the step
        self._predict = learner.predict

    def forward(self, batch: Batch) -> Tensor:
        return loss_of(batch, self._predict(batch))


def loss_of(batch: Batch, predicted: Tensor) -> Tensor:
    """Return the loss of the clean slices (B, SLICES, Y, X) that the network predicts for a batch."""
    volumes = predicted.unflatten(0, (len(batch.columns), -1)).flatten(1, 2)
    terms = [_column_loss(column, volume) for column, volume in zip(batch.columns, volumes, strict=True)]
    return torch.stack(terms).mean()


def _column_loss(column: CubeColumn, predicted: Tensor) -> Tensor:
    truth, floor = column.truth, column.floor
    pull = DataConsistency(column.operator)
    pulled = pull(predicted - floor, column.projections - floor, column.variance) + floor
    answer = (along_z(column.leeway, pulled - column.prior) + column.prior).clamp_min(floor)
    before, prior = column.state - truth, column.prior - truth
    served = _relative_error(answer - truth, before, prior)
    raw = _relative_error(predicted - truth, before, prior)
    similar, reference = 1 - _ssim(answer[::2], truth[::2]), 1 - _ssim(column.prior[::2], truth[::2])
    return (served + _RAW_SHARE * raw) / (1 + _RAW_SHARE) + _SSIM_SHARE * similar / (reference + 0.02)


def _relative_error(error: Tensor, before: Tensor, prior: Tensor) -> Tensor:
    """Return the error (Z, Y, X) relative to the state's error `before`, mean over groups of slices.

    Squares for the bright structures (PSNR), absolute values for the background (SSIM). A share of the
    prior's error keeps the last steps of the bridge, where next to nothing is wrong, from ruling the rest;
    and a state of mere noise is not worse than the prior, which the network sees as well.
    """
    error, before, prior = (x.unflatten(0, (8, -1)).flatten(1) for x in (error, before, prior))
    start, whole = before.square().mean(1), prior.square().mean(1)
    squares = error.square().mean(1) / (torch.minimum(start, whole) + 0.1 * whole + 1e-5)
    start, whole = before.abs().mean(1), prior.abs().mean(1)
    absolutes = error.abs().mean(1) / (torch.minimum(start, whole) + 0.3 * whole + 1e-3)
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
