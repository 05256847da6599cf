"""Random optics for the training cubes: what a sweep with some beam, step and noise makes of them.

A *group* is a few cubes seen through the same optics, with the prior that the sampler would start from
(the INR's fit, or the closed-form answer, which stands in for a warm INR). `stream` keeps a ring of them.
A cube is cut into its windows exactly as the sampler cuts a volume, so that the
loss can judge what the data consistency makes of the network's answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.diffusion import SLICES, SliceConditions, window_indices
from microdiffusion.engines.inr import SessionInr, default_bandwidth
from microdiffusion.engines.projections import estimate_sigma, quieten, tikhonov_matrix
from microdiffusion.engines.training.data import SIZE
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUBES = 4
WINDOWS = SIZE // SLICES
"""Windows of one cube: what one cube adds to a batch."""
KAPPA = 0.1  # largest noise of the bridge, in units of the projections' range
FLOW_NOISE = 0.5  # where a flow starts from noise alone
_INR_SHARE = 0.35


@dataclass(slots=True)
class Group:
    """Cubes (CUBES, Z, Y, X) with the same optics, normalised as the engine does.

    Attributes
    ----------
    truth, prior : (CUBES, Z, Y, X)
    projections, variance : (CUBES, M, Y, X)
        `variance` is what the engine would believe, not always what the noise was.
    floor : (CUBES, 1, 1, 1)
        Where zero light lies.
    operator : (M, Z)
    conditions : SliceConditions
    """

    truth: Tensor
    prior: Tensor
    projections: Tensor
    variance: Tensor
    floor: Tensor
    operator: Tensor
    conditions: SliceConditions


@dataclass(slots=True)
class Column:
    """One cube of a batch: the sampler's state and what the loss needs; see `Group`."""

    group: Group
    cube: int
    state: Tensor

    def to(self, device: torch.device) -> Column:
        """Return the column on `device`, with nothing of its group but its own cube."""
        group, one = self.group, slice(self.cube, self.cube + 1)
        alone = replace(
            group,
            truth=group.truth[one].to(device, non_blocking=True),
            prior=group.prior[one].to(device, non_blocking=True),
            projections=group.projections[one].to(device, non_blocking=True),
            variance=group.variance[one].to(device, non_blocking=True),
            floor=group.floor[one].to(device, non_blocking=True),
            operator=group.operator.to(device, non_blocking=True),
        )
        return Column(alone, 0, self.state.to(device, non_blocking=True))

    @property
    def truth(self) -> Tensor:
        """The cube itself (Z, Y, X)."""
        return self.group.truth[self.cube]

    @property
    def prior(self) -> Tensor:
        """What the sampler starts from (Z, Y, X)."""
        return self.group.prior[self.cube]


@dataclass(slots=True)
class Batch:
    """Inputs of the denoiser (B, WINDOW, Y, X), B = columns times WINDOWS, and the cubes they came from."""

    state: Tensor
    prior: Tensor
    image: Tensor
    conditions: Tensor
    columns: list[Column]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, of its groups only the cubes that it needs."""
        if self.state.device == device:
            return self
        return Batch(
            self.state.to(device, non_blocking=True),
            self.prior.to(device, non_blocking=True),
            self.image.to(device, non_blocking=True),
            self.conditions.to(device, non_blocking=True),
            [column.to(device) for column in self.columns],
        )


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
    gauged : bool
        Whether the camera's numbers are known; else the engine estimates the noise.
    """

    profile: AxialProfile
    step: float
    read: float
    shot: float
    gauged: bool


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


def make_group(
    pool: NDArray[np.float16],
    rng: np.random.Generator,
    *,
    inr: bool | None = None,
    optics: Optics | None = None,
) -> Group:
    """Degrade CUBES random cubes of the pool (N, SIZE, SIZE, SIZE), by random optics or by `optics`.

    `inr` says whether the prior is an INR's fit; None: by chance.
    """
    cubes = torch.from_numpy(pool[rng.integers(len(pool), size=CUBES)].astype(np.float32))
    turned = torch.rot90(cubes, int(rng.integers(4)), (2, 3))
    truth = turned.flip(1) if rng.random() < 0.5 else turned
    truth = truth.transpose(2, 3) if rng.random() < 0.5 else truth

    if optics is None:
        length, step, offset = random_optics(rng)
        profile = AxialProfile.box(length)
    else:
        profile, length, step = optics.profile, optics.profile.length_um, optics.step
        offset = float(rng.uniform(0, step))
    z = sweep_positions(length_um=length, step_um=step, z0_um=0, voxel_z_um=1, shape_z=SIZE, offset_um=offset)
    matrix = projection_operator(z, profile, z0_um=0, voxel_z_um=1, shape_z=SIZE)
    operator = torch.from_numpy(matrix.astype(np.float32))
    clean = torch.einsum("mz,bzyx->bmyx", operator, truth)
    if optics is not None:
        variance = (optics.read + optics.shot * clean.clamp_min(0)).clamp_min(1e-8)
    elif rng.random() < 0.4:
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
    if rng.random() < 0.5 if optics is None else not optics.gauged:
        # No camera numbers: one variance, and texture passes for noise in it, as it will in earnest.
        sigma = torch.tensor([estimate_sigma(stack) for stack in projections])
        variance = (sigma**2)[:, None, None, None].expand_as(projections)
    truth, projections = (truth - low) / span, (projections - low) / span
    variance = (variance / span**2).clamp_min(1e-8)
    # Zero light lies at or below the normalised zero; the closed form is clipped where light cannot be.
    floor = -low / span

    if rng.random() < _INR_SHARE if inr is None else inr:
        # One field over all cubes side by side: same optics, so the same axial basis serves them.
        wide = projections.permute(1, 2, 0, 3).flatten(2)
        field = SessionInr(
            (SIZE, *wide.shape[1:]),
            bandwidth=default_bandwidth(length) * float(rng.uniform(0.35, 1.1)),
        )
        spread = variance.permute(1, 2, 0, 3).flatten(2)
        base = floor.expand(CUBES, 1, 1, SIZE).permute(1, 2, 0, 3).flatten(2)
        field.fit(
            operator,
            quieten(wide, spread),
            spread,
            floor=base,
            steps=int(rng.integers(0, 7)),
            target=0.1,
        )
        prior = field.volume(base).unflatten(2, (CUBES, SIZE)).permute(2, 0, 1, 3)
    else:
        inverse = torch.from_numpy(
            tikhonov_matrix(matrix, float(10 ** rng.uniform(-2.5, -1.5))).astype(np.float32)
        )
        prior = torch.maximum(torch.einsum("zm,bmyx->bzyx", inverse, projections), floor)
    return Group(
        truth,
        prior,
        projections,
        variance,
        floor,
        operator,
        SliceConditions.of(matrix, z, length),
    )


Formulation = Literal["bridge", "regression", "flow"]
"""What the network learns to undo: the INR-noise interpolation; the prior's error in one step; or noise,
with the prior as an image besides (flow matching). The last two are there to compare with."""


def column_of(
    group: Group, cube: int, rng: np.random.Generator, formulation: Formulation = "bridge"
) -> tuple[Column, float, float]:
    """Return one cube somewhere on the way from start to truth, the time t and the noise κ."""
    truth, prior = group.truth[cube], group.prior[cube]
    # Most of the training at the start: one evaluation has to be good by itself.
    time = 1.0 if formulation == "regression" or rng.random() < 0.6 else float(rng.uniform(0.05, 1.0))
    if formulation == "flow":
        kappa, source = FLOW_NOISE, torch.zeros_like(prior)
    elif time == 1.0:
        kappa, source = 0.0 if rng.random() < 0.5 else KAPPA * float(rng.uniform(0, 1)), prior
    else:
        # Further on the state is always noisy: prior and a noiseless state would give the truth away.
        kappa, source = KAPPA * float(rng.uniform(0.1, 1)), prior
    if formulation == "regression":
        kappa = 0.0
    start = source + kappa * torch.randn(prior.shape)
    return Column(group, cube, (1 - time) * truth + time * start), time, kappa


def batch_of(groups: list[Group], rng: np.random.Generator, formulation: Formulation = "bridge") -> Batch:
    """Draw one cube of each group and cut it into windows."""
    index = window_indices(SIZE)
    states, priors, images, vectors, columns = [], [], [], [], []
    for group in groups:
        cube = int(rng.integers(CUBES))
        column, time, kappa = column_of(group, cube, rng, formulation)
        shown = bool(rng.random() > 0.1)
        stack = group.projections[cube]
        noise = float(group.variance[cube].mean().sqrt())
        states.append(column.state[index])
        priors.append(column.prior[index])
        images.append(stack[group.conditions.nearest[index]] * float(shown))
        vectors.append(group.conditions.vector(index, noise=noise, time=time, kappa=kappa, image=shown))
        columns.append(column)
    return Batch(torch.cat(states), torch.cat(priors), torch.cat(images), torch.cat(vectors), columns)
