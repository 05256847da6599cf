"""Random optics for the training cubes: what a sweep with some beam, step and noise makes of them.

A *group* is a few cubes seen through the same optics, with the prior that the sampler would start from
(the INR's fit, or the closed-form answer, which stands in for a warm INR). Fits are dear and windows are
cheap, so groups live in a ring: each training step draws windows from random groups, and now and then
one group is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.conditioning import SliceConditions
from microdiffusion.engines.denoiser import CONTEXT, SLICES, WINDOW
from microdiffusion.engines.inr import SessionInr, default_bandwidth
from microdiffusion.engines.linear import tikhonov_matrix
from microdiffusion.engines.training.scenes import SIZE
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUBES = 4
KAPPA = 0.1  # largest noise of the bridge, in units of the projections' range
_INR_SHARE = 0.35


@dataclass(slots=True)
class Group:
    """Cubes (CUBES, Z, Y, X) with the same optics: truth, prior, image condition, and their numbers."""

    truth: Tensor
    prior: Tensor
    image: Tensor
    conditions: SliceConditions
    noise: float


@dataclass(slots=True)
class Batch:
    """Inputs of the denoiser and the slices that it should predict."""

    state: Tensor
    prior: Tensor
    image: Tensor
    conditions: Tensor
    truth: Tensor


def random_optics(rng: np.random.Generator) -> tuple[float, float, float]:
    """Return slab length, step and first offset, in slices."""
    length = 6.0 if rng.random() < 0.4 else float(rng.uniform(3, 12))
    kind = rng.random()
    if kind < 0.35:
        step = length
    elif kind < 0.6:
        step = length * float(rng.uniform(1.0, 1.5))
    elif kind < 0.75:
        step = length * 0.5
    else:
        step = length * float(rng.uniform(0.4, 2.0))
    step = float(np.clip(step, 1.5, 16))
    return length, step, float(rng.uniform(0, step))


def make_group(pool: NDArray[np.float16], rng: np.random.Generator, *, inr: bool | None = None) -> Group:
    """Degrade CUBES random cubes of the pool (N, SIZE, SIZE, SIZE)."""
    cubes = torch.from_numpy(pool[rng.integers(len(pool), size=CUBES)].astype(np.float32))
    turned = torch.rot90(cubes, int(rng.integers(4)), (2, 3))
    truth = turned.flip(1) if rng.random() < 0.5 else turned
    truth = truth.transpose(2, 3) if rng.random() < 0.5 else truth

    length, step, offset = random_optics(rng)
    z = sweep_positions(length_um=length, step_um=step, z0_um=0, voxel_z_um=1, shape_z=SIZE, offset_um=offset)
    matrix = projection_operator(z, AxialProfile.box(length), z0_um=0, voxel_z_um=1, shape_z=SIZE)
    operator = torch.from_numpy(matrix.astype(np.float32))
    clean = torch.einsum("mz,bzyx->bmyx", operator, truth)
    if rng.random() < 0.4:
        variance = torch.full_like(clean, float(10 ** rng.uniform(-2.7, -1.3)) ** 2)
    else:
        photons = float(10 ** rng.uniform(1.3, 3.3))
        variance = clean.clamp_min(0) / photons + float(10 ** rng.uniform(-3, -2)) ** 2
    noise_seed = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    projections = clean + variance.sqrt() * torch.randn(clean.shape, generator=noise_seed)

    # The engine's own normalisation, with jitter: a small field's percentiles stand for a large field's.
    flat = projections.flatten(1)
    low = torch.quantile(flat[:, ::7], 0.01, dim=1) * float(rng.uniform(0, 1))
    high = torch.quantile(flat[:, ::7], 0.999, dim=1)
    span = ((high - low).clamp_min(0.05) * float(np.exp(rng.uniform(-0.2, 0.5))))[:, None, None, None]
    low = low[:, None, None, None]
    truth, projections, variance = (truth - low) / span, (projections - low) / span, variance / span**2
    # Zero light lies at or below the normalised zero; the closed form is clipped where light cannot be.
    floor = -low / span

    if rng.random() < _INR_SHARE if inr is None else inr:
        # One field over all cubes side by side: same optics, so the same axial basis serves them.
        wide = projections.permute(1, 2, 0, 3).flatten(2)
        field = SessionInr(
            (SIZE, *wide.shape[1:]),
            bandwidth=default_bandwidth(length, step) * float(rng.uniform(0.7, 1.1)),
            seed=int(rng.integers(1 << 30)),
        )
        base = floor.expand(CUBES, 1, 1, SIZE).permute(1, 2, 0, 3).flatten(2)
        field.fit(
            operator,
            wide,
            variance.permute(1, 2, 0, 3).flatten(2),
            floor=base,
            steps=int(rng.integers(30, 90)),
        )
        prior = field.volume(base).unflatten(2, (CUBES, SIZE)).permute(2, 0, 1, 3)
    else:
        inverse = torch.from_numpy(
            tikhonov_matrix(matrix, float(10 ** rng.uniform(-2.5, -1.5))).astype(np.float32)
        )
        prior = torch.maximum(torch.einsum("zm,bmyx->bzyx", inverse, projections), floor)
    conditions = SliceConditions.of(matrix, z, length)
    return Group(truth, prior, projections[:, conditions.nearest], conditions, float(variance.mean().sqrt()))


def windows_of(group: Group, count: int, rng: np.random.Generator) -> Batch:
    """Draw `count` windows from a group, each with its own time and noise of the bridge."""
    cube = torch.from_numpy(rng.integers(CUBES, size=count))
    start = torch.from_numpy(rng.integers(0, SIZE - SLICES + 1, size=count))
    index = (start[:, None] - CONTEXT + torch.arange(WINDOW)).clamp_(0, SIZE - 1)
    pick = (cube[:, None], index)
    truth, prior, image = group.truth[pick], group.prior[pick], group.image[pick]
    state = torch.empty_like(prior)
    vectors = []
    for number in range(count):
        # Most of the training at the start of the bridge: one evaluation has to be good by itself.
        time = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.05, 1.0))
        kappa = 0.0 if rng.random() < 0.25 else KAPPA * float(rng.uniform(0, 1))
        shown = rng.random() > 0.1
        start_point = prior[number] + kappa * torch.randn(prior[number].shape)
        state[number] = (1 - time) * truth[number] + time * start_point
        if not shown:
            image[number] = 0
        vectors.append(
            group.conditions.vector(
                index[number : number + 1], noise=group.noise, time=time, kappa=kappa, image=shown
            )
        )
    return Batch(state, prior, image, torch.cat(vectors), truth[:, CONTEXT : CONTEXT + SLICES])


class Batches:
    """Endless batches from a ring of groups. `size` windows a batch, half from each of two groups."""

    def __init__(
        self, pool: NDArray[np.float16], *, size: int, seed: int, ring: int = 48, renew_every: int = 4
    ) -> None:
        self._pool = pool
        self._rng = np.random.default_rng(seed)
        self._size = size
        self._every = renew_every
        self._count = 0
        self._ring = [make_group(pool, self._rng) for _ in range(ring)]

    def __next__(self) -> Batch:
        """Return the next batch."""
        self._count += 1
        if self._count % self._every == 0:
            self._ring[self._rng.integers(len(self._ring))] = make_group(self._pool, self._rng)
        parts = [
            windows_of(self._ring[self._rng.integers(len(self._ring))], self._size // 2, self._rng)
            for _ in range(2)
        ]
        return Batch(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("state", "prior", "image", "conditions", "truth")
            )
        )
