"""Rigid motion and bleaching between the state of a session and a new sweep.

The predicted projections are linear in a small shift and in one factor of brightness, so both are a
robust least-squares problem of four unknowns over all pixels (Gauss-Newton; Tukey's biweight leaves out
what changes for other reasons). Images are moved to the specimen, once, and slabs are placed in the
specimen's frame: the state itself is never interpolated. Pure functions of tensors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.projections import tensor_of

Operator = "Callable[[float], NDArray[np.float64]]"
_STEPS = 3
_TUKEY = 4.685  # of the deviation: 95 % efficient for normal errors (Holland & Welsch 1977)
_FURTHEST = 1.0  # voxels that a step may go
_SMALL = 0.003  # voxels: a step that changes nothing any more
_HALF = 0.25  # slices: of the difference that stands for the derivative along z
_PIXELS = 4096  # of an image, enough for four unknowns
_COARSE_FROM = 64  # pixels of an edge: pairs of pixels tell motion as well
_MARGIN = 4  # pixels at the border, where neighbours are missing
# Of the robust misfit before: what explains less is no motion but the model's own error, which looks like
# motion along z and dimming more than like motion sideways.
_WORTH, _WORTH_MORE = 0.98, 0.93
_HOPELESS = 0.3  # of the gain that a motion has to be worth: a first step that promises less is not followed
UNMOVED = 0.02
"""Voxels: a smaller shift is none, so that what keeps still is not interpolated."""


@dataclass(frozen=True, slots=True)
class Motion:
    """The place of the specimen.

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
        """True where the shift is worth an interpolation."""
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
    coarse = 2 if min(images.shape[1:]) >= _COARSE_FROM else 1
    if coarse == 2:
        field, images = _halved(field.unflatten(1, images.shape[1:])).flatten(1), _halved(images)
    size = images.shape[1:]
    every = max(1, math.isqrt(size.numel() // _PIXELS))
    inside = (
        slice(None),
        *(
            slice(_MARGIN, -_MARGIN, every) if edge > 4 * _MARGIN else slice(None, None, every)
            for edge in size
        ),
    )

    @functools.cache  # most steps go sideways
    def expected(z: float) -> tuple[Tensor, Tensor]:
        """Return what is predicted (M, Y, X) at a depth, and how it follows the motion (4, N)."""

        def seen_at(depth: float) -> Tensor:
            seen: Tensor = (tensor_of(operator(depth), field.device) @ field).unflatten(1, size)
            return seen

        seen = seen_at(z)
        down, right = torch.gradient(seen, dim=(1, 2)) if min(size) > 1 else (seen * 0, seen * 0)
        along = torch.zeros_like(seen)
        if along_z:
            along = (seen_at(z + _HALF) - seen_at(z - _HALF)) / (2 * _HALF)
        return seen, torch.stack([each[inside].flatten() for each in (along, -down, -right, seen)])

    def left_at(motion: NDArray[np.float64]) -> Tensor:
        """Return what is left of the measured images (N,)."""
        there = moved(images, (0.0, motion[1], motion[2])) / motion[3]
        left: Tensor = (there - expected(motion[0])[0])[inside].flatten()
        return left

    def linear(motion: NDArray[np.float64], left: Tensor) -> _Linear:
        """Return the problem about a motion, from what is left there."""
        return _Linear.of(motion, expected(motion[0])[1], left, _TUKEY * deviation)

    z, y, x = before.shift
    start = np.array([z, y / coarse, x / coarse, before.brightness])
    left = left_at(start)
    deviation = max(1.4826 * float(left.abs().median()), noise / coarse)
    here = linear(start, left)
    # Sideways first, which is seen best; brightness and motion along z have to be worth it by themselves, in
    # this order: dimming looks like motion along z more than the other way round.
    for free in ((1, 2), (1, 2, 3), (0, 1, 2)) if along_z else ((1, 2),):
        needed = (_WORTH if free == (1, 2) else _WORTH_MORE) * here.cost
        tried = here
        for _ in range(_STEPS):
            change, gain = tried.step(free)
            if change is None or (tried is here and gain < _HOPELESS * (here.cost - needed)):
                break
            motion = tried.motion + change
            tried = linear(motion, left_at(motion))
            if np.abs(change).max() < _SMALL:
                break
        if tried.cost < needed:
            here = tried
    z, y, x, brightness = here.motion.tolist()
    return Motion((z, y * coarse, x * coarse), brightness)


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """The least-squares problem about a motion (z, y, x, brightness).

    Tukey's loss there, its mean, from 0 to 1; the normal matrix (4, 4) and its right-hand side (4,) in units
    of it.
    """

    motion: NDArray[np.float64]
    cost: float
    normal: NDArray[np.float64]
    gradient: NDArray[np.float64]

    @classmethod
    def of(cls, motion: NDArray[np.float64], jacobian: Tensor, misfit: Tensor, limit: float) -> _Linear:
        """Return it from the Jacobian (4, N) and the misfit (N,), which counts within `limit`."""
        inner = (1 - (misfit / limit).square()).clamp_min(0.0)
        weight = inner.square()
        weighted = weight * jacobian
        numbers = torch.cat([weighted @ jacobian.T, (weighted @ misfit)[None]])
        numbers *= 3 / (len(misfit) * limit**2)  # the loss's slope over the squared misfit
        found = torch.cat([numbers.flatten(), 1.0 - (weight * inner).mean()[None]]).double().cpu().numpy()
        return cls(motion, float(found[-1]), found[:16].reshape(4, 4), found[16:20])

    def step(self, free: tuple[int, ...]) -> tuple[NDArray[np.float64] | None, float]:
        """Return the change of the motion in what is free, and by how much it should lower the loss."""
        part, gradient = self.normal[np.ix_(free, free)], self.gradient[list(free)]
        part = part + (1e-6 * part.diagonal().max() + 1e-12) * np.eye(len(free))
        found = np.linalg.solve(part, gradient)
        if not np.all(np.isfinite(found)):
            return None, 0.0
        change = np.zeros(4)
        change[list(free)] = found.clip(-_FURTHEST, _FURTHEST)
        change[3] = self.motion[3] * (np.clip(1 + change[3], 0.5, 2.0) - 1)
        return change, float(found @ gradient)


def moved(volume: Tensor, shift: tuple[float, float, float]) -> Tensor:
    """Return a stack (Z, Y, X) read so many voxels (z, y, x) further on; the border goes on.

    Catmull and Rom's cubic, one axis after the other; an axis that is as good as unmoved is not touched.
    """
    for axis, by in enumerate(shift):
        if abs(by) > UNMOVED:
            volume = _along(volume, axis, by)
    return volume


def moved_labels(volume: Tensor, shift: tuple[float, float, float]) -> Tensor:
    """Return `moved` for numbers that have nothing between them: by whole voxels."""
    for axis, by in enumerate(map(round, shift)):
        if by:
            volume = _further(volume, axis, by, volume.shape[axis])
    return volume


def _along(volume: Tensor, axis: int, by: float) -> Tensor:
    first = math.floor(by)
    part, size = by - first, volume.shape[axis]
    near = _further(volume, axis, first - 1, size + 3)
    weights = (
        0.5 * part * (-1 + part * (2 - part)),
        0.5 * (2 + part**2 * (-5 + 3 * part)),
        0.5 * part * (1 + part * (4 - 3 * part)),
        0.5 * part**2 * (part - 1),
    )
    result = near.narrow(axis, 0, size) * weights[0]
    for number in range(1, 4):
        result.add_(near.narrow(axis, number, size), alpha=weights[number])
    return result


def _halved(stack: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels; sums of views, three times as fast as pooling."""
    rows, columns = (edge // 2 * 2 for edge in stack.shape[1:])
    rows_of_two = stack[:, 0:rows:2] + stack[:, 1:rows:2]
    return (rows_of_two[..., 0:columns:2] + rows_of_two[..., 1:columns:2]).mul_(0.25)


def _further(volume: Tensor, axis: int, by: int, size: int) -> Tensor:
    """Return `size` voxels along an axis, from voxel `by` on; whole rows, four times as fast as a gather."""
    edge = volume.shape[axis]
    before, after = max(0, min(-by, size)), max(0, min(by + size - edge, size))
    first, last = (volume.narrow(axis, place, 1) for place in (0, edge - 1))
    inside = volume.narrow(axis, min(max(by, 0), edge), size - before - after)
    return torch.cat([*[first] * before, inside, *[last] * after], axis)
