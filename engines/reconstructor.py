"""One engine call for everybody: a sweep of projections in, a volume out.

The daemon, `mdd reconstruct` and the benchmarks use this class and nothing below it. It keeps one warm
INR per session (channel and position) and the matrices of each sweep geometry. The way of a sweep:

    normalise -> INR fit (warm) -> few-step sampler with data consistency -> candidates judged by the
    held-out projection -> back to the units of the projections

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

from microdiffusion.engines.conditioning import SliceConditions
from microdiffusion.engines.engine import Engine, open_engine
from microdiffusion.engines.inr import SessionInr, default_bandwidth
from microdiffusion.engines.linear import DataConsistency, along_z, interpolation_matrix, tikhonov_matrix
from microdiffusion.engines.noise import noise_variance
from microdiffusion.engines.sampler import Denoise, SamplerSettings, sample
from microdiffusion.errors import GeometryError
from microdiffusion.optics import projection_operator
from microdiffusion.sweep import Reconstruction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.config import EngineConfig
    from microdiffusion.run_header import RunHeader
    from microdiffusion.sweep import Sweep

# The network was trained on fields whose range is known to about this factor; beyond it, start anew.
_RANGE_DRIFT = (0.75, 1.5)
# A challenger must predict the held-out projection better by this share to take over.
_MARGIN = 0.03
# An answer whose reprojection misses by so many times what the best one (or the noise) does is broken.
_UNSOUND = 4.0
# Of the INR, in spans below the darkest projections: room for dark holes in a bright specimen.
_LOWEST_BASE = -1.0


@dataclass(slots=True, eq=False)
class _Geometry:
    """Everything that depends on the sweep's slab positions alone."""

    operator: Tensor
    tikhonov: Tensor
    linear: Tensor
    conditions: SliceConditions
    consistency: DataConsistency


@dataclass(slots=True, eq=False)
class _Session:
    """What is kept from sweep to sweep: normalisation, INR, and which answer is trusted."""

    low: float
    span: float
    inr: SessionInr
    fitted: bool = False
    trusted: str = "mdd"


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

    Raises
    ------
    ConfigError
        The device does not exist.
    MissingFileError, InputFileError
        The weights cannot be loaded.
    """

    def __init__(self, header: RunHeader, config: EngineConfig, engine: Engine | None = None) -> None:
        self.header = header
        self.config = config
        self.engine = engine or open_engine(config)
        self.device = self.engine.device
        self._runtime = self.engine.runtime
        self._geometries: dict[bytes, _Geometry] = {}
        self._sessions: dict[tuple[int, int], _Session] = {}

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
        geometry = self._geometry(sweep.z_um)
        counts = torch.from_numpy(sweep.projections).to(self.device)
        variance = noise_variance(counts, self.header.camera)
        session = self._session(sweep, counts)
        images = (counts - session.low) / session.span
        variance = variance / session.span**2
        # No light lies at the camera's offset; the floor of everything non-negative, normalised.
        floor = (self.header.camera.offset - session.low) / session.span
        if float(counts.min()) < self.header.camera.offset - 10 * session.span * float(
            variance.mean().sqrt()
        ):
            floor = float(images.min())  # a wrong offset in the header must not clip what was measured
        clock.lap("prepare")

        answers, steps = self._answers(sweep, geometry, session, images, variance, floor, clock)
        residuals = {
            name: float(((along_z(geometry.operator, volume) - images).square() / variance).mean().sqrt())
            for name, volume in answers.items()
        }
        served, errors = self._judge(sweep, session, answers, residuals)
        volume = (answers[served] * session.span + session.low).cpu().numpy()
        clock.lap("judge")
        clock.seconds["total"] = time.perf_counter() - started
        return Reconstruction(
            volume=volume,
            served=served,
            residual=residuals[served],
            held_out_error=errors.get(served, float("nan")),
            candidate_errors=errors,
            seconds=clock.seconds,
            inr_iterations=steps,
        )

    def _answers(
        self,
        sweep: Sweep,
        geometry: _Geometry,
        session: _Session,
        images: Tensor,
        variance: Tensor,
        floor: float,
        clock: _Clock,
    ) -> tuple[dict[str, Tensor], int]:
        """Return the candidate volumes (normalised) by name, the configured method first, and INR steps."""
        method = self.config.method
        if method == "linear":
            return {"linear": along_z(geometry.linear, images).clamp_min(floor)}, 0
        closed = along_z(geometry.tikhonov, images).clamp_min(floor)
        if method == "tikhonov":
            return {"tikhonov": closed}, 0
        limits = self.config.inr
        # Where the camera's pedestal is not known, zero light seems to lie far below everything that was
        # measured; a field that has to climb from there never arrives.
        base = max(floor, _LOWEST_BASE)
        fit = session.inr.fit(
            geometry.operator,
            images,
            variance,
            floor=base,
            steps=limits.warm_steps if session.fitted else limits.cold_steps,
        )
        session.fitted = True
        prior = session.inr.volume(base)
        clock.lap("inr")
        if method == "inr" or self._runtime is None:
            return {"inr": prior, "tikhonov": closed}, fit.steps

        kappa = self.config.interpolation * 0.1
        settings = SamplerSettings(self.config.steps, self.config.guidance, kappa, self.config.tile)
        noise = float(variance.mean().sqrt())
        denoise = Denoise(self._runtime, prior, images, geometry.conditions, noise, settings)
        spent = 0.0

        def consistent(volume: Tensor) -> Tensor:
            nonlocal spent
            begun = time.perf_counter()
            if self.config.consistency:
                result = geometry.consistency(volume - floor, images - floor, variance) + floor
            else:
                result = volume.clamp_min(floor)
            spent += time.perf_counter() - begun
            return result

        seed = torch.Generator().manual_seed(
            self.config.seed + 1_000_003 * sweep.sweep + 1009 * sweep.position + sweep.channel
        )
        volume = sample(denoise, prior, settings, consistent, seed)
        clock.lap("sampler")
        clock.seconds["sampler"] -= spent
        clock.seconds["consistency"] = spent
        return {"mdd": volume, "inr": prior, "tikhonov": closed}, fit.steps

    def _judge(
        self, sweep: Sweep, session: _Session, answers: dict[str, Tensor], residuals: dict[str, float]
    ) -> tuple[str, dict[str, float]]:
        """Return which answer is served, and each one's error on the held-out projections.

        An answer that does not even explain the projections it was made from is never served while
        another one does.
        """
        own = next(iter(answers))
        if session.trusted not in answers:
            session.trusted = own
        errors: dict[str, float] = {}
        if sweep.held_out_z_um.size:
            operator = self._operator(sweep.held_out_z_um)
            counts = torch.from_numpy(sweep.held_out).to(self.device)
            sigma = noise_variance(counts, self.header.camera).sqrt() / session.span
            target = (counts - session.low) / session.span
            for name, volume in answers.items():
                errors[name] = float(((along_z(operator, volume) - target) / sigma).square().mean().sqrt())
            if self.config.fall_back:
                best = min(errors, key=errors.__getitem__)
                session.trusted = best if errors[best] < (1 - _MARGIN) * errors[own] else own
        if not self.config.fall_back:
            return own, errors
        sound = [name for name in answers if residuals[name] < _UNSOUND * max(1.0, min(residuals.values()))]
        return (session.trusted if session.trusted in sound or not sound else sound[-1]), errors

    def _session(self, sweep: Sweep, counts: Tensor) -> _Session:
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
        limits = self.config.inr
        conditions = self._geometry(sweep.z_um).conditions
        bandwidth = limits.bandwidth_z or default_bandwidth(conditions.length, conditions.step)
        inr = SessionInr(self.header.shape, bandwidth=bandwidth, rank=limits.rank, seed=self.config.seed)
        self._sessions[key] = _Session(low, span, inr.to(self.device))
        return self._sessions[key]

    def _operator(self, z_um: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(self._matrix(z_um).astype(np.float32)).to(self.device)

    def _matrix(self, z_um: NDArray[np.float64]) -> NDArray[np.float64]:
        return projection_operator(
            z_um,
            self.header.profile,
            z0_um=self.header.z0_um,
            voxel_z_um=self.header.voxel_size_um[0],
            shape_z=self.header.shape[0],
        )

    def _geometry(self, z_um: NDArray[np.float64]) -> _Geometry:
        # Stages report positions with some nanometres of jitter; a twentieth of a slice is one geometry.
        step = self.header.voxel_size_um[0] / 20
        key = np.round(z_um / step).astype(np.int64).tobytes()
        known = self._geometries.get(key)
        if known is not None:
            return known
        matrix = self._matrix(z_um)
        centres = (z_um - self.header.z0_um) / self.header.voxel_size_um[0]
        length = self.header.profile.length_um / self.header.voxel_size_um[0]

        def tensor(array: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(array.astype(np.float32)).to(self.device)

        operator = tensor(matrix)
        geometry = _Geometry(
            operator,
            tensor(tikhonov_matrix(matrix)),
            tensor(interpolation_matrix(centres, self.header.shape[0])),
            SliceConditions.of(matrix, centres, length),
            DataConsistency(operator),
        )
        if len(self._geometries) >= 64:  # lost frames make rare geometries; keep memory bounded
            self._geometries.pop(next(iter(self._geometries)))
        self._geometries[key] = geometry
        return geometry
