"""Random optics for the training cubes: how sweeps with some beam, step and noise would see them.

A *group* is a few cubes seen through the same optics, with the prior that the sampler would start from: what
a session has learned from a random number of earlier sweeps and this one. `batches` keeps a ring of groups.
A cube is cut into its windows exactly as the sampler cuts a volume, so that the loss can judge the network's
answer after the data consistency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.diffusion import SLICES, SliceConditions, window_indices
from microdiffusion.engines.projections import estimate_sigma
from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.histories import earlier_sweeps, random_history, random_offsets
from microdiffusion.engines.training.session_priors import CubeSweep, session_prior
from microdiffusion.optics import AxialProfile, projection_operator, sweep_offset, sweep_positions

CUBES = 4
WINDOWS = SIZE // SLICES
"""Windows of one cube: a cube's contribution to a batch."""
KAPPA = 0.1  # largest noise of the bridge, in units of the projections' range


@dataclass(slots=True)
class Group:
    """Cubes (CUBES, Z, Y, X) with the same optics, normalised as the engine does.

    Attributes
    ----------
    truth, prior, deviation : (CUBES, Z, Y, X)
        `deviation` is the standard deviation that the session knows the prior by.
    projections, variance : (CUBES, M, Y, X)
        `variance` as the engine would estimate it, not always that of the noise.
    floor : (CUBES, 1, 1, 1)
        Level of zero light.
    operator : (M, Z)
    leeway : (Z, Z)
        What the session leaves open to the network; see `inr.leeway`.
    """

    truth: Tensor
    prior: Tensor
    deviation: Tensor
    projections: Tensor
    variance: Tensor
    floor: Tensor
    operator: Tensor
    leeway: Tensor
    conditions: SliceConditions


@dataclass(slots=True)
class CubeColumn:
    """One cube of a batch: the sampler's state, and the tensors that its loss needs; see `Group`."""

    state: Tensor
    truth: Tensor
    prior: Tensor
    projections: Tensor
    variance: Tensor
    floor: Tensor
    operator: Tensor
    leeway: Tensor

    def to(self, device: torch.device) -> CubeColumn:
        """Return the column on `device`."""
        return CubeColumn(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(slots=True)
class Batch:
    """Inputs of the denoiser (B, WINDOW, Y, X), B = columns times WINDOWS, and the cubes they came from."""

    state: Tensor
    prior: Tensor
    deviation: Tensor
    image: Tensor
    conditions: Tensor
    columns: list[CubeColumn]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        state, prior, deviation, image, conditions = (
            part.to(device, non_blocking=True)
            for part in (self.state, self.prior, self.deviation, self.image, self.conditions)
        )
        columns = [column.to(device) for column in self.columns]
        return Batch(state, prior, deviation, image, conditions, columns)


@dataclass(frozen=True, slots=True)
class Optics:
    """The optics of one session, in slices and in the units of the cubes.

    Attributes
    ----------
    profile : AxialProfile
        With a spacing in slices.
    step : float
        Distance of neighbouring slabs, slices.
    read, shot : float
        Variance of the noise in the dark, and per unit of light.
    calibrated : bool
        Whether the camera's numbers are known; else the engine estimates the noise.
    """

    profile: AxialProfile
    step: float
    read: float
    shot: float
    calibrated: bool


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
    elif kind < 0.9:
        step = length * float(rng.uniform(0.4, 2.0))
    else:  # gaps that no slab saw
        step = float(rng.uniform(length, 16))
    step = float(np.clip(step, 1.5, 16))
    return length, step, float(rng.uniform(0, step))


def make_group(pool: NDArray[np.float16], rng: np.random.Generator, optics: Optics | None = None) -> Group:
    """Degrade CUBES random cubes of the pool (N, SIZE, SIZE, SIZE), by random optics or by `optics`."""
    cubes = torch.from_numpy(pool[rng.integers(len(pool), size=2 * CUBES)].astype(np.float32))
    cubes = torch.rot90(cubes, int(rng.integers(4)), (2, 3))
    cubes = cubes.flip(1) if rng.random() < 0.5 else cubes
    cubes = cubes.transpose(2, 3) if rng.random() < 0.5 else cubes
    truth, others = cubes.split(CUBES)

    if optics is None:
        length, step, offset = random_optics(rng)
        profile = AxialProfile.box(length)
    else:
        profile, length, step = optics.profile, optics.profile.length_um, optics.step
        offset = float(rng.uniform(0, step))
    seen = _exposed(rng, profile, step, offset, truth, others, _random_noise(rng, optics))
    last = seen[-1]

    # The engine's own normalisation, with jitter: a small field's percentiles stand for a large field's.
    flat = last.projections.flatten(1)
    low = torch.quantile(flat[:, ::7], 0.01, dim=1) * float(rng.uniform(0, 1))
    high = torch.quantile(flat[:, ::7], 0.999, dim=1)
    span = ((high - low).clamp_min(0.05) * float(np.exp(rng.uniform(-0.2, 0.5))))[:, None, None, None]
    low = low[:, None, None, None]
    estimated = rng.random() < 0.5 if optics is None else not optics.calibrated
    for each in seen:
        if estimated:
            # No camera numbers: one variance, and texture counts as noise in it, as it will in the engine.
            sigma = torch.tensor([estimate_sigma(stack) for stack in each.projections])
            each.variance = (sigma**2)[:, None, None, None].expand_as(each.projections)
        each.projections = (each.projections - low) / span
        each.variance = (each.variance / span**2).clamp_min(1e-8)
    truth = (truth - low) / span
    # Zero light lies at or below the normalised zero; no answer is darker.
    floor = -low / span
    prior, deviation, leeway = session_prior(rng, profile, seen, floor)
    conditions = SliceConditions.of(last.matrix, last.centres, length)
    return Group(
        truth,
        prior,
        deviation,
        last.projections,
        last.variance,
        floor,
        torch.from_numpy(last.matrix.astype(np.float32)),
        leeway,
        conditions,
    )


def _random_noise(rng: np.random.Generator, optics: Optics | None) -> Callable[[Tensor], Tensor]:
    """Return what gives the variance of the noise of clean projections."""
    if optics is not None:
        return lambda clean: (optics.read + optics.shot * clean.clamp_min(0)).clamp_min(1e-8)
    if rng.random() < 0.4:
        white = float(10 ** rng.uniform(-2.7, -1.3)) ** 2
        return lambda clean: torch.full_like(clean, white)
    photons, read = float(10 ** rng.uniform(1.3, 3.3)), float(10 ** rng.uniform(-3, -2)) ** 2
    return lambda clean: clean.clamp_min(0) / photons + read


def _exposed(
    rng: np.random.Generator,
    profile: AxialProfile,
    step: float,
    offset: float,
    truth: Tensor,
    others: Tensor,
    variance_of: Callable[[Tensor], Tensor],
) -> list[CubeSweep]:
    """Return the sweeps of a session, in counts; the last one shows `truth` (CUBES, Z, Y, X)."""
    earlier = earlier_sweeps(rng)
    history, offsets = random_history(rng, truth, others, earlier), random_offsets(rng)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    seen = []
    for ago in range(earlier, -1, -1):
        begins = (offset + sweep_offset(earlier - ago, offsets) * step) % step
        centres = sweep_positions(
            length_um=profile.length_um, step_um=step, z0_um=0, voxel_z_um=1, shape_z=SIZE, offset_um=begins
        )
        matrix = projection_operator(centres, profile, z0_um=0, voxel_z_um=1, shape_z=SIZE)
        clean = torch.einsum("mz,bzyx->bmyx", torch.from_numpy(matrix.astype(np.float32)), history(ago))
        variance = variance_of(clean)
        noise = variance.sqrt() * torch.randn(clean.shape, generator=generator)
        seen.append(CubeSweep(centres, matrix, clean + noise, variance))
    return seen


def batch_of(groups: list[Group], rng: np.random.Generator, *, at_start: bool = False) -> Batch:
    """Draw one cube of each group and cut it into windows.

    Each is somewhere on the way from the prior (time 1, with noise κ) to the truth; `at_start`: at the
    prior itself, without noise.
    """
    index = window_indices(SIZE)
    states, priors, deviations, images, vectors, columns = [], [], [], [], [], []
    for group in groups:
        cube = int(rng.integers(CUBES))
        prior, stack, variance = group.prior[cube], group.projections[cube], group.variance[cube]
        time, kappa = 1.0, 0.0
        # Most of the training at the start: one evaluation has to be good by itself.
        if not at_start and rng.random() >= 0.8:
            time = float(rng.uniform(0.05, 1.0))
        if time < 1.0:
            # On the way the state is always noisy: prior and a noiseless state would give the truth away.
            kappa = KAPPA * float(rng.uniform(0.1, 1))
        elif not at_start and rng.random() >= 0.5:
            kappa = KAPPA * float(rng.uniform(0, 1))
        state = (1 - time) * group.truth[cube] + time * (prior + kappa * torch.randn(prior.shape))
        shown = bool(rng.random() > 0.1)
        noise = float(variance.mean().sqrt())
        states.append(state[index])
        priors.append(prior[index])
        deviations.append(group.deviation[cube][index])
        images.append(stack[group.conditions.nearest[index]] * float(shown))
        vectors.append(group.conditions.vector(index, noise=noise, time=time, kappa=kappa, image=shown))
        truth, floor = group.truth[cube], group.floor[cube]
        columns.append(CubeColumn(state, truth, prior, stack, variance, floor, group.operator, group.leeway))
    return Batch(
        torch.cat(states),
        torch.cat(priors),
        torch.cat(deviations),
        torch.cat(images),
        torch.cat(vectors),
        columns,
    )
