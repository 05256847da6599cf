"""Fine-tuning to one session from its projections alone: what `mdd adapt` does.

There is no ground truth, so two substitutes take its place.

*Equivariance* (equivariant imaging, Chen, Tachella and Davies 2021): the present network's answer to the
session is taken for a specimen, moved by a transformation that leaves the set of plausible specimens as it
is, projected with the session's own beam, step and noise, and the network is trained to find it again, with
the loss of the ordinary training. The transformations are shifts of the slabs along z, flips along z and
lateral flips and quarter turns. The gradient stops at the specimen.

*Measurement consistency*: the network's answer to the real projections must reproduce them, to within
their noise and no better (the misfit below one noise variance costs nothing).

The specimen is reconstructed again as the network learns. The projections that judge are never fitted to; see
`adapt_data`. Runs on one thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import Denoiser, SliceConditions
from microdiffusion.engines.inr import default_bandwidth, sweep_deviation
from microdiffusion.engines.pipeline import Engine, Reconstructor, pick_device
from microdiffusion.engines.projections import along_z, noise_variance
from microdiffusion.engines.runtimes import open_runtime
from microdiffusion.engines.training.adapt_data import AdaptSession, Verdict, judge_errors, verdict
from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.degrade import CUBES, Group, batch_of
from microdiffusion.engines.training.fine_tune import SPECIMENS, AdaptPlan, Watch, cut_cube, fine_tune
from microdiffusion.engines.training.learner import Learner
from microdiffusion.engines.training.parallel import training_dtype
from microdiffusion.engines.training.session_optics import SessionOptics
from microdiffusion.optics import projection_operator

_CONSISTENCY = 0.1
"""Weight of the measurement consistency."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The network after adapting, and the judges' verdict."""

    model: Denoiser
    verdict: Verdict
    iterations: int


def adapt(
    session: AdaptSession,
    model: Denoiser,
    config: EngineConfig,
    plan: AdaptPlan,
    say: Callable[[str], None],
    watch: Watch = lambda iteration, share, loss, seconds: None,
) -> Adapted:
    """Return `model` adapted to a session; the argument is left as it is.

    Parameters
    ----------
    config : EngineConfig
        Device, evaluations, guidance and so on, as the result will be used.
    watch
        Gets iteration, share of the whole, loss and seconds, now and then.

    Raises
    ------
    GeometryError
        The volume has too few slices for one slab of the training's cubes.
    """
    run = _Adaptation(session, model, config, plan)
    say(
        f"{len(session.sweeps)} sweeps of {len(session.sweeps[0].stage)} projections; judged by "
        + ("one projection of each that is left out" if session.left_out else "the held-out projections")
    )
    before = run.judged(model)
    iterations = run.train(watch)
    adapted = run.learner.average
    return Adapted(adapted, verdict(before, run.judged(adapted)), iterations)


class _Adaptation:
    """One adaptation: the learner, the session's optics, and the ring of groups."""

    def __init__(self, session: AdaptSession, model: Denoiser, config: EngineConfig, plan: AdaptPlan) -> None:
        self._begun_s, self._judging_s = time.monotonic(), 0.0
        self._session, self._plan = session, plan
        # Judged and reconstructed as the network alone would be, however it compares with other answers.
        self._config = config.model_copy(update={"method": "mdd", "fallback": False})
        self._rng = np.random.default_rng(plan.seed)
        self._device, _ = pick_device(config.device)
        dtype = training_dtype(self._device, "auto")
        start = copy.deepcopy(model).float()
        self.learner = Learner(start, self._device, dtype, rate=plan.rate, weight_decay=0.0)
        self._sweeps = session.for_fitting()
        found = SessionOptics.of(session.header, self._sweeps)
        self._optics, self._dark, self._scale = found.optics, found.dark, found.scale
        self._priors: dict[int, NDArray[np.float32]] = {}

    def _reconstructor(self, model: Denoiser, **changes: Any) -> Reconstructor:
        config = self._config.model_copy(update=changes)
        # A copy: the runtime changes the network's precision and place.
        runtime = open_runtime(copy.deepcopy(model), self._device, config).runtime
        return Reconstructor(self._session.header, config, Engine(self._device, runtime.name, "", runtime))

    def judged(self, model: Denoiser) -> list[NDArray[np.float64]]:
        """Return the judges' errors by block, for each sweep."""
        begun_s = time.monotonic()
        reconstructor = self._reconstructor(model, memory="sweep")
        errors = [
            judge_errors(self._session.header, whole, reconstructor.reconstruct(sweep).volume)
            for whole, sweep in zip(self._session.sweeps, self._sweeps, strict=True)
        ]
        self._judging_s = time.monotonic() - begun_s
        return errors

    def train(self, watch: Watch) -> int:
        """Fine-tune; return the iterations that were taken."""
        return fine_tune(
            self.learner,
            self._plan,
            self._optics,
            self._specimens,
            self._rng,
            watch,
            begun_s=self._begun_s,
            reserve_s=self._judging_s,  # its end is judged once more
            more=lambda: _CONSISTENCY * self._misfit(),
        )

    # --- equivariance ---------------------------------------------------------------------------------

    def _specimens(self) -> NDArray[np.float16]:
        """Reconstruct the session with the present network; return cubes (N, SIZE, SIZE, SIZE) of light."""
        # Neighbouring sweeps of a still specimen are merged, which shows it better; judges never get in.
        reconstructor = self._reconstructor(self.learner.average)
        volumes = [self._light(reconstructor.reconstruct(sweep).volume) for sweep in self._sweeps]
        return np.stack(
            [cut_cube(volumes[self._rng.integers(len(volumes))], self._rng) for _ in range(SPECIMENS)]
        )

    def _light(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.clip((volume - self._dark) / self._scale, 0, 4), dtype=np.float32)

    # --- measurement consistency ----------------------------------------------------------------------

    def _misfit(self) -> Tensor:
        """Return by how much the answer to the real projections misses them, beyond their noise."""
        number = int(self._rng.integers(len(self._sweeps)))
        batch = batch_of([self._measured(number)], self._rng, at_start=True).to(self._device)
        (column,) = batch.columns
        misfit = along_z(column.operator, self.learner.predict(batch).flatten(0, 1)) - column.projections
        power = F.avg_pool2d((misfit.square() / column.variance)[None], 7, stride=4)[0]
        # Logarithmic beyond a few noise variances: a pixel that nothing explains must not rule the rest.
        return torch.log1p((power - 1).clamp_min(0)).mean()

    def _measured(self, number: int) -> Group:
        """Return a random part of a real sweep as a group; its cubes are all the same."""
        header, sweep, profile = self._session.header, self._sweeps[number], self._optics.profile
        prior = self._prior(number)
        start = [int(self._rng.integers(0, max(1, n - SIZE + 1))) for n in prior.shape]
        slices = slice(start[0], start[0] + SIZE)
        # Slabs that lie within the part, wholly or nearly.
        inside = header.operator_at(sweep.stage)[:, slices].sum(axis=1) > 0.99
        if not inside.any():
            inside[:] = True
            slices = slice(SIZE)
        place = header.centres_of(sweep.stage[inside]) - slices.start
        matrix = projection_operator(place, profile, z0_um=0, voxel_z_um=1, shape_z=SIZE)
        rows, columns = (slice(s, s + SIZE) for s in start[1:])
        images = sweep.projections[inside]
        noise = noise_variance(torch.from_numpy(images), header.camera).numpy()
        projections = padded((images[:, rows, columns] - self._dark) / self._scale)
        variance = padded(noise[:, rows, columns] / self._scale**2).clamp_min(1e-8)
        part = padded(self._light(prior[slices, rows, columns]), depth=True)
        sure = sweep_deviation(matrix, projections, variance, default_bandwidth(profile.length_um))

        def repeated(stack: Tensor) -> Tensor:
            return stack[None].expand(CUBES, *stack.shape)

        return Group(
            truth=repeated(part),
            prior=repeated(part),
            deviation=repeated(sure),
            projections=repeated(projections),
            variance=repeated(variance),
            floor=torch.zeros(CUBES, 1, 1, 1),
            operator=torch.from_numpy(matrix.astype(np.float32)),
            leeway=torch.eye(SIZE),
            conditions=SliceConditions.of(matrix, place, profile.length_um),
        )

    def _prior(self, number: int) -> NDArray[np.float32]:
        """Return the INR's volume of a sweep, as the engine fits it."""
        if number not in self._priors:
            config = self._config.model_copy(update={"method": "inr"})
            reconstructor = Reconstructor(self._session.header, config)
            self._priors[number] = reconstructor.reconstruct(self._sweeps[number]).volume
        return self._priors[number]


def padded(stack: NDArray[Any], *, depth: bool = False) -> Tensor:
    """Return a stack (N, Y, X) with rows and columns (and slices, with `depth`) mirrored up to SIZE."""
    missing = [(0, SIZE - n) for n in stack.shape]
    if not depth:
        missing[0] = (0, 0)
    return torch.from_numpy(np.pad(stack, missing, mode="symmetric").astype(np.float32))
