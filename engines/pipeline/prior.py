"""The prior of a sweep: what the INR of the sweep alone says, then what all sweeps of its session say.

And what the session's INR tells besides: how far the specimen has moved, and for how many sweeps each voxel
has kept still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from microdiffusion.engines.inr import View, default_bandwidth, sweep_deviation
from microdiffusion.engines.projections import matched_smoothness, slab_light, tensor_of, tikhonov_matrix
from microdiffusion.frames import AGE_UNIT, Drift, age_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from microdiffusion.engines.inr import FieldEstimate, SessionField
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.header import RunHeader


def sweep_prior(task: Task) -> Tensor:
    """Return what the INR of the session, or of the sweep alone, says (Z, Y, X), and note in `task` how."""
    light = task.light = slab_light(task.images - task.floor, task.variance)
    task.session.prior.arrived(task.sweep.received_s)
    above = _alone(task) if task.field is None else _learned(task, task.field, light)
    return above + task.base


def _alone(task: Task) -> Tensor:
    """Return what the INR of the sweep alone says, above the level of no light."""
    geometry, floor = task.geometry, task.base
    view = View(
        geometry.operator,
        task.images - floor,
        task.variance,
        geometry.closed(task.images, task.variance),
        task.held_operator,
        None if task.held is None else task.held - floor,
    )
    fit = task.session.prior.fit(view)
    task.prior_steps = fit.steps
    return fit.volume


def _learned(task: Task, field: SessionField, light: Tensor) -> Tensor:
    """Take the sweep into the session's field; return what is known now, above the level of no light."""
    if task.known is not None:
        field.unit = task.known.unit
    floor, prior = task.base, task.session.prior
    field.rest_on(task.level)
    scale = task.session.span / field.unit

    def own(matrix: NDArray[np.float64], images: Tensor, variance: Tensor, pixels: Tensor | None) -> Tensor:
        """Return what the INR of the sweep alone says of some columns, in the field's units."""
        if pixels is None:
            prior.restart()
        # What was held out is where the stage saw it: a field is selected by it where nothing has moved.
        if not field.motion.moved and (pixels is None or prior.undecided(task.held is not None)):
            volume = _alone(task).flatten(1) * (scale / field.motion.brightness)
            volume = volume if pixels is None else volume[:, pixels]
        else:
            images, variance = images / scale, variance / scale**2
            closed = tikhonov_matrix(matrix, matched_smoothness(matrix, images, variance))
            operator, closed_form = (tensor_of(each, images.device) for each in (matrix, closed))
            view = View(operator, images, variance, closed_form)
            fit = prior.fit(view) if pixels is None else prior.fit_columns(view, pixels)
            task.prior_steps = fit.steps
            volume = fit.volume.flatten(1) * scale
        prior.release()
        return volume

    images, variance = (task.images - floor) * scale, task.variance * scale**2
    seen = (task.operator_at, images, variance, light, own)
    if task.known is None:
        task.learned = field.update(*seen)
    else:
        task.learned = field.look_back(*seen, task.known, task.level)
    volume = task.learned.volume / scale
    if task.learned.still > 0.0:  # what the covariances did not expect
        return task.geometry.consistency(volume, task.images - floor, task.variance)
    return volume.clamp_min_(0.0)


def drift_um(learned: FieldEstimate | None, header: RunHeader) -> Drift:
    """Return how far the specimen has moved since the session began."""
    if learned is None:
        return Drift()
    shift = learned.motion.shift
    return Drift(*(voxels * edge for voxels, edge in zip(shift, header.voxel_size_um, strict=True)))


def age_map(age: Tensor) -> NDArray[np.uint8]:
    """Return the map of ages (Z, Y, X) as it is recorded: see `frames.Reconstruction`."""
    z, y, x = age.shape
    blocks = F.adaptive_avg_pool3d(age.float()[None], age_shape((z, y, x)))[0]
    result: NDArray[np.uint8] = (blocks / AGE_UNIT).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return result


def prior_leeway(task: Task) -> Tensor:
    """Return what the sweeps so far leave open to the network (Z, Z); see `inr.leeway`."""
    if task.learned is not None:
        return task.learned.leeway()
    return torch.eye(task.geometry.operator.shape[1], device=task.images.device)


def prior_deviation(task: Task) -> Tensor:
    """Return the standard deviation (Z, Y, X) of the prior of a sweep, normalised."""
    if task.learned is not None and task.field is not None:
        return task.learned.deviation().mul_(task.field.unit / task.session.span)
    bandwidth = default_bandwidth(task.geometry.conditions.length)
    return sweep_deviation(task.geometry.matrix, task.images - task.base, task.variance, bandwidth)
