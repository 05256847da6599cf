"""Selects the output: the network's volume, a fallback, or a blend of the two.

The network adds what the projections do not contain, so its answer is only as good as its training covers the
specimen. Three findings measure that. The first two have limits, between which the network is blended with
the fallback; the third is the weight of that blend itself. The least trust counts.

- *miss*: how far the network's raw answer misses the projections (the size of the consistency correction),
  averaged over neighbouring pixels so that noise cancels; less counts where slabs left out were explained;
- *left out*: the share of its corrections that slabs left out bore out (`pipeline/cross_validation.py`);
- *held out*: the network's share in the mixture that best predicts a held-out projection. It tracks the best
  share for the whole volume, a little above it.

In a session the next sweep's projections say more than all of these, see `claims.py`: where they tell
anything, and nothing displaces the INR, the share of the network's corrections that they bore out gives its
weight.

Fallbacks are the INR, Tikhonov and, where it explains its own projections, linear interpolation. The INR
starts from Tikhonov's answer, so a held-out projection, which tests a single position, must be clear to
displace it. Findings last until the next of their kind. `scores.py` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from microdiffusion.engines.trust.scores import Scores

_MISS_LIMITS = (0.01, 0.0125)
"""Rms over 3 x 3 pixels, share of the projections' range, where nothing was left out. Recorded volumes are
missed by up to 0.009, but for three of 23 (cell walls, chromosomes, pollen: 0.018); gratings and checkers
that come out worse, by 0.012 on.
"""
_KNOWN_LIMITS = (0.02, 0.025)
"""The same for a network that knows the specimen, as far as slabs left out tell."""
# Share that slabs left out bore out: of lattices and ramps that come out worse up to 0.2, of recorded volumes
# from 0.5 to 2. Far above one the network sees that something is wrong and not what.
_BORE_OUT, _OVERDONE = (0.15, 0.8), (3.0, 2.2)
_PROVEN = 0.95  # relative error on the held-out projection below which the miss does not count
_FAR_OFF = 0.03  # a miss that nothing excuses
_CLEARLY = 0.8  # rms error relative to the INR's at which one projection displaces the INR
_EXPLAINS = 1.25  # residual relative to the noise and to the INR's, up to which an answer may be the fallback
# An answer whose squared residual is so many times the best one's (or the noise) is broken. A session in
# which a part of the specimen moved otherwise than the rest has four times, and the best answer still.
_UNSOUND = 9.0
_MEMORY = 0.7  # of what earlier sweeps bore out: as a session learns, the network's task becomes another
# Shares that later projections bore out, at which the network has no weight, and all of it: they show the
# broad part of a correction, which the session knows best and the network least.
_WEIGHS = (-0.1, 0.5)
TELLING = 100.0
"""Squared correction in units of the noise, from which on projections tell its share."""
_TELLS_ALL = 1000.0  # and one sweep all it can


@dataclass(slots=True)
class Findings:
    """Findings about a session's network, 1 before the first test, and its fallback.

    Attributes
    ----------
    left_out : float or None
        Share of the network's corrections that slabs left out bore out; None: not known.
    left_out_errors : dict
        Squared misfit of each answer there; empty before the first test.
    held_out : float
        The network's error relative to another's on the held-out projection.
    share : float
        Of the network in the blend that predicts the held-out projection.
    fallback : str or None
        The best of the other answers; None before the first test.
    explained, claimed : float
        Of the projections that followed, by the network's corrections, and all that these said; see `Claim`.
    general : bool
        Whether the network that ships serves in place of one that is adapted to a specimen; `why_general`
        says why.
    """

    left_out: float | None = None
    left_out_errors: dict[str, float] = field(default_factory=dict)
    held_out: float = 1.0
    share: float = 1.0
    fallback: str | None = None
    explained: float = 0.0
    claimed: float = 0.0
    general: bool = False
    why_general: str = ""

    @property
    def borne_out(self) -> float | None:
        """The share of the network's corrections that later projections bore out; None: not known yet."""
        if self.claimed < TELLING:
            return None
        return min(1.0, max(0.0, self.explained / self.claimed))

    @property
    def weight(self) -> float | None:
        """The network's weight, as far as later projections tell; None: not known yet."""
        return None if self.claimed < TELLING else _trust(self.explained / self.claimed, _WEIGHS)

    def note(self, explained: float, claimed: float) -> None:
        """Take in what the projections of a sweep say of the last one's correction."""
        if not claimed > 0.0 or not math.isfinite(explained + claimed):
            # Nothing new was told, or nothing that is a number: what is known grows old.
            self.explained *= _MEMORY
            self.claimed *= _MEMORY
        else:
            # A sweep that claimed much must not outweigh all later ones.
            counts = min(1.0, _TELLS_ALL / claimed)
            self.explained = _MEMORY * self.explained + counts * explained
            self.claimed = _MEMORY * self.claimed + counts * claimed

    def in_another_range(self) -> Findings:
        """Return the findings of the same session with another normalisation."""
        return replace(self, left_out=None, left_out_errors={}, held_out=1.0, share=1.0, fallback=None)

    def forget_claims(self) -> None:
        """Begin anew, with another specimen."""
        self.explained = self.claimed = 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer to serve: `served` is its name, or "blend": `weight` of the network, the rest `fallback`.

    `why` says what speaks against the network alone; empty where it is served, or was not asked for.
    """

    served: str
    weight: float
    fallback: str
    why: str = ""


def select(own: str, findings: Findings, scores: Scores) -> Selection:
    """Return the answer to serve where `own` is the configured method; update the findings."""
    residuals, errors = scores.residuals, scores.errors
    sound = {name for name in residuals if residuals[name] < _UNSOUND * max(1.0, min(residuals.values()))}
    others = [name for name in residuals if name != "mdd"]
    first = others[0]  # the INR where there is one
    if errors:
        findings.fallback = _fallback(first, others, scores, findings.left_out_errors)
        if own == "mdd":
            findings.held_out = errors["mdd"] / max(errors[findings.fallback], 1e-12)
            findings.share = min(1.0, max(0.0, scores.shares[findings.fallback]))
    fallback = findings.fallback if findings.fallback in others else first
    if fallback not in sound:
        # All are unsound only where the noise estimate is; then the last, the most linear, is as good as any.
        fallback = next((name for name in others if name in sound), others[-1])
    if own != "mdd" or own not in sound:
        broken = "the network's answer is far from its own projections"
        return Selection(fallback, 0.0, fallback, broken if own == "mdd" else "")
    weight = findings.weight
    if weight is not None and fallback == first:
        why = f"later projections bore out {findings.borne_out:.0%} of what the network added"
        return _weighed(weight, first, why)
    # A clearly better prediction of a projection says more than the size of the correction. But a single
    # position can be lucky: it does not excuse a network that is far off everywhere.
    proven = findings.held_out < _PROVEN and scores.miss < _FAR_OFF
    share = findings.left_out
    knows = 0.0 if share is None else min(_trust(share, _BORE_OUT), _trust(share, _OVERDONE))
    limits = zip(_MISS_LIMITS, _KNOWN_LIMITS, strict=True)
    usual, most = (strict + knows * (wide - strict) for strict, wide in limits)
    misses = f"the network misses the projections by {scores.miss:.1%} of their range, {usual:.1%} is usual"
    trust = {
        misses: 1.0 if proven else _trust(scores.miss, (most, usual)),
        f"{fallback} predicts a held-out projection about as well, or better": findings.share,
    }
    if share is not None:
        called = "bore out" if share < _OVERDONE[1] else "called for"
        trust[f"slabs left out {called} {share:.0%} of what the network added"] = knows
    why = min(trust, key=lambda reason: trust[reason])
    return _weighed(trust[why], fallback, why)


def _weighed(weight: float, fallback: str, why: str) -> Selection:
    served = "mdd" if weight >= 1.0 else fallback if weight <= 0.0 else "blend"
    return Selection(served, weight, fallback, "" if served == "mdd" else why)


def _fallback(first: str, others: list[str], scores: Scores, left_out: dict[str, float]) -> str:
    residuals, errors = scores.residuals, scores.errors
    best = first
    for name in others[1:]:
        explains = residuals[name] < _EXPLAINS * max(1.0, residuals[first])
        # One position can be lucky; where more were left out, they have to agree.
        agrees = left_out.get(name, 0.0) <= left_out.get(first, 0.0)
        if explains and agrees and errors[name] < _CLEARLY * errors[first] and errors[name] < errors[best]:
            best = name
    return best


def _trust(value: float, limits: tuple[float, float]) -> float:
    """Return 0 at the first limit and beyond, 1 at the second, and what lies between."""
    none, full = limits
    return min(1.0, max(0.0, (value - none) / (full - none)))
