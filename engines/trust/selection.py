"""Selects the output: the network's volume, a fallback, or a blend of the two.

The network fills in what the projections do not say, so its answer is only as good as its training knows
the specimen. Three findings speak about that. Two have two limits: below the first the network is
trusted, beyond the second it is not, between them it is blended with the best of the others; the third is
that blend's weight itself. The least trust counts.

- *miss*: how far the network's own answer, before the pull towards the projections, misses them (the size
  of the consistency correction). Of the misfit only what neighbouring pixels share: noise averages out.
- *coarse*: how well it does one octave coarser, where the answer is known (see `coarse_test.py`).
- *held out*: the share of the network's answer in the mixture that predicts a projection best that was
  kept from all of them. It tracks the share that would be best for the whole volume, a little above it.

The others are the INR, Tikhonov and, where it explains its own projections, linear interpolation. The INR
starts from Tikhonov's answer, so one held-out projection, a look at one place, has to be clear to set it
aside. Verdicts last until the next finding of their kind. `scores.py` measures. One session, one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microdiffusion.engines.trust.scores import Scores

MISS_LIMITS = (0.015, 0.0175)
"""Rms over 3 x 3 pixels, share of the projections' range. Weights miss recorded volumes by up to 0.015."""
COARSE_LIMITS = (1.1, 1.25)
"""Mean squared error of the network relative to the closed form's."""
_PROVEN = 0.95  # relative error on the held-out projection below which the miss does not count
_FAR_OFF = 0.03  # a miss that nothing excuses
_CLEARLY = 0.8  # rms error relative to the INR's at which one projection sets the INR aside
_EXPLAINS = 1.25  # residual, in units of the noise and of the INR's, up to which linear interpolation may
# An answer whose reprojection misses by so many times what the best one (or the noise) does is broken.
_UNSOUND = 4.0


@dataclass(slots=True)
class Findings:
    """What is known of a session's network, and which other answer is its fallback.

    Attributes
    ----------
    coarse_error, held_out : float
        The network's error relative to another's, one octave coarser and on the held-out projection; 1
        where nobody looked yet.
    share : float
        Of the network in the blend that predicts the held-out projection; 1 where nobody looked yet.
    fallback : str or None
        The best of the other answers; None: nobody looked yet.
    """

    coarse_error: float = 1.0
    held_out: float = 1.0
    share: float = 1.0
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer to serve.

    Attributes
    ----------
    served : str
        Name of the answer, or "blend" of the network's and `fallback`'s.
    weight : float
        Of the network's answer, 0 to 1.
    fallback : str
        What fills the rest.
    """

    served: str
    weight: float
    fallback: str


def select(own: str, findings: Findings, scores: Scores) -> Selection:
    """Return what to serve where `own` is the configured method; updates the findings."""
    residuals, errors = scores.residuals, scores.errors
    sound = {name for name in residuals if residuals[name] < _UNSOUND * max(1.0, min(residuals.values()))}
    others = [name for name in residuals if name != "mdd"]
    first = others[0]  # the INR where there is one
    if errors:
        findings.fallback = _fallback(first, others, scores)
        if own == "mdd":
            findings.held_out = errors["mdd"] / max(errors[findings.fallback], 1e-12)
            findings.share = min(1.0, max(0.0, scores.shares[findings.fallback]))
    fallback = findings.fallback if findings.fallback in others else first
    if fallback not in sound:
        # Everybody is unsound only where the noise is; then the last, the most linear, is as good as any.
        fallback = next((name for name in others if name in sound), others[-1])
    if own != "mdd" or own not in sound:
        return Selection(fallback, 0.0, fallback)
    # A projection that the network predicts clearly better says more than the size of its correction.
    # But one place can be lucky: it does not excuse a network that is far off everywhere.
    proven = findings.held_out < _PROVEN and scores.miss < _FAR_OFF
    miss = 1.0 if proven else _trust(scores.miss, MISS_LIMITS)
    weight = min(miss, _trust(findings.coarse_error, COARSE_LIMITS), findings.share)
    served = own if weight >= 1.0 else fallback if weight <= 0.0 else "blend"
    return Selection(served, weight, fallback)


def _fallback(first: str, others: list[str], scores: Scores) -> str:
    residuals, errors = scores.residuals, scores.errors
    best = first
    for name in others[1:]:
        explains = residuals[name] < _EXPLAINS * max(1.0, residuals[first])
        if explains and errors[name] < _CLEARLY * errors[first] and errors[name] < errors[best]:
            best = name
    return best


def _trust(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return min(1.0, max(0.0, (high - value) / (high - low)))
