"""Two networks for one specimen: the one that was adapted to it, and the one that ships.

Adapted weights are better for their specimen and worse for others, and a session doesn't know which one it
sees. So in a session's first sweeps, and in some of the later ones, both networks are asked, and the
projections of the next sweep, which nobody had seen, say which corrections were the better ones: with a
weight w that is the share borne out, 1 at most, the misfit falls by w (2 explained - w claimed); see
`trust/claims.py`. The latest comparison counts: as a session learns, the networks' task becomes another. In
a first sweep, with nothing to follow yet, both reconstruct it without some of its slabs.

Weights adapted under other optics do not take part: the network that ships serves instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.engines.pipeline import network_worth
from microdiffusion.engines.trust import Claim

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.diffusion import Belonging, Runtime
    from microdiffusion.engines.pipeline.engine import Engine
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.engines.pipeline.update import Tensors
    from microdiffusion.engines.trust import Findings
    from microdiffusion.header import RunHeader

_FIRST, _EVERY = 3, 8
"""Sweeps in which both are asked: the first ones of a session, and one in so many."""
_CLEARLY = 1.3  # times what the one that serves is worth: projections do not tell all of it


def contenders(
    engine: Engine, header: RunHeader, config: EngineConfig
) -> tuple[Runtime | None, Runtime | None, str]:
    """Return the network to begin with, its rival, and why the adapted one is left out (a sentence).

    There is a rival only where the weights belong to a specimen, and `engine.fallback` is on.
    """
    belonging = engine.belonging
    if belonging is None or engine.general is None or not config.fallback:
        return engine.runtime, None, ""
    other = belonging.other_optics(header)
    if other:
        text = f"the weights adapted to {belonging.specimen} are for {other}: those that ship with mdd serve"
        return engine.general, None, text
    return engine.runtime, engine.general, ""


def due(task: Task) -> bool:
    """Return whether both networks are asked in a sweep."""
    sweeps = task.session.sweeps
    asked = sweeps < _FIRST or sweeps % _EVERY == 0
    return asked and task.effort < 2 and task.lane != "rolling" and task.known is None


def claim_of(task: Task, answers: Tensors) -> Claim | None:
    """Return the claim of the network that is asked beside the one that serves."""
    if task.learned is None:
        return None
    motion = task.learned.motion
    return Claim.of(answers["inr"], answers["mdd"], motion.shift, motion.brightness)


def note(task: Task, told: list[float], belonging: Belonging | None) -> None:
    """Take in what a sweep says of the last corrections (4,); see `network_worth.evidence`."""
    explained, claimed, theirs, they_claimed = told
    findings = task.session.findings
    if belonging is not None and compare(findings, belonging, (explained, claimed), (theirs, they_claimed)):
        findings.forget_claims()  # of the one that no longer serves
        explained, claimed = theirs, they_claimed
    network_worth.note(task, explained, claimed)


def _worth(explained: float, claimed: float) -> float:
    """Return by how much a misfit falls once a correction counts as much as it would be served."""
    weight = min(1.0, max(0.0, explained / claimed))
    return weight * (2 * explained - weight * claimed)


def compare(
    findings: Findings,
    belonging: Belonging,
    serving: tuple[float, float],
    other: tuple[float, float],
    witnesses: str = "later projections",
) -> bool:
    """Return whether the other network serves from now on; take note of it.

    `serving` and `other` are what `witnesses` explain of the corrections of the network that serves and of
    the other one, and all that these said: `Claim.held_against`.
    """
    if not (serving[1] > 0.0 and other[1] > 0.0):
        return False
    mine, theirs = _worth(*serving), _worth(*other)
    if theirs <= _CLEARLY * mine:
        return False
    findings.general = not findings.general
    findings.left_out = None
    findings.why_general = ""
    if findings.general:
        shares = (100 * max(0.0, explained) / claimed for explained, claimed in (serving, other))
        findings.why_general = (
            f"{witnesses} bore out {next(shares):.0f} % of what the weights adapted to "
            f"{belonging.specimen} added and {next(shares):.0f} % of what those that ship did, which serve"
        )
    return True
