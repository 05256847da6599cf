"""Rigid motion and bleaching between the state of a session and a new sweep.

The predicted projections are linear in a small shift and in one factor of brightness, so both are a
robust least-squares problem of four unknowns over all pixels (Gauss-Newton; Tukey's biweight leaves out
what changes for other reasons). Images are moved to the specimen, once, and slabs are placed in the
specimen's frame: the state itself is never interpolated. Pure functions of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Operator = "Callable[[float], NDArray[np.float64]]"
_STEPS = 3
_TUKEY = 4.685  # of the deviation: 95 % efficient for normal errors (Holland & Welsch 1977)
_FURTHEST = 1.0  # voxels that a step may go
_HALF = 0.25  # slices: of the difference that stands for the derivative along z
_MARGIN = 4  # pixels at the border, where neighbours are missing
# Of the robust misfit before: what explains less is no motion but the model's own error, which looks like
# motion along z and dimming more than like motion sideways.
_WORTH, _WORTH_MORE = 0.97, 0.93
UNMOVED = 0.02
"""Voxels: a smaller shift is none, so that what keeps still is not interpolated."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Where the specimen is.

    Attributes
    ----------
    shift : (z, y, x)
        Voxels from where it was in the first sweep.
    brightness : float
        Of all of it, relative to the first sweep.
    """

    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0

    @property
    def moved(self) -> bool:
        """Whether the shift is worth an interpolation."""
        return max(map(abs, self.shift)) > UNMOVED


def register(
    field: Tensor,
    operator: Callable[[float], NDArray[np.float64]],
    images: Tensor,
    noise: float,
    before: Motion,
    *,
    along_z: bool,
) -> Motion:
    """Return where the specimen is in a sweep.

    Parameters
    ----------
    field : (Z, P)
        What the state predicts, in the specimen's frame, above the level of no light.
    operator : callable
        Returns the operator (M, Z) of the sweep's slabs for a specimen that lies so many slices deeper.
    images : (M, Y, X)
        As measured, above the level of no light.
    noise : float
        Standard deviation of their noise.
    before : Motion
        Where it was.
    along_z : bool
        Whether the state knows enough of z to tell motion along it.
    """
    size = images.shape[1:]
    inside = (
        slice(None),
        *(slice(_MARGIN, -_MARGIN) if edge > 4 * _MARGIN else slice(None) for edge in size),
    )

    def looked(motion: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return what is predicted and what is left of the measured images, both (M, Y, X)."""
        seen = (_tensor(operator(motion[0]), field) @ field).unflatten(1, size)
        return seen, moved(images, motion[1], motion[2]) / motion[3] - seen

    start = np.array([*before.shift, before.brightness])
    _, left = looked(start)
    deviation = max(1.4826 * float(left[inside].abs().median()), noise)

    def cost(left: Tensor) -> float:
        """Return the mean of Tukey's loss, from 0 to 1."""
        inner = (1 - (left[inside] / (_TUKEY * deviation)).square()).clamp_min(0.0)
        return 1.0 - float((inner**3).mean())

    motion, costs = start, cost(left)
    # Sideways first, which is seen best; motion along z and brightness have to be worth it by themselves.
    for free in ((1, 2), (0, 1, 2), (1, 2, 3)) if along_z else ((1, 2),):
        tried = _fitted(looked, operator, field, inside, motion, free, deviation)
        now = cost(looked(tried)[1])
        if now < (_WORTH if free == (1, 2) else _WORTH_MORE) * costs:
            motion, costs = tried, now
    return Motion((float(motion[0]), float(motion[1]), float(motion[2])), float(motion[3]))


def _fitted(
    looked: Callable[[NDArray[np.float64]], tuple[Tensor, Tensor]],
    operator: Callable[[float], NDArray[np.float64]],
    field: Tensor,
    inside: tuple[slice, ...],
    motion: NDArray[np.float64],
    free: tuple[int, ...],
    deviation: float,
) -> NDArray[np.float64]:
    """Return the motion (z, y, x, brightness) after some Gauss-Newton steps in what is free."""
    motion = motion.copy()
    for _ in range(_STEPS):
        seen, left = looked(motion)
        down, right = torch.gradient(seen, dim=(1, 2)) if min(seen.shape[1:]) > 1 else (seen * 0, seen * 0)
        deeper = operator(motion[0] + _HALF) - operator(motion[0] - _HALF) if 0 in free else None
        along = (
            seen
            if deeper is None
            else (_tensor(deeper, field) @ field).unflatten(1, seen.shape[1:]) / (2 * _HALF)
        )
        columns = (along, -down, -right, seen)
        jacobian = torch.stack([columns[number][inside].flatten() for number in free], 1).double()
        misfit = left[inside].flatten().double()
        weight = (1 - (misfit / (_TUKEY * deviation)).square()).clamp_min(0.0).square()
        normal = jacobian.T @ (weight[:, None] * jacobian)
        normal.diagonal().add_(1e-6 * float(normal.diagonal().max()) + 1e-12)
        change = torch.linalg.solve_ex(normal, jacobian.T @ (weight * misfit)).result.cpu().numpy()
        if not np.all(np.isfinite(change)):
            return motion
        for number, by in zip(free, change, strict=True):
            if number == 3:
                motion[3] *= float(np.clip(1 + by, 0.5, 2.0))
            else:
                motion[number] += float(np.clip(by, -_FURTHEST, _FURTHEST))
    return motion


def moved(images: Tensor, down: float, right: float) -> Tensor:
    """Return images (M, Y, X) read so many pixels further down and right (cubic; the border goes on)."""
    if max(abs(down), abs(right)) <= UNMOVED:
        return images
    height, width = images.shape[1:]
    rows = torch.arange(height, dtype=images.dtype, device=images.device) + down
    columns = torch.arange(width, dtype=images.dtype, device=images.device) + right
    grid = torch.stack(torch.meshgrid(_unit(columns, width), _unit(rows, height), indexing="xy"), dim=-1)
    result: Tensor = F.grid_sample(
        images[None], grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )[0]
    return result


def moved_along_z(volume: Tensor, deeper: float) -> Tensor:
    """Return a volume (Z, Y, X) read so many slices deeper (cubic; the border goes on)."""
    if abs(deeper) <= UNMOVED:
        return volume
    slices = len(volume)
    places = np.arange(slices) + deeper
    first = np.floor(places).astype(int)
    part = places - first
    # Catmull and Rom's cubic through four neighbours.
    weights = (
        0.5 * part * (-1 + part * (2 - part)),
        0.5 * (2 + part**2 * (-5 + 3 * part)),
        0.5 * part * (1 + part * (4 - 3 * part)),
        0.5 * part**2 * (part - 1),
    )
    matrix = np.zeros((slices, slices))
    for offset, weight in enumerate(weights, -1):
        np.add.at(matrix, (np.arange(slices), np.clip(first + offset, 0, slices - 1)), weight)
    result: Tensor = (_tensor(matrix, volume) @ volume.flatten(1)).unflatten(1, volume.shape[1:])
    return result


def _unit(places: Tensor, size: int) -> Tensor:
    return places / max(size - 1, 1) * 2 - 1


def _tensor(array: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(like.device)
