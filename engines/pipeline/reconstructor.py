"""The engine call: a sweep of projections in, a volume out.

The daemon, `mdd reconstruct` and the benchmarks use this class and nothing below it. It keeps a session of
its own for each channel and position (`session.py`), and for each *lane*: "sweep" for time points as they
come, "rolling" for updates of the live view, "later" for what is caught up, so that neither disturbs
the first. A rolling update starts from what the lane "sweep" has learned, leaves it as it is, and tests
nothing about the network: it goes by what that lane has found. The *effort* says what a volume may cost: 0
all that the configuration asks for, 1 one evaluation of the network without guidance or tests, 2 the INR
without the network. The way of a sweep:

    normalise -> INR of the sweep alone -> INR of the session (`inr/session_field.py`: what all sweeps say)
    -> the update (`update.py`: few-step sampler with data consistency, scores) -> selection of network,
    fallback or blend -> back to the units of the projections

After the prior the host waits for the device twice: for the scores and for the volume. Runs on one thread of
the engine process. Memory is bounded whatever the number of sweeps: see `engines/memory.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.diffusion import SamplerSettings, bridge_noise
from microdiffusion.engines.inr import View
from microdiffusion.engines.pipeline.cuda_graphs import Graphs
from microdiffusion.engines.pipeline.device import Clock, download, on_stream, own_stream, settle, upload
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.geometry import Geometries, Geometry
from microdiffusion.engines.pipeline.run_sessions import RunSessions
from microdiffusion.engines.pipeline.session import Session
from microdiffusion.engines.pipeline.update import SCORES, Update, UpdateSettings
from microdiffusion.engines.projections import estimate_sigma, noise_variance, white_share
from microdiffusion.engines.trust import COARSE_LIMITS, Scores, deviation, pattern, scale, select
from microdiffusion.errors import GeometryError
from microdiffusion.frames import AGE_UNIT, Drift, Reconstruction, StagePositions, age_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.inr import FieldEstimate, Known, SessionField, Trail
    from microdiffusion.engines.pipeline.session_store import SessionStore
    from microdiffusion.engines.pipeline.update import Tensors
    from microdiffusion.engines.reference import ReferenceMethod
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

# Of the prior, in spans below the darkest projections: room for dark holes in a bright specimen. Where the
# camera's pedestal is not known, zero light seems to lie far below everything that was measured, and a field
# that starts there never converges.
_LOWEST_BASE = -1.0
# Sweeps between two coarse tests, which cost half an evaluation each.
_TEST_EVERY = 8
_MOST_UPDATES = 64  # as many geometries are kept
_KNOWS_TEXTURE = 3  # sweeps after which what was learned tells texture from noise
_NETWORK_SHARE = (0.0, 1.0, 0.5, 0.25)
"""Of the network's correction, by how many sweeps a voxel has kept still; none beyond."""


@dataclass(slots=True, eq=False)
class _Task:
    """One normalised sweep.

    `images` and `variance` (M, Y, X); `floor` is the level of no light; `held`, `held_variance` (H, Y, X) and
    `held_operator` (H, Z) are the held-out projections, None where there is none.
    """

    sweep: Sweep
    session: Session
    geometry: Geometry
    images: Tensor
    variance: Tensor
    floor: float
    held_operator: Tensor | None = None
    held: Tensor | None = None
    held_variance: Tensor | None = None
    prior_steps: int = 0
    lane: str = "sweep"
    effort: int = 0
    learned: FieldEstimate | None = None
    field: SessionField | None = None
    known: Known | None = None

    @property
    def base(self) -> float:
        """The level of no light that priors start from."""
        return max(self.floor, _LOWEST_BASE)

    @property
    def level(self) -> float:
        """That level in counts."""
        return self.session.low + self.base * self.session.span


class Reconstructor:
    """Turns sweeps of one run into volumes.

    Parameters
    ----------
    header : RunHeader
        Geometry, beam and camera.
    config : EngineConfig
    engine : Engine, optional
        Device and network; by default opened from the configuration.
    sessions : SessionStore, optional
        Keeps the sessions, also those of other runs; by default one of its own, in memory.
    report : callable
        Progress of the method "microdiffusion", whose sweeps take hours: stage, amount done, total.

    Raises
    ------
    ConfigError
        The device does not exist.
    MissingFileError, InputFileError
        The weights cannot be loaded.
    """

    def __init__(
        self,
        header: RunHeader,
        config: EngineConfig,
        engine: Engine | None = None,
        *,
        sessions: SessionStore | None = None,
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.header = header
        self.config = config
        self.engine = engine or open_engine(config)
        self.device = self.engine.device
        self._runtime = self.engine.runtime
        self._geometries = Geometries(header, self.device)
        self.learns = config.memory == "session" and config.method in ("mdd", "inr")
        self._sessions = RunSessions(header, config.inr, self.device, sessions, learns=self.learns)
        self._report = report
        self._references: dict[tuple[int, int], ReferenceMethod] = {}
        settle(self.device)
        self._stream = own_stream(self.device)
        self._settings = _settings(config)
        # The same for all sessions and sweeps of a run: what the network invents does not flicker.
        noisy = config.method == "mdd" and config.interpolation > 0
        self._noise = bridge_noise(header.shape, config.seed, self.device) if noisy else None
        self._updates: dict[tuple[Geometry, UpdateSettings], Update] = {}
        self._graphs = Graphs() if self.device.type == "cuda" and config.cuda_graphs else None

    def configure(self, config: EngineConfig) -> None:
        """Use other `steps`, `guidance` or `tile` from the next sweep on; the sessions stay warm."""
        self.config = config
        if _settings(config) != self._settings:
            self._settings = _settings(config)
            self._updates.clear()
            if self._graphs is not None:
                self._graphs.clear()

    @torch.no_grad()
    def look_ahead(self, sweep: Sweep, trail: Trail) -> None:
        """Take in a sweep of a session without a volume, and keep in `trail` what is known then.

        Where a session `learns`, all of its sweeps in order, then `reconstruct` with the trail from the last
        to the first, make volumes of which each knows all sweeps.

        Raises
        ------
        GeometryError
            As for `reconstruct`.
        """
        with on_stream(self._stream):
            task = self._prepare(sweep, "ahead", 2)
            self._prior(task)
            before, field = task.session.field, task.field
            if before is not None and field is not None:
                images = (task.images - task.base) * (task.session.span / field.unit)
                trail.keep(sweep.sweep, field.known(before, self._operator(sweep), images, task.level))
            task.session.sweeps += 1
            task.session.field = task.field
            self._sessions.keep(sweep, "ahead", task.session)

    @torch.no_grad()
    def reconstruct(
        self, sweep: Sweep, *, lane: str = "sweep", effort: int = 0, trail: Trail | None = None
    ) -> Reconstruction:
        """Return the volume of one sweep.

        Parameters
        ----------
        sweep : Sweep
        lane : "sweep", "rolling" or "later"
            Which session of the channel and position it belongs to.
        effort : int
            0 full, 1 one evaluation of the network, 2 the INR without it.
        trail : Trail, optional
            Of `look_ahead`, where sweeps come from the last to the first.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume, or the sweep holds no projection.
        """
        with on_stream(self._stream):
            return self._reconstruct(sweep, lane, effort if self.config.method == "mdd" else 0, trail)

    def _reconstruct(self, sweep: Sweep, lane: str, effort: int, trail: Trail | None) -> Reconstruction:
        clock = Clock(self.device)
        task = self._prepare(sweep, lane, effort)
        if trail is not None:
            task.known = trail.at(sweep.sweep, self.device)
        clock.lap("prepare")
        coarse = self._coarse_test(task)
        if coarse is not None:
            clock.lap("sampler")
        update, given, reference = self._given(task, clock)
        answers = self._updated(task, update, given, clock)
        found = answers.pop(SCORES)
        if coarse is not None:
            found = torch.cat([found, coarse[None]])
        numbers = found.tolist()
        scores = Scores.read(numbers, update.names, held=task.held is not None, coarse=coarse is not None)
        served, weight = self._serve(task, answers, scores)
        unsure = (
            self._unsure(task, answers, served) if self.config.uncertainty and lane != "rolling" else None
        )
        volume = download((answers[served] * task.session.span).add_(task.session.low))
        task.session.sweeps += 1
        if lane != "rolling":
            task.session.field = task.field
        self._sessions.keep(sweep, lane, task.session)
        clock.lap("scores")
        seconds = clock.seconds()
        if reference:  # the stages it consists of
            del seconds["reference"]
            seconds |= reference
        return Reconstruction(
            volume=volume,
            served=served,
            residual=scores.residuals[served],
            held_out_error=scores.errors.get(served, float("nan")),
            candidate_errors=scores.errors,
            seconds=seconds,
            inr_iterations=task.prior_steps,
            network_weight=weight,
            merged=task.learned is not None and task.learned.still > 0.0,
            still=float("nan") if task.learned is None else task.learned.still,
            drift=self._drift(task.learned),
            runtime=self.engine.name if self._runtime is not None and effort < 2 else "",
            effort=effort,
            uncertainty=unsure,
            age=None if task.learned is None else _age_map(task.learned.age),
            slots=sweep.slots,
        )

    def _prepare(self, sweep: Sweep, lane: str, effort: int) -> _Task:
        """Return the sweep in normalised units."""
        if len(sweep.stage) == 0:
            raise GeometryError(f"Sweep {sweep.sweep} holds no projection to reconstruct from.")
        geometry = self._geometries.of(sweep.stage)
        counts = upload(sweep.projections, self.device)
        session = self._sessions.of(sweep, lane, geometry.conditions.length)
        variance = self._variance(session, sweep, counts, geometry.matrix)
        images = (counts - session.low) / session.span
        variance = variance / session.span**2
        # No light is at the camera's offset: the floor of everything non-negative, normalised.
        floor = (self.header.camera.offset - session.low) / session.span
        lowest = float(sweep.projections.min())
        if lowest < self.header.camera.offset:
            noise = session.span * float(variance.mean().sqrt())
            if lowest < self.header.camera.offset - 10 * noise:
                # A wrong offset in the header must not clip what was measured.
                floor = (lowest - session.low) / session.span
        task = _Task(sweep, session, geometry, images, variance, floor, lane=lane, effort=effort)
        if len(sweep.held_out_stage):
            held = upload(sweep.held_out, self.device)
            task.held_operator = self._geometries.operator(sweep.held_out_stage)
            task.held = (held - session.low) / session.span
            white = session.white_share
            task.held_variance = noise_variance(held, self.header.camera, white) / session.span**2
        return task

    def _variance(
        self, session: Session, sweep: Sweep, counts: Tensor, matrix: NDArray[np.float64]
    ) -> Tensor:
        """Return the noise variance; overlapping slabs and repeated sweeps separate noise from texture."""
        camera = self.header.camera
        if camera.gain is not None:
            return noise_variance(counts, camera)
        if len(sweep.held_out_stage):
            session.white_share = self._held_out_share(sweep, counts)
        variance = noise_variance(counts, camera, min(white_share(counts, matrix), session.white_share))
        field = session.field
        if field is None or field.estimator.sweeps < _KNOWS_TEXTURE:
            return variance
        # Texture is in what was learned, too, and cancels; where the specimen moved, more is left.
        expected = field.predict(self._operator(sweep)) * field.unit
        repeated = estimate_sigma(counts - expected) ** 2
        return variance.clamp_max(max(repeated, camera.read_noise**2, 1e-6 * session.span**2))

    def _held_out_share(self, sweep: Sweep, counts: Tensor) -> float:
        """Return the share of noise in the fine structure, from held-out projections and their neighbours."""
        stage = sweep.stage + sweep.held_out_stage
        stack = torch.cat([counts, upload(sweep.held_out, self.device)])
        order = stage.order()
        places = np.flatnonzero(order >= len(sweep.stage))
        near = np.unique(np.clip(places[:, None] + np.arange(-1, 2), 0, len(order) - 1))
        chosen = order[near]
        return white_share(stack[torch.from_numpy(chosen)], self.header.operator_at(stage[chosen]))

    def _operator(self, sweep: Sweep) -> Callable[[float], NDArray[np.float64]]:
        """Return a function of how many slices deeper the specimen lies, which gives the operator (M, Z)."""
        voxel_um = self.header.voxel_size_um[0]
        return lambda deeper: self.header.operator_at(
            StagePositions.along_z(sweep.stage.z_um - deeper * voxel_um)
        )

    def _prior(self, task: _Task) -> Tensor:
        """Return what the INR of the session, or of the sweep alone, says."""
        geometry = task.geometry
        view = View(
            geometry.operator,
            task.images,
            task.variance,
            geometry.closed(task.images, task.variance),
            task.base,
            task.held_operator,
            task.held,
            task.sweep.received_s,
        )
        fit = task.session.prior.fit(view)
        task.prior_steps = fit.steps
        return self._learn(task, fit.volume)

    def _learn(self, task: _Task, own: Tensor) -> Tensor:
        """Take the sweep into the session's field; return what is known now, `own` where nothing is kept."""
        known = self._sessions.peek(task.sweep) if task.lane == "rolling" else None
        field = task.session.field if known is None or known.field is None else known.field
        if field is None:
            return own
        task.field = field = field.copy()  # the session goes on with it once the sweep has succeeded
        if task.known is not None:
            field.unit = task.known.unit
        floor = task.base
        scale = task.session.span / field.unit
        seen = (
            self._operator(task.sweep),
            (task.images - floor) * scale,
            task.variance * scale**2,
            (own - floor) * scale,
        )
        if task.known is None:
            task.learned = field.update(*seen)
        else:
            task.learned = field.look_back(*seen, task.known, task.level)
        volume = task.learned.volume.clamp_min(0.0) / scale
        if task.learned.still > 0.0:  # what the covariances did not expect
            volume = task.geometry.consistency(volume, task.images - floor, task.variance)
        return volume + floor

    def _drift(self, learned: FieldEstimate | None) -> Drift:
        """Return how far the specimen has moved since the session began."""
        if learned is None:
            return Drift()
        shift = learned.motion.shift
        return Drift(*(voxels * edge for voxels, edge in zip(shift, self.header.voxel_size_um, strict=True)))

    def _coarse_test(self, task: _Task) -> Tensor | None:
        """Return the network's error one octave coarser, where a test is due; see `coarse_test.py`."""
        coarse_test, findings, config = task.geometry.coarse_test, task.session.findings, self.config
        if self._runtime is None or coarse_test is None or not config.fallback or config.method != "mdd":
            return None
        if task.lane == "rolling" or task.effort > 0:
            return None
        # A network that failed is tested again with every held-out projection.
        again = findings.coarse_error > COARSE_LIMITS[0] and task.held is not None
        if not again and task.session.sweeps % _TEST_EVERY:
            return None
        once = SamplerSettings(1, config.guidance, 0.0, config.tile)
        return coarse_test(self._runtime, task.images, task.variance, task.floor, once)

    def _given(self, task: _Task, clock: Clock) -> tuple[Update, Tensors, dict[str, float]]:
        """Return the update of a sweep, its inputs, and the seconds of the reference's stages."""
        geometry, method = task.geometry, self.config.method
        settings = _settings(self.config, task.effort)
        update = self._updates.get((geometry, settings))
        if update is None:
            update = Update(geometry, settings, self._runtime, self._noise)
            if len(self._updates) >= _MOST_UPDATES:
                del self._updates[next(iter(self._updates))]
            self._updates[geometry, settings] = update
        given = {
            "images": task.images,
            "variance": task.variance,
            "floor": torch.full((), task.floor, device=self.device),
            "closed": geometry.tikhonov,
        }
        if task.held is not None and task.held_variance is not None and task.held_operator is not None:
            given |= {
                "held": task.held,
                "held_variance": task.held_variance,
                "held_operator": task.held_operator,
            }
        if method in ("linear", "tikhonov"):
            return update, given, {}
        if method == "microdiffusion":
            given["prior"], task.prior_steps, seconds = self._reference(task)
            clock.lap("reference")
            return update, given, seconds
        given["prior"] = self._prior(task)
        if task.learned is not None:
            given["network_share"] = _network_share(task.learned.age)
        clock.lap("inr")
        return update, given, {}

    def _updated(self, task: _Task, update: Update, given: Tensors, clock: Clock) -> Tensors:
        """Return the update's answers and scores, on CUDA from a recorded graph where there is one."""
        runtime = self._runtime
        # A rolling window has as many geometries as projections: they would displace the graphs of the
        # sweeps.
        lasting = task.lane != "rolling"
        if self._graphs is not None and runtime is not None and runtime.capturable and lasting:
            # Valid until the next sweep's replay: by then scores and volume are on the host.
            replayed = self._graphs(update, update, given)
            if replayed is not None:
                clock.lap("sampler")  # with consistency and scores: a graph is one stage
                return dict(replayed)
        return update(given, clock.lap)

    def _serve(self, task: _Task, answers: dict[str, Tensor], scores: Scores) -> tuple[str, float]:
        """Return the answer to serve and the network's weight in it; a blend joins answers and scores."""
        own = next(iter(scores.residuals))
        findings = task.session.findings
        if scores.coarse_error is not None:
            findings.coarse_error = scores.coarse_error
        if not self.config.fallback or len(answers) == 1:
            return own, float(own == "mdd")
        selection = select(own, findings, scores)
        if selection.served == "blend":
            fallback, weight = selection.fallback, selection.weight
            answers["blend"] = torch.lerp(answers[fallback], answers["mdd"], weight)
            scores.blend("blend", "mdd", fallback, weight)
        return selection.served, selection.weight

    def _unsure(self, task: _Task, answers: dict[str, Tensor], served: str) -> NDArray[np.float32]:
        """Return the standard deviation of each served voxel, in the units of the projections."""
        volume, session = answers[served], task.session
        doubt = pattern(volume, (each for name, each in answers.items() if name != "blend"), task.floor)
        if task.held is not None and task.held_operator is not None and task.held_variance is not None:
            session.error_scale = scale(doubt, volume, task.held_operator, task.held, task.held_variance)
        return download(deviation(doubt, session.error_scale, task.variance).mul_(session.span))

    def _reference(self, task: _Task) -> tuple[Tensor, int, dict[str, float]]:
        """Return the reference's volume (normalised), trained for the sweep, its INR's updates, seconds."""
        # Imported only here: the other methods do not pay for it.
        from microdiffusion.engines.reference import ReferenceMethod

        sweep = task.sweep
        session = (sweep.channel, sweep.position)
        if session not in self._references:
            self._references[session] = ReferenceMethod(
                self.config.reference,
                self.header.shape,
                self.device,
                seed=self.config.seed,
                progress=self._report,
            )
        centres = self.header.centres_of(sweep.stage)
        answer = self._references[session].reconstruct(task.geometry.operator, centres, task.images)
        return answer.volume, answer.inr_steps, answer.seconds


def _age_map(age: Tensor) -> NDArray[np.uint8]:
    """Return the map of ages (Z, Y, X) as it is recorded: see `frames.Reconstruction`."""
    z, y, x = age.shape
    blocks = F.adaptive_avg_pool3d(age.float()[None], age_shape((z, y, x)))[0]
    result: NDArray[np.uint8] = (blocks / AGE_UNIT).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return result


def _network_share(age: Tensor) -> Tensor:
    """Return the share of the network's correction that each voxel takes, by its age."""
    table = torch.zeros(256, device=age.device)
    table[: len(_NETWORK_SHARE)] = torch.tensor(_NETWORK_SHARE, device=age.device)
    return table[age.long()]


def _settings(config: EngineConfig, effort: int = 0) -> UpdateSettings:
    """Return the settings of the update at an effort."""
    kappa = config.interpolation * 0.1
    steps, guidance = (config.steps, config.guidance) if effort == 0 else (1, 0.0)
    method = "inr" if effort == 2 else config.method
    return UpdateSettings(method, SamplerSettings(steps, guidance, kappa, config.tile), config.consistency)
