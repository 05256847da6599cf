"""One sweep in the units of its session: images, noise, and what it may learn from.

A session's dark level is 0 and its bright level 1. Where the camera's gain is not known, the noise comes from
the images, and what tells it from texture is redundancy: overlapping slabs, held-out projections, and what
earlier sweeps have taught.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.pipeline.device import upload
from microdiffusion.engines.projections import estimate_sigma, noise_variance, white_share
from microdiffusion.errors import GeometryError
from microdiffusion.frames import StagePositions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.engines.inr import FieldEstimate, Known, SessionField
    from microdiffusion.engines.pipeline.geometry import Geometries, Geometry
    from microdiffusion.engines.pipeline.run_sessions import RunSessions
    from microdiffusion.engines.pipeline.session import Session
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

# Of the prior, in spans below the darkest projections: room for dark holes in a bright specimen. Where the
# camera's pedestal is not known, zero light seems to lie far below everything that was measured, and a field
# that starts there never converges.
_LOWEST_BASE = -1.0
_KNOWS_TEXTURE = 3  # sweeps after which what was learned tells texture from noise
_RISES = 1.1  # of the noise's variance, from sweep to sweep, at most: more is a specimen that moved


@dataclass(slots=True, eq=False)
class Task:
    """One normalised sweep.

    `images` and `variance` (M, Y, X); `floor` is the level of no light; `operator_at` returns the operator
    (M, Z) by how many slices deeper the specimen lies; `held`, `held_variance` (H, Y, X) and `held_operator`
    (H, Z) are the held-out projections, None where there is none; `field` is what earlier sweeps have taught,
    a copy: the session goes on with it once the sweep has succeeded; `light` (M, Y, X) is `slab_light`.
    """

    sweep: Sweep
    lane: str
    effort: int
    session: Session
    geometry: Geometry
    images: Tensor
    variance: Tensor
    floor: float
    operator_at: Callable[[float], NDArray[np.float64]]
    field: SessionField | None
    held_operator: Tensor | None = None
    held: Tensor | None = None
    held_variance: Tensor | None = None
    prior_steps: int = 0
    learned: FieldEstimate | None = None
    known: Known | None = None
    light: Tensor | None = None

    @property
    def base(self) -> float:
        """The level of no light that priors start from."""
        return max(self.floor, _LOWEST_BASE)

    @property
    def another_specimen(self) -> bool:
        """True where nothing that the session knew holds in this sweep."""
        before, after = self.session.field, self.field
        return (
            before is not None
            and after is not None
            and before.estimator.sweeps > 0
            and after.estimator.sweeps == 1
        )

    @property
    def level(self) -> float:
        """That level in counts."""
        return self.session.low + self.base * self.session.span


class Normaliser:
    """Brings the sweeps of a run into the units of their sessions."""

    def __init__(
        self, header: RunHeader, geometries: Geometries, sessions: RunSessions, device: torch.device
    ) -> None:
        self._header = header
        self._geometries = geometries
        self._sessions = sessions
        self._device = device

    def task(self, sweep: Sweep, lane: str, effort: int) -> Task:
        """Return the sweep in normalised units.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume, or the sweep holds no projection.
        """
        if len(sweep.stage) == 0:
            raise GeometryError(f"Sweep {sweep.sweep} holds no projection to reconstruct from.")
        camera = self._header.camera
        geometry = self._geometries.of(sweep.stage)
        counts = upload(sweep.projections, self._device)
        session = self._sessions.of(sweep, lane, geometry.conditions.length)
        operator_at = self._operator_at(sweep.stage)
        variance = self._variance(session, sweep, counts, geometry.matrix, operator_at) / session.span**2
        images = (counts - session.low) / session.span
        # No light is at the camera's offset: the floor of everything non-negative, normalised.
        floor = (camera.offset - session.low) / session.span
        lowest = float(sweep.projections.min())
        if lowest < camera.offset:
            noise = session.span * float(variance.mean().sqrt())
            if lowest < camera.offset - 10 * noise:
                # A wrong offset in the header must not clip what was measured.
                floor = (lowest - session.low) / session.span
        field = None if session.field is None else session.field.copy()
        if field is not None and field.estimator.sweeps:
            # Each sweep has another darkest pixel, and what was learned shall not move with it.
            floor = min(floor, (field.level - session.low) / session.span)
        task = Task(sweep, lane, effort, session, geometry, images, variance, floor, operator_at, field)
        if len(sweep.held_out_stage):
            held = upload(sweep.held_out, self._device)
            task.held_operator = self._geometries.operator(sweep.held_out_stage)
            task.held = (held - session.low) / session.span
            task.held_variance = noise_variance(held, camera, session.white_share) / session.span**2
        return task

    def _variance(
        self,
        session: Session,
        sweep: Sweep,
        counts: Tensor,
        matrix: NDArray[np.float64],
        operator_at: Callable[[float], NDArray[np.float64]],
    ) -> Tensor:
        """Return the noise variance; overlapping slabs and repeated sweeps separate noise from texture."""
        camera = self._header.camera
        if camera.gain is not None:
            return noise_variance(counts, camera)
        raw, known = estimate_sigma(counts) ** 2, session.noise
        if len(sweep.held_out_stage):
            share = self._held_out_share(sweep, counts)
            # Three images tell it badly.
            session.white_share = (session.white_share + share) / 2 if session.sweeps else share
        elif session.sweeps == 0 and known is not None:
            # Another specimen has other texture, and the camera's noise stays.
            session.white_share = min(1.0, known / max(raw, 1e-30))
        variance = noise_variance(counts, camera, min(white_share(counts, matrix), session.white_share))
        field = session.field
        if field is not None and field.estimator.sweeps >= _KNOWS_TEXTURE:
            # Texture is in what was learned, too, and cancels; where the specimen moved, more is left.
            repeated = estimate_sigma(counts - field.predict(operator_at) * field.unit) ** 2
            limit = float("inf") if known is None else _RISES * known
            noise = min(repeated, session.white_share * raw, limit)
            variance.fill_(max(noise, camera.read_noise**2, 1e-6 * session.span**2))
        session.noise = float(variance[0, 0, 0])
        return variance

    def _held_out_share(self, sweep: Sweep, counts: Tensor) -> float:
        """Return the share of noise in the fine structure, from held-out projections and their neighbours."""
        stage = sweep.stage + sweep.held_out_stage
        stack = torch.cat([counts, upload(sweep.held_out, self._device)])
        order = stage.order()
        places = np.flatnonzero(order >= len(sweep.stage))
        near = np.unique(np.clip(places[:, None] + np.arange(-1, 2), 0, len(order) - 1))
        chosen = order[near]
        return white_share(stack[torch.from_numpy(chosen)], self._header.operator_at(stage[chosen]))

    def _operator_at(self, stage: StagePositions) -> Callable[[float], NDArray[np.float64]]:
        """Return the function `Task.operator_at`."""
        voxel_um = self._header.voxel_size_um[0]
        return lambda deeper: self._header.operator_at(StagePositions.along_z(stage.z_um - deeper * voxel_um))
