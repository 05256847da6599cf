"""One engine call for everybody: a sweep of projections in, a volume out.

The daemon, `mdd reconstruct` and the benchmarks use this class and nothing below it. It keeps a session of
its own for each channel and position (`session.py`). The way of a sweep:

    normalise -> merge with the sweep before, if still -> prior (warm) -> few-step sampler with data
    consistency -> the judge serves, blends or steps back -> back to the units of the projections

Runs on one thread of the engine's process. Memory is bounded whatever the number of sweeps: `memory.py`
states it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.darkness import light_share
from microdiffusion.engines.engine import Engine, open_engine
from microdiffusion.engines.inr import default_bandwidth
from microdiffusion.engines.judge import OCTAVE, Figures, Findings, best_share, judge, structured_miss
from microdiffusion.engines.linear import along_z
from microdiffusion.engines.merging import Seen, merge, same_places
from microdiffusion.engines.noise import estimate_sigma, noise_variance, quieten, white_share
from microdiffusion.engines.prior import SessionPrior, View
from microdiffusion.engines.sampler import Denoise, SamplerSettings, sample
from microdiffusion.engines.session import Geometries, Geometry, Session
from microdiffusion.errors import GeometryError
from microdiffusion.sweep import Reconstruction

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.reference.method import ReferenceMethod
    from microdiffusion.run_header import RunHeader
    from microdiffusion.sweep import Sweep

# The network was trained on fields whose range is known to about this factor; beyond it, start anew.
_RANGE_DRIFT = (0.75, 1.5)
# Of the prior, in spans below the darkest projections: room for dark holes in a bright specimen. Where the
# camera's pedestal is not known, zero light seems to lie far below everything that was measured; a field
# that has to climb from there never arrives.
_LOWEST_BASE = -1.0
# Sweeps from one octave test to the next; it costs half of an evaluation.
_TEST_EVERY = 8
# Noise of repeated slabs relative to the estimate from images, variances: below it texture was in the latter.
_TEXTURED = 0.65


@dataclass(slots=True)
class _Clock:
    """Seconds per stage; waits for the device so that a stage is charged for its own work."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


@dataclass(slots=True, eq=False)
class _Task:
    """One sweep, normalised: what the methods work on.

    `images` and `variance` (M, Y, X), `floor` the level of no light; `held`, `held_variance` (H, Y, X) and
    `held_operator` (H, Z) the held-out projections, None where there is none.
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
    miss: float = 0.0
    prior_steps: int = 0

    def figures(self, answers: dict[str, Tensor]) -> Figures:
        """Return what the projections say of the answers."""
        residuals = {
            name: _rms(along_z(self.geometry.operator, volume) - self.images, self.variance)
            for name, volume in answers.items()
        }
        figures = Figures(residuals, miss=self.miss)
        if self.held_operator is None or self.held is None or self.held_variance is None:
            return figures
        seen = {name: along_z(self.held_operator, volume) for name, volume in answers.items()}
        for name, image in seen.items():
            figures.errors[name] = _rms(image - self.held, self.held_variance)
            if "mdd" in seen and name != "mdd":
                figures.shares[name] = best_share(seen["mdd"], image, self.held, self.held_variance)
        return figures


class Reconstructor:
    """Turns sweeps of one run into volumes.

    Parameters
    ----------
    header : RunHeader
        Geometry, beam and camera.
    config : EngineConfig
        Method, device, steps and so on.
    engine : Engine, optional
        Device and network; opened from the configuration where it is not given.
    report : callable, optional
        Told the stage, how much of it is done and how much there is, by the method "microdiffusion", whose
        sweeps take hours.

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
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.header = header
        self.config = config
        self.engine = engine or open_engine(config)
        self.device = self.engine.device
        self._runtime = self.engine.runtime
        self._geometries = Geometries(header, self.device)
        self._sessions: dict[tuple[int, int], Session] = {}
        self._report = report
        self._references: dict[tuple[int, int], ReferenceMethod] = {}

    def use(self, engine: Engine) -> None:
        """Go on with `engine` from the next sweep on: the same network and device, another runtime."""
        self.engine = engine
        self._runtime = engine.runtime

    @torch.no_grad()
    def reconstruct(self, sweep: Sweep) -> Reconstruction:
        """Return the volume of one sweep.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume, or the sweep holds no projection.
        """
        if sweep.z_um.size == 0:
            raise GeometryError(f"Sweep {sweep.sweep} holds no projection to reconstruct from.")
        clock = _Clock(self.device)
        started = time.perf_counter()
        task = self._prepare(sweep)
        clock.lap("prepare")
        answers = self._answers(task, clock)
        self._darken(task, answers)
        figures = task.figures(answers)
        served, weight = self._serve(task, answers, figures)
        volume = (answers[served] * task.session.span + task.session.low).cpu().numpy()
        task.session.sweeps += 1
        clock.lap("judge")
        clock.seconds["total"] = time.perf_counter() - started
        return Reconstruction(
            volume=volume,
            served=served,
            residual=figures.residuals[served],
            held_out_error=figures.errors.get(served, float("nan")),
            candidate_errors=figures.errors,
            seconds=clock.seconds,
            inr_iterations=task.prior_steps,
            network_weight=weight,
            merged=len(task.images) > sweep.z_um.size,
            runtime=self.engine.name if self._runtime is not None else "",
        )

    def _prepare(self, sweep: Sweep) -> _Task:
        """Return the sweep in normalised units, merged with the one before where that is wanted and still."""
        geometry = self._geometries.of(sweep.z_um)
        counts = torch.from_numpy(sweep.projections).to(self.device)
        session = self._session(sweep, counts, geometry)
        variance = self._variance(session, sweep, counts, geometry.matrix)
        seen = Seen(sweep.sweep, sweep.z_um, counts, variance)
        images = (counts - session.low) / session.span
        variance = variance / session.span**2
        # No light lies at the camera's offset; the floor of everything non-negative, normalised.
        floor = (self.header.camera.offset - session.low) / session.span
        dark = self.header.camera.offset - 10 * session.span * float(variance.mean().sqrt())
        if float(counts.min()) < dark:
            floor = float(images.min())  # a wrong offset in the header must not clip what was measured
        task = _Task(sweep, session, geometry, images, variance, floor)
        if sweep.held_out_z_um.size:
            held = torch.from_numpy(sweep.held_out).to(self.device)
            task.held_operator = self._geometries.operator(sweep.held_out_z_um)
            task.held = (held - session.low) / session.span
            white = session.white_share
            task.held_variance = noise_variance(held, self.header.camera, white) / session.span**2
        if self.config.merge_sweeps != "off" and self.config.method != "microdiffusion":
            self._merge(task, seen)
        return task

    def _variance(
        self, session: Session, sweep: Sweep, counts: Tensor, matrix: NDArray[np.float64]
    ) -> Tensor:
        """Return the noise's variance; overlapping slabs and repeated sweeps tell noise from texture."""
        camera = self.header.camera
        if camera.gain is not None:
            return noise_variance(counts, camera)
        if sweep.held_out_z_um.size:
            session.white_share = self._held_out_share(sweep, counts)
        variance = noise_variance(counts, camera, min(white_share(counts, matrix), session.white_share))
        older = session.seen(sweep.sweep - 2)
        if older is None or not same_places(older.z_um, sweep.z_um):
            return variance
        # Texture is in both and cancels; where the specimen moved it does not, and the difference says more.
        repeated = estimate_sigma(counts - older.images) ** 2 / 2
        return variance.clamp_max(max(repeated, camera.read_noise**2, 1e-6 * session.span**2))

    def _held_out_share(self, sweep: Sweep, counts: Tensor) -> float:
        """Return how much of the fine structure is noise, by held-out projections and their neighbours."""
        z_um = np.concatenate([sweep.z_um, sweep.held_out_z_um])
        stack = torch.cat([counts, torch.from_numpy(sweep.held_out).to(self.device)])
        order = np.argsort(z_um, kind="stable")
        places = np.flatnonzero(order >= len(sweep.z_um))
        near = np.unique(np.clip(places[:, None] + np.arange(-1, 2), 0, len(order) - 1))
        chosen = order[near]
        return white_share(stack[torch.from_numpy(chosen)], self._geometries.rows(z_um[chosen]))

    def _merge(self, task: _Task, seen: Seen) -> None:
        """Add what the sweep before saw, as far as nothing changed since; keeps `seen` for the next ones."""
        session = task.session
        before, older = session.seen(seen.sweep - 1), session.seen(seen.sweep - 2)
        session.last_two = [*session.last_two[-1:], seen]
        if before is None:
            return
        matrix, _ = task.geometry.closed(task.images, task.variance)
        alone = along_z(matrix, quieten(task.images, task.variance)).clamp_min(task.floor)
        merged = merge(
            seen.scaled(session.low, session.span),
            before.scaled(session.low, session.span),
            along_z(self._geometries.of(before.z_um).operator, alone),
            older.scaled(session.low, session.span) if older is not None else None,
            task.floor,
            always=self.config.merge_sweeps == "always",
        )
        if merged is not None:
            task.geometry = self._geometries.of(merged.z_um)
            task.images, task.variance = merged.images, merged.variance

    def _answers(self, task: _Task, clock: _Clock) -> dict[str, Tensor]:
        """Return the candidate volumes (normalised) by name, the configured method first."""
        method, geometry = self.config.method, task.geometry
        linear = along_z(geometry.linear, task.images).clamp_min(task.floor)
        if method == "linear":
            return {"linear": linear}
        if method == "microdiffusion":
            volume, task.prior_steps = self._reference(task.sweep, geometry, task.images, clock)
            return {method: volume.clamp_min(task.floor)}
        matched, smoothness = geometry.closed(task.images, task.variance)
        # The fixed smoothness is for slabs side by side; where they overlap it lets the noise through.
        merged = len(task.images) > task.sweep.z_um.size
        closed = along_z(matched if merged else geometry.tikhonov, task.images).clamp_min(task.floor)
        if method == "tikhonov":
            return {"tikhonov": closed}
        base = max(task.floor, _LOWEST_BASE)
        view = View(
            geometry.operator,
            task.images,
            task.variance,
            matched,
            smoothness,
            base,
            task.held_operator,
            task.held,
        )
        prior = task.session.prior.fit(view)
        task.prior_steps = prior.steps
        clock.lap("inr")
        others = {"inr": prior.volume, "tikhonov": closed, "linear": linear}
        if method == "inr" or self._runtime is None:
            return others
        return {"mdd": self._sampled(task, prior.volume, clock), **others}

    def _sampled(self, task: _Task, prior: Tensor, clock: _Clock) -> Tensor:
        """Return the network's volume (normalised); finds out on the way how far to trust it."""
        if self._runtime is None:
            raise RuntimeError("the method mdd has no network")
        sweep, geometry, floor = task.sweep, task.geometry, task.floor
        kappa = self.config.interpolation * 0.1
        settings = SamplerSettings(self.config.steps, self.config.guidance, kappa, self.config.tile)
        noise = float(task.variance.mean().sqrt())
        denoise = Denoise(self._runtime, prior, task.images, geometry.conditions, noise, settings)
        spent = 0.0
        untouched = True

        def consistent(volume: Tensor) -> Tensor:
            nonlocal spent, untouched
            begun = time.perf_counter()
            if untouched:  # later evaluations start from a state that has seen the projections
                task.miss = structured_miss(geometry.operator, volume, task.images, task.variance)
                untouched = False
            if self.config.consistency:
                result = geometry.consistency(volume - floor, task.images - floor, task.variance) + floor
            else:
                result = volume.clamp_min(floor)
            spent += time.perf_counter() - begun
            return result

        seed = torch.Generator().manual_seed(
            self.config.seed + 1_000_003 * sweep.sweep + 1009 * sweep.position + sweep.channel
        )
        volume = sample(denoise, prior, settings, consistent, seed)
        findings = task.session.findings
        # A network that failed gets another chance whenever a held-out projection comes.
        again = findings.octave > OCTAVE[0] and task.held is not None
        due = again or task.session.sweeps % _TEST_EVERY == 0
        if self.config.fall_back and geometry.octave and due:
            once = SamplerSettings(1, self.config.guidance, 0.0, self.config.tile)
            findings.octave = geometry.octave(self._runtime, task.images, task.variance, floor, once)
        clock.lap("sampler")
        clock.seconds["sampler"] -= spent
        clock.seconds["consistency"] = spent
        return volume

    def _darken(self, task: _Task, answers: dict[str, Tensor]) -> None:
        """Set what network and INR left where a whole slab was dark to the level of no light."""
        own = [name for name in ("mdd", "inr") if name in answers]
        if not own or not self.config.consistency:
            return
        above = task.images - task.floor
        share = light_share(task.geometry.supports, self.header.shape[0], above, task.variance)
        for name in own:
            answers[name] = task.floor + share * (answers[name] - task.floor)

    def _serve(self, task: _Task, answers: dict[str, Tensor], figures: Figures) -> tuple[str, float]:
        """Return which answer is served and the network's weight in it; a blend joins answers and figures."""
        own = next(iter(answers))
        if not self.config.fall_back or len(answers) == 1:
            return own, float(own == "mdd")
        verdict = judge(own, task.session.findings, figures)
        if verdict.served == "blend":
            mix = verdict.weight * answers["mdd"] + (1 - verdict.weight) * answers[verdict.stand_in]
            answers["blend"] = mix
            own_figures = task.figures({"blend": mix})
            figures.residuals.update(own_figures.residuals)
            figures.errors.update(own_figures.errors)
        return verdict.served, verdict.weight

    def _reference(
        self, sweep: Sweep, geometry: Geometry, images: Tensor, clock: _Clock
    ) -> tuple[Tensor, int]:
        """Return the reference's volume (normalised) of one sweep, trained for it, and the INR's updates."""
        # Only here: nobody else pays for its import.
        from microdiffusion.engines.reference.method import ReferenceMethod

        session = (sweep.channel, sweep.position)
        if session not in self._references:
            self._references[session] = ReferenceMethod(
                self.config.reference,
                self.header.shape,
                self.device,
                seed=self.config.seed,
                progress=self._report,
            )
        centres = (sweep.z_um - self.header.z0_um) / self.header.voxel_size_um[0]
        answer = self._references[session].reconstruct(geometry.operator, centres, images)
        clock.lap("reference")
        clock.seconds |= answer.seconds
        del clock.seconds["reference"]
        return answer.volume, answer.inr_steps

    def _session(self, sweep: Sweep, counts: Tensor, geometry: Geometry) -> Session:
        sample_of = counts.flatten()[:: max(1, counts.numel() // 200_000)].cpu().numpy()
        low, high = (float(v) for v in np.percentile(sample_of, [1.0, 99.9]))
        span = max(high - low, 1e-3 * abs(high), 1e-6)
        key = (sweep.channel, sweep.position)
        session = self._sessions.get(key)
        if (
            session is not None
            and _RANGE_DRIFT[0] < span / session.span < _RANGE_DRIFT[1]
            and abs(low - session.low) < 0.5 * session.span
        ):
            return session
        prior = SessionPrior(
            self.header.shape,
            self.config.inr,
            bandwidth=default_bandwidth(geometry.conditions.length, geometry.conditions.step),
            seed=self.config.seed,
            device=self.device,
            name=f"channel {sweep.channel}, position {sweep.position}",
        )
        self._sessions[key] = Session(low, span, prior, Findings())
        return self._sessions[key]


def _rms(misfit: Tensor, variance: Tensor) -> float:
    """Return the root mean square of a misfit in units of the noise."""
    return float((misfit.square() / variance).mean().sqrt())
