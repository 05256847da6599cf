"""Fine-tuning to one session from its projections alone: what `mdd adapt` does.

There is no ground truth, so two things stand in for it.

*Equivariance* (equivariant imaging, Chen, Tachella and Davies 2021): what the present network makes of the
session is taken for a specimen, moved by a transformation that leaves the set of plausible specimens as it
is, projected with the session's own beam, step and noise, and the network is trained to find it again, with
the loss of the ordinary training. The transformations are shifts of the slabs along z, flips along z and
lateral flips and quarter turns. The gradient stops at the specimen. On request (`turns`) a lateral axis is
brought into z, where the camera resolves what the beam does not, so that the specimen is sharp along z; that
assumes a specimen that looks alike in all directions, and has not been better where it was measured.

*Measurement consistency*: the network's answer to the real projections must reproduce them, to within
their noise and no better (the misfit below one noise variance costs nothing).

The specimen is reconstructed anew as the network learns. What judges is never fitted to; see `session`.
Runs on one thread; the networks that come out are averages (EMA), like the ones of the training.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from microdiffusion.engines.diffusion import SlabDenoiser, SliceConditions
from microdiffusion.engines.pipeline import Engine, Reconstructor, pick_device
from microdiffusion.engines.projections import along_z, estimate_sigma, noise_variance
from microdiffusion.engines.runtimes import best_dtype, open_runtime
from microdiffusion.engines.training.adapt_data import Session, Verdict, judge_errors, operator_at, verdict
from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.degrade import CUBES, Batch, Group, Optics, batch_of, make_group
from microdiffusion.engines.training.loss import loss_of
from microdiffusion.errors import GeometryError
from microdiffusion.optics import AxialProfile, projection_operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.config import EngineConfig


@dataclass(frozen=True, slots=True)
class AdaptPlan:
    """How long, how fast, and with what.

    Attributes
    ----------
    iterations, minutes
        At most; whichever ends first.
    rate : float
        Learning rate, before the cosine.
    turns : float
        Share of specimens with a lateral axis turned into z; only for specimens that look alike in all
        directions.
    consistency : float
        Weight of the measurement consistency.
    refresh : int
        Iterations after which the session is reconstructed anew.
    cubes : int
        Specimens cut from the session after each reconstruction.
    """

    iterations: int = 200
    minutes: float = 15.0
    rate: float = 3e-4
    turns: float = 0.0
    consistency: float = 0.1
    refresh: int = 200
    cubes: int = 32
    ring: int = 12
    renew_every: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Adapted:
    """The network after adapting, and what the judges say."""

    model: SlabDenoiser
    verdict: Verdict
    iterations: int
    seconds: float


def adapt(
    session: Session,
    model: SlabDenoiser,
    config: EngineConfig,
    plan: AdaptPlan,
    say: Callable[[str], None],
    watch: Callable[[int, float, float, float], None] = lambda iteration, share, loss, seconds: None,
) -> Adapted:
    """Return `model` adapted to a session; the argument is left as it is.

    Parameters
    ----------
    config : EngineConfig
        Device, evaluations, guidance and so on, as the result will be used.
    watch
        Told iteration, share of the whole, loss and seconds, now and then.

    Raises
    ------
    GeometryError
        The volume has too few slices for one slab of the training's cubes.
    """
    run = _Adaptation(session, model, config, plan)
    say(
        f"{len(session.sweeps)} sweeps of {len(session.sweeps[0].z_um)} projections; judged by "
        + ("one projection of each that is left out" if session.left_out else "the held-out projections")
    )
    before = run.judged(model)
    taken, seconds = run.train(watch)
    after = run.judged(run.average)
    return Adapted(run.average, verdict(before, after), taken, seconds)


class _Adaptation:
    """One adaptation: networks, optics, and the ring of groups."""

    def __init__(self, session: Session, model: SlabDenoiser, config: EngineConfig, plan: AdaptPlan) -> None:
        self._session, self._plan = session, plan
        # Judged and reconstructed as the network alone would be, however it compares with other answers.
        self._config = config.model_copy(update={"method": "mdd", "fall_back": False})
        self._rng = np.random.default_rng(plan.seed)
        self._device, _ = pick_device(config.device)
        dtype = best_dtype(self._device)
        if dtype is torch.float16:  # without a gradient scaler it would lose small gradients
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        self._dtype = dtype
        self.model = copy.deepcopy(model).float().to(self._device)
        self.average = copy.deepcopy(self.model)
        self._sweeps = session.for_fitting()
        header = session.header
        counts = np.stack([np.percentile(sweep.projections, [1.0, 99.9]) for sweep in self._sweeps]).mean(0)
        self._dark = min(header.camera.offset, float(counts[0]))
        self._scale = max(float(counts[1]) - self._dark, 1e-6)
        self._optics = self._session_optics()
        self._priors: dict[int, NDArray[np.float32]] = {}

    def _session_optics(self) -> Optics:
        header, sweep = self._session.header, self._sweeps[0]
        voxel = header.voxel_size_um[0]
        profile = header.profile
        step = (
            float(np.median(np.diff(sweep.z_um))) / voxel
            if len(sweep.z_um) > 1
            else profile.length_um / voxel
        )
        if profile.length_um / voxel + step > SIZE:
            raise GeometryError(
                f"A slab of {profile.length_um / voxel:.0f} slices at a step of {step:.0f} does not fit into "
                f"cubes of {SIZE} slices: adapt with thicker slices."
            )
        camera = header.camera
        if camera.gain is None:
            sigma = max(estimate_sigma(torch.from_numpy(sweep.projections)), camera.read_noise)
            read, shot = sigma**2, 0.0
        else:
            # Counts: variance = read² + gain (p - offset); cubes: light = (p - dark) / scale.
            read = camera.read_noise**2 + camera.gain * max(0.0, self._dark - camera.offset)
            shot = camera.gain * self._scale
        return Optics(
            AxialProfile.sampled(profile.weights, profile.spacing_um / voxel),
            step,
            read / self._scale**2,
            shot / self._scale**2,
            gauged=camera.gain is not None,
        )

    def _reconstructor(self, model: SlabDenoiser, *, merging: bool = False) -> Reconstructor:
        config = self._config if merging else self._config.model_copy(update={"merge_sweeps": "off"})
        # A copy: the runtime changes the network's precision and place.
        runtime = open_runtime(copy.deepcopy(model), self._device, config).runtime
        engine = Engine(self._device, runtime.name, "", runtime)
        return Reconstructor(self._session.header, config, engine)

    def judged(self, model: SlabDenoiser) -> list[NDArray[np.float64]]:
        """Return the judges' errors by block, for each sweep."""
        reconstructor = self._reconstructor(model)
        return [
            judge_errors(self._session.header, whole, reconstructor.reconstruct(sweep).volume)
            for whole, sweep in zip(self._session.sweeps, self._sweeps, strict=True)
        ]

    def train(self, watch: Callable[[int, float, float, float], None]) -> tuple[int, float]:
        """Fine-tune; return iterations and seconds."""
        plan = self._plan
        begun = time.monotonic()
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=plan.rate, weight_decay=0.0, betas=(0.9, 0.98)
        )
        self.model.train()
        pool = self._specimens()
        ring = [self._group(pool) for _ in range(plan.ring)]
        iteration = 0
        while True:
            share = max(iteration / plan.iterations, (time.monotonic() - begun) / (60 * plan.minutes))
            if share >= 1:
                break
            if iteration and iteration % plan.refresh == 0:
                pool = self._specimens()
            if iteration and iteration % plan.renew_every == 0:
                ring[(iteration // plan.renew_every) % plan.ring] = self._group(pool)
            for group in optimiser.param_groups:
                warm = min(1.0, (iteration + 1) / 20)
                group["lr"] = plan.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
            chosen = self._rng.integers(len(ring), size=2)
            torch.manual_seed(int(self._rng.integers(1 << 62)))
            batch = batch_of([ring[number] for number in chosen], self._rng).to(self._device)
            loss = loss_of(batch, self._predict(batch))
            if plan.consistency > 0:
                loss = loss + plan.consistency * self._misfit()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            optimiser.step()
            decay = min(0.98, (1 + iteration) / (10 + iteration))
            with torch.no_grad():
                for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
            iteration += 1
            if iteration % 10 == 0:
                watch(iteration, share, float(loss.detach()), time.monotonic() - begun)
        return iteration, time.monotonic() - begun

    def _predict(self, batch: Batch) -> Tensor:
        half = self._dtype
        with torch.autocast(self._device.type, dtype=half, enabled=half is not torch.float32):
            change = self.model.correction(batch.state, batch.prior, batch.image, batch.conditions)
        return change.float() + SlabDenoiser.middle_slices(batch.prior)

    # --- equivariance ---------------------------------------------------------------------------------

    def _specimens(self) -> NDArray[np.float16]:
        """Reconstruct the session with the present network; return cubes (N, SIZE, SIZE, SIZE) of light."""
        # Neighbouring sweeps of a still specimen make it better known; what judges never gets in.
        reconstructor = self._reconstructor(self.average, merging=True)
        cubes: list[NDArray[np.float16]] = []
        volumes = [self._light(reconstructor.reconstruct(sweep).volume) for sweep in self._sweeps]
        while len(cubes) < self._plan.cubes:
            volume = volumes[int(self._rng.integers(len(volumes)))]
            if self._rng.random() < self._plan.turns:
                volume = turned(volume, self._session.header.voxel_size_um, int(self._rng.integers(1, 3)))
            cubes.append(cut_cube(volume, self._rng))
        return np.stack(cubes)

    def _light(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.clip((volume - self._dark) / self._scale, 0, 4), dtype=np.float32)

    def _group(self, pool: NDArray[np.float16]) -> Group:
        return make_group(pool, self._rng, optics=self._optics)

    # --- measurement consistency ----------------------------------------------------------------------

    def _misfit(self) -> Tensor:
        """Return by how much the answer to the real projections misses them, beyond their noise."""
        number = int(self._rng.integers(len(self._sweeps)))
        batch = batch_of([self._measured(number)], self._rng, "regression").to(self._device)
        group, cube = batch.columns[0].group, batch.columns[0].cube
        misfit = along_z(group.operator, self._predict(batch).flatten(0, 1)) - group.projections[cube]
        power = F.avg_pool2d((misfit.square() / group.variance[cube])[None], 7, stride=4)[0]
        # Logarithmic beyond a few noise variances: a pixel that nothing explains must not rule the rest.
        return torch.log1p((power - 1).clamp_min(0)).mean()

    def _measured(self, number: int) -> Group:
        """Return a random part of a real sweep as a group; its cubes are all the same."""
        header, sweep = self._session.header, self._sweeps[number]
        prior = self._prior(number)
        start = [int(self._rng.integers(0, max(1, n - SIZE + 1))) for n in prior.shape]
        slices = min(SIZE, prior.shape[0])
        # Slabs that lie within the part, wholly or nearly.
        inside = operator_at(header, sweep.z_um)[:, start[0] : start[0] + slices].sum(axis=1) > 0.99
        if not inside.any():
            inside[:] = True
            start[0] = 0
        z_um = sweep.z_um[inside]
        voxel = header.voxel_size_um[0]
        place = (z_um - header.z0_um) / voxel - start[0]
        profile = AxialProfile.sampled(header.profile.weights, header.profile.spacing_um / voxel)
        matrix = projection_operator(place, profile, z0_um=0, voxel_z_um=1, shape_z=SIZE)
        rows, columns = (slice(s, s + SIZE) for s in start[1:])
        images = sweep.projections[inside][:, rows, columns]
        noise = noise_variance(torch.from_numpy(sweep.projections[inside]), header.camera)[:, rows, columns]
        projections = padded((images - self._dark) / self._scale)
        variance = padded(noise.numpy() / self._scale**2).clamp_min(1e-8)
        part = padded(self._light(prior[start[0] : start[0] + slices, rows, columns]), depth=True)
        return Group(
            truth=part[None].expand(CUBES, *part.shape),
            prior=part[None].expand(CUBES, *part.shape),
            projections=projections[None].expand(CUBES, *projections.shape),
            variance=variance[None].expand(CUBES, *variance.shape),
            floor=torch.zeros(CUBES, 1, 1, 1),
            operator=torch.from_numpy(matrix.astype(np.float32)),
            conditions=SliceConditions.of(matrix, place, profile.length_um),
        )

    def _prior(self, number: int) -> NDArray[np.float32]:
        """Return the INR's volume of a sweep, as the engine fits it."""
        if number not in self._priors:
            config = self._config.model_copy(update={"method": "inr"})
            reconstructor = Reconstructor(self._session.header, config)
            self._priors[number] = reconstructor.reconstruct(self._sweeps[number]).volume
        return self._priors[number]


def turned(
    volume: NDArray[np.float32], voxel_um: tuple[float, float, float], axis: int
) -> NDArray[np.float32]:
    """Return the volume (Z, Y, X) with a lateral axis (1 or 2) in place of z, in voxels of the same size.

    What was sharp across is then sharp along z; what was blurred along z is blurred across.
    """
    swapped = volume.swapaxes(0, axis)
    edges = np.array(voxel_um)[[axis, *(0 if n == axis else n for n in (1, 2))]]
    factors = edges / np.array(voxel_um)
    if np.allclose(factors, 1, atol=0.02):
        return swapped
    # Thick slices hold the light of several thin ones: average before sampling more coarsely.
    sigma = np.where(factors < 1, 0.5 * np.sqrt(np.maximum(1 / factors**2 - 1, 0)), 0)
    smooth = ndimage.gaussian_filter(swapped, sigma)
    return np.asarray(ndimage.zoom(smooth, factors, order=1), dtype=np.float32)


def cut_cube(volume: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float16]:
    """Return a random cube of SIZE; mirrored at the end where the volume is smaller. Prefers what is lit."""
    best, brightest = None, -1.0
    for _ in range(3):
        start = [int(rng.integers(0, max(1, n - SIZE + 1))) for n in volume.shape]
        part = volume[tuple(slice(s, s + SIZE) for s in start)]
        spread = float(part.std())
        if spread > brightest:
            best, brightest = part, spread
    cube = np.asarray(best)
    missing = [(0, SIZE - n) for n in cube.shape]
    return np.pad(cube, missing, mode="symmetric").astype(np.float16)


def padded(stack: NDArray[Any], *, depth: bool = False) -> Tensor:
    """Return a stack (N, Y, X) with rows and columns (and slices, with `depth`) mirrored up to SIZE."""
    missing = [(0, SIZE - n) for n in stack.shape]
    if not depth:
        missing[0] = (0, 0)
    return torch.from_numpy(np.pad(stack, missing, mode="symmetric").astype(np.float32))
