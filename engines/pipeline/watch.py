"""Watches the quality of a session's sweeps, without a reference: see `trust/quality_watch.py`.

`look` comes before the session takes the sweep in, as it then knows nothing of it yet; `settle` raises the
alarms once the sweep is reconstructed, and remembers, also where the sweep began another session. A rolling
update, and the way back of a session that goes in both directions, are not watched: their sweeps have been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.engines.trust import (
    alarms_of,
    appearance,
    glance,
    in_reverse,
    novelty,
    remembered,
    strangeness,
    surprise,
)

if TYPE_CHECKING:
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.engines.trust import Glance, Scores


@dataclass(frozen=True, slots=True)
class Watched:
    """The symptoms of a sweep, and those of the sweeps before it; both empty where it is not watched."""

    symptoms: dict[str, float]
    before: dict[str, list[float]]
    glance: Glance | None = None


def look(task: Task) -> Watched:
    """Return what a sweep shows that its session has not taken in yet."""
    if task.lane == "rolling" or task.known is not None or len(task.sweep.stage) < 2:
        return Watched({}, {})
    projections = np.asarray(task.sweep.projections)
    found = appearance(projections)
    found["strange"] = strangeness(found)
    seen_now = glance(projections, np.asarray(task.sweep.stage.z_um))
    compared = {"novelty": novelty(found, task.session.watched)}
    if task.session.glance is not None:
        compared["reversed"] = in_reverse(seen_now, task.session.glance)
    found |= {name: value for name, value in compared.items() if math.isfinite(value)}
    field = task.session.field
    if field is not None and field.estimator.sweeps:
        scale = task.session.span / field.unit
        noise = task.variance.mean(dim=(1, 2)) * scale**2
        images = (task.images - task.base) * scale
        seen, expected, spread, matrix = field.foretold(task.operator_at, images, float(noise.mean()))
        noise = noise / field.motion.brightness**2
        step = task.geometry.conditions.step
        found |= surprise(seen, expected, spread, noise, matrix, step)
    return Watched(found, task.session.watched, seen_now)


def settle(task: Task, watched: Watched, scores: Scores, served: str) -> dict[str, str]:
    """Return the alarms of a sweep that was reconstructed, by kind; its session remembers the symptoms."""
    found = watched.symptoms
    if not found:
        return {}
    if scores.miss > 0.0:  # of a network that was asked
        found["correction"] = math.log(scores.miss)
    if scores.errors.get(served, 0.0) > 0.0:
        found["held_out"] = math.log(scores.errors[served])
    if task.learned is not None and "innovation" in found:
        found["renewed"] = 1.0 - task.learned.still
    raised = alarms_of(found, watched.before)
    task.session.watched = remembered(found, watched.before)
    task.session.glance = watched.glance
    return raised
