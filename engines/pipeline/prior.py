"""The prior of a sweep: what the INR of the sweep alone says, then what all sweeps of its session say.

And what the session's INR tells besides: how far the specimen has moved, and for how many sweeps each voxel
has kept still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from microdiffusion.engines.inr import View
from microdiffusion.frames import AGE_UNIT, Drift, age_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from microdiffusion.engines.inr import FieldEstimate
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.header import RunHeader

_NETWORK_SHARE = (0.0, 1.0, 0.5, 0.25)
"""Of the network's correction, by how many sweeps a voxel has kept still; none beyond."""


def sweep_prior(task: Task) -> Tensor:
    """Return what the INR of the session, or of the sweep alone, says (Z, Y, X), and note in `task` how."""
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
    return _learn(task, fit.volume)


def _learn(task: Task, own: Tensor) -> Tensor:
    """Take the sweep into the session's field; return what is known now, `own` where nothing is kept."""
    field = task.field
    if field is None:
        return own
    if task.known is not None:
        field.unit = task.known.unit
    floor = task.base
    scale = task.session.span / field.unit
    seen = (
        task.operator_at,
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


def network_share(age: Tensor) -> Tensor:
    """Return the share of the network's correction that each voxel takes, by its age."""
    table = torch.zeros(256, device=age.device)
    table[: len(_NETWORK_SHARE)] = torch.tensor(_NETWORK_SHARE, device=age.device)
    return table[age.long()]
