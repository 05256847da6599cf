"""Voxels by their age: the most frequent one, and what a table with a row for each age says of each voxel.

Most of a specimen has kept still equally long, so one product serves it, and the others are looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr.covariance import OLDEST

if TYPE_CHECKING:
    from microdiffusion.engines.inr.covariance import KalmanGain

_PIXELS = 512  # enough for a choice
_VOXELS = 1 << 17  # that are updated one by one at a time


def common_age(age: Tensor) -> int:
    """Return the most frequent of the ages (N, P)."""
    return int(torch.bincount(age[:, :: max(1, age.shape[1] // _PIXELS)].flatten()).argmax())


def age_shares(age: Tensor) -> NDArray[np.float64]:
    """Return the share (ages,) of the voxels (N, P) that have each age, from 0 on."""
    some = age[:, :: max(1, age.shape[1] // _PIXELS)].flatten().long()
    count = torch.bincount(some, minlength=OLDEST + 1).double().cpu().numpy()
    shares: NDArray[np.float64] = count / max(count.sum(), 1.0)
    return shares


def by_age(table: Tensor, age: Tensor) -> Tensor:
    """Return the numbers (Z, Y, X) of a table (ages, Z), from age 1, for the ages of voxels (Z, Y, X)."""
    if age.device.type != "cpu":
        row = (age.long() - 1).clamp_(0, len(table) - 1)
        return table[row, torch.arange(len(row), device=row.device)[:, None, None]]
    # numpy looks bytes up four times as fast as torch does
    result = torch.empty(age.shape)
    for numbers, ages, out in zip(table.T, age, result, strict=True):
        np.take(numbers[[0, *range(len(table))]].numpy(), ages.numpy(), out=out.numpy(), mode="clip")
    return result


def gained(before: Tensor, age: Tensor, gains: list[KalmanGain], rows: slice, left: Tensor) -> Tensor:
    """Return slices of a field (N, P) with what is left of the projections (2 M, P), by each voxel's gain.

    `age` (N, P) are their ages, `rows` says which of all slices they are.
    """
    common = common_age(age)
    field = torch.addmm(before, gains[common].gain[rows], left).flatten()
    others = _places_of_others(age, common)
    before, ages, columns = before.flatten(), age.flatten(), left.T.contiguous()
    table = torch.stack([gain.gain[rows] for gain in gains]).flatten(0, 1)  # (ages * N, 2 M)
    for some in others.split(_VOXELS):
        slice_, pixel = some // left.shape[1], some % left.shape[1]
        row = ages[some].long() * len(age) + slice_
        change = (table.index_select(0, row) * columns.index_select(0, pixel)).sum(1)
        field[some] = before[some] + change
    return field.view_as(age)


def _places_of_others(age: Tensor, common: int) -> Tensor:
    """Return the places (N,) of ages (flat) that are not the common one."""
    if age.device.type == "cpu":  # where numpy compares bytes four times as fast as torch does
        return torch.from_numpy(np.flatnonzero(age.numpy() != common))
    return torch.nonzero(age.flatten() != common)[:, 0]
