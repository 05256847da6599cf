"""Confidence of a sweep's volume: how far each voxel may be off, in figures and as a map.

See `trust/uncertainty.py` and `trust/intervals.py`. The innovation is taken against what the session's field
let expect before the sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from microdiffusion.engines.pipeline.prior import prior_deviation
from microdiffusion.engines.projections import local_mean
from microdiffusion.engines.trust import Clues, brightness_slope, deviation, intervals
from microdiffusion.frames import Confidence, age_shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from microdiffusion.engines.pipeline.task import Task

_WINDOW = 7  # pixels, over which the innovation is a mean


def clues_of(task: Task, volume: Tensor) -> Clues:
    """Return what a sweep tells of the errors of its volume (Z, Y, X), normalised."""
    innovation = None
    field = task.session.field  # as it was before the sweep
    if field is not None and field.estimator.sweeps and task.learned is not None and task.learned.still > 0:
        scale = field.unit / task.session.span
        missed = task.images - task.base - field.predict(task.operator_at) * scale
        local = local_mean(missed.square_(), _WINDOW)
        innovation = torch.tensordot(task.geometry.linear, local, dims=1).clamp_min_(0.0)
    share = task.session.findings.borne_out
    return Clues(volume - task.floor, prior_deviation(task), task.variance.mean(), innovation, share)


def confidence(task: Task, volume: Tensor) -> tuple[Tensor, Confidence]:
    """Return the standard deviation of a sweep's volume (Z, Y, X), both normalised, and what is recorded.

    Where projections were held out, the session's intervals learn from them.
    """
    session = task.session
    spread = deviation(clues_of(task, volume))
    width, covered = intervals.factor(session.scores), float("nan")
    if task.held is not None and task.held_operator is not None and task.held_variance is not None:
        scores = intervals.scored(volume, spread, task.held_operator, task.held, task.held_variance)
        covered = intervals.coverage(scores, width)
        session.scores = intervals.remembered(session.scores, scores)
    slope, slope_sd = brightness_slope(volume - task.floor, spread).tolist()
    mean = float(spread.square().mean().sqrt()) * session.span
    return spread, Confidence(mean, width, covered, slope, slope_sd)


def uncertainty_map(spread: Tensor) -> NDArray[np.float32]:
    """Return the root mean square of deviations (Z, Y, X) over blocks: see `frames.Reconstruction`."""
    z, y, x = spread.shape
    blocks = F.adaptive_avg_pool3d(spread.square()[None], age_shape((z, y, x)))[0]
    result: NDArray[np.float32] = blocks.sqrt().cpu().numpy()
    return result
