"""Worth of the network to a session: its claims, and the evidence of the sweeps that follow.

See `trust/claims.py`. The evidence goes into the session's findings before an answer is selected; the claim
of a sweep is kept once the sweep has succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from microdiffusion.engines.trust import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from microdiffusion.engines.pipeline.session import Session
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.engines.pipeline.update import Tensors

EVERY = 4
"""Sweeps between two tests of a network that a session is better without; the next sweep tells the result."""
_WORTHLESS = 0.03  # weight of its corrections
# After one sweep the prior is coarse: about half of what the network is right to add to it is in the second
# sweep, too.
_FIRST_COUNTS = 0.5
_MOVED = 0.5  # voxels between two sweeps, beyond which the claim lies elsewhere
_SAME_PLACE = 0.1  # of a step


def worthless(session: Session) -> bool:
    """Return whether later projections bore out next to nothing of what the network added to a session."""
    weight = session.findings.weight
    return weight is not None and weight < _WORTHLESS


def evidence(task: Task) -> Tensor:
    """Return what a sweep explains of the network's last correction, and all that this said (2,).

    Then the same of the other network's, where two were asked: (4,).
    """
    session = task.session
    return torch.cat([_evidence(task, claim) for claim in (session.claim, session.rival_claim)])


def _evidence(task: Task, claim: Claim | None) -> Tensor:
    learned = task.learned
    nothing = torch.zeros(2, device=task.images.device)
    # A rolling update goes by what is known; offline the way there has told it.
    if claim is None or learned is None or task.lane == "rolling" or task.known is not None:
        return nothing
    motion = learned.motion
    moved = max(abs(now - before) for now, before in zip(motion.shift, claim.shift, strict=True))
    if moved > _MOVED or _just_seen(task):
        return nothing
    seen = (task.geometry.operator, task.images, task.variance, learned.age)
    return claim.held_against(*seen, brightness=motion.brightness, dark=task.base)


def note(task: Task, explained: float, claimed: float) -> None:
    """Take the evidence of a sweep into its session's findings."""
    findings, learned = task.session.findings, task.learned
    if learned is None or task.lane == "rolling" or task.known is not None:
        return
    if learned.still == 0.0:
        findings.forget_claims()
    field = task.session.field
    if field is not None and field.estimator.sweeps == 1:
        explained *= _FIRST_COUNTS
    if task.session.claim is not None and (claimed > 0.0 or _just_seen(task)):
        findings.note(explained, claimed)


def keep(task: Task, answers: Tensors, rival: Claim | None) -> None:
    """Keep the claims that the answers to a sweep make, and where the sweep's slabs lay.

    `rival` is that of the other network.
    """
    session, learned = task.session, task.learned
    if learned is None or task.known is not None:
        return
    session.places = (*session.places[-1:], task.geometry.places)
    session.claim, session.rival_claim = None, rival
    if "mdd" in answers:
        motion = learned.motion
        session.claim = Claim.of(answers["inr"], answers["mdd"], motion.shift, motion.brightness)


def _just_seen(task: Task) -> bool:
    """Return whether all slabs of a sweep lie where one of the last two sweeps had some."""
    seen = np.array([place for places in task.session.places for place in places])
    if not seen.size:
        return False
    apart = np.abs(np.array(task.geometry.places)[:, None] - seen).min(1)
    return bool(apart.max() < _SAME_PLACE * task.geometry.conditions.step)
