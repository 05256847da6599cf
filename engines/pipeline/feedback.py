"""The engine's word on a sweep, for an adaptive acquisition."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.engines.pipeline.prior import drift_um
from microdiffusion.frames import StagePositions
from microdiffusion.wire import SweepFeedback

if TYPE_CHECKING:
    from microdiffusion.engines.inr import SessionField, SliceChanges
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.header import RunHeader

PLACES = 13
"""Beginnings that are compared, in a step: as many as the golden offsets have."""


def feedback_of(task: Task, field: SessionField, by_slice: SliceChanges, header: RunHeader) -> SweepFeedback:
    """Return what a sweep showed, which `field` has taken in.

    The slabs of a candidate are as far apart as those of this sweep, in the median, and those of its depths
    count that lie in the volume.
    """
    sweep, estimator, drift = task.sweep, field.estimator, drift_um(task.learned, header).drift_z_um
    first_um: tuple[float, ...] = ()
    information: tuple[float, ...] = ()
    step_um = sweep.stage.step_um
    if step_um > 0.0:
        firsts = candidates_um(header, step_um)
        noise = float(task.variance.mean()) * (task.session.span / field.unit / field.motion.brightness) ** 2
        shift = field.motion.shift[0] if field.motion.moved else 0.0
        matrices = [
            header.operator_at(StagePositions.along_z(z_um - shift * header.voxel_size_um[0]))
            for z_um in (slabs_from(header, first, step_um) for first in firsts)
        ]
        found = estimator.expected_information(matrices, max(noise, 1e-12))
        first_um, information = tuple(firsts), tuple(max(each, 0.0) for each in found)
    return SweepFeedback(
        sweep=sweep.sweep,
        channel=sweep.channel,
        position=sweep.position,
        learned=estimator.sweeps,
        innovation=tuple(np.nan_to_num(by_slice.innovation, posinf=0.0).clip(0.0).tolist()),
        changed=tuple(np.nan_to_num(by_slice.changed).clip(0.0, 1.0).tolist()),
        told=tuple(np.nan_to_num(by_slice.told, posinf=0.0).clip(0.0).tolist()),
        first_um=first_um,
        information=information,
        step_um=step_um,
        drift_z_um=drift if math.isfinite(drift) else None,
    )


def candidates_um(header: RunHeader, step_um: float) -> list[float]:
    """Return the depths at which sweeps of a step may begin, their first slab inside of the volume."""
    top_um = header.z0_um - 0.5 * header.voxel_size_um[0] + 0.5 * header.profile.length_um
    room_um = header.shape[0] * header.voxel_size_um[0] - header.profile.length_um
    places = 1 if room_um <= 0.0 else PLACES
    return [top_um + place / places * min(step_um, max(room_um, 0.0)) for place in range(places)]


def slabs_from(header: RunHeader, first_um: float, step_um: float) -> np.ndarray:
    """Return the centres (M,) of slabs from a first one on, µm, that lie in the volume."""
    voxel_um = header.voxel_size_um[0]
    bottom_um = header.z0_um + (header.shape[0] - 0.5) * voxel_um - 0.5 * header.profile.length_um
    count = max(int((bottom_um - first_um) / step_um + 1e-6) + 1, 1)
    return first_um + np.arange(count) * step_um
