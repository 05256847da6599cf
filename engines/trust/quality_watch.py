"""Alarms about the quality of a sweep: its symptoms against levels that were learned on good data.

A symptom counts by itself, or by how far it rose over its median in the session's sweeps before. Levels are
those of the session's second, third and later sweeps, as the less a session knows the more surprises it. They
come from good sessions alone (`alarm_levels.py`, written by benchmarks/alarms.py); nothing was tuned to a
fault. Keeps the symptoms of the last sweeps; runs on the reconstructor's thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from microdiffusion.engines.trust.alarm_levels import FAMILIAR, LEVELS, STEADY, WHITENING
from microdiffusion.engines.trust.symptoms import APPEARANCE

KEPT = 8
"""Sweeps whose symptoms are remembered."""
_OLDEST = 3  # sweeps before, from which on the levels are the same


@dataclass(frozen=True, slots=True)
class Sign:
    """A symptom that counts for a kind of alarm; `rise`: its change, not itself, is what counts."""

    symptom: str
    kind: str
    rise: bool = False

    @property
    def name(self) -> str:
        """Its key in the table of levels."""
        return f"{self.symptom} rising" if self.rise else self.symptom


SIGNS = (
    Sign("innovation", "unexpected"),
    Sign("renewed", "unexpected"),
    Sign("novelty", "unexpected"),
    Sign("spot", "spot", rise=True),
    Sign("shaded", "spot", rise=True),
    Sign("misplaced", "stage", rise=True),
    Sign("all_misplaced", "stage"),
    Sign("reversed", "stage"),
    Sign("dimmed", "dimmed"),
    Sign("softened", "blurred", rise=True),
    Sign("column", "column"),
    Sign("strange", "unfamiliar"),
)
TEXTS = {
    "unexpected": "earlier sweeps foretell this one far worse than usual",
    "spot": "a place in this sweep is nothing like it was",
    "stage": "slabs look as if they lay elsewhere than the stage said",
    "dimmed": "the specimen has dimmed",
    "blurred": "the images have lost their fine detail",
    "column": "a column or row of the camera does not vary as its neighbours do",
    "unfamiliar": "the specimen looks unlike all that the network was trained on",
}
"""Kind of alarm -> sentence."""


def strangeness(look: Mapping[str, float]) -> float:
    """Return the logarithm of the Mahalanobis distance of an appearance from the training's specimens."""
    apart = np.array([look[name] for name in APPEARANCE]) - np.array(FAMILIAR)
    return float(np.log(np.linalg.norm(np.array(WHITENING) @ apart) + 1e-9))


def novelty(look: Mapping[str, float], before: Mapping[str, list[float]]) -> float:
    """Return the logarithm of the Mahalanobis distance of an appearance from the session's own; or NaN.

    From the median of the sweeps before, at least two; its covariance is that of good sessions.
    """
    past = [before.get(name, ()) for name in APPEARANCE]
    if min(map(len, past)) < 2:
        return math.nan
    apart = np.array([look[name] for name in APPEARANCE]) - np.array([np.median(each) for each in past])
    return float(np.log(np.linalg.norm(np.array(STEADY) @ apart) + 1e-9))


def readings(
    now: Mapping[str, float], before: Mapping[str, list[float]]
) -> Iterator[tuple[Sign, float, int]]:
    """Yield each sign, what it reads, and for how many sweeps before (1 to 3) its level is.

    `now` are the symptoms of a sweep, `before` those of the last sweeps, oldest first.
    """
    for each in SIGNS:
        value = now.get(each.symptom, math.nan)
        earlier = before.get(each.symptom, [])
        if each.rise and earlier:
            value -= float(np.median(earlier))
        age = len(before.get("column", ()))
        if math.isfinite(value) and age and (earlier or not each.rise):
            yield each, value, min(age, _OLDEST)


def alarms_of(now: Mapping[str, float], before: Mapping[str, list[float]]) -> dict[str, str]:
    """Return kind and sentence of each alarm that a sweep's symptoms raise."""
    raised: dict[str, str] = {}
    for sign, value, age in readings(now, before):
        level = LEVELS.get(sign.name)
        if level is not None and value > level[age - 1]:
            raised.setdefault(sign.kind, TEXTS[sign.kind])
    return raised


def remembered(now: Mapping[str, float], before: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Return what is remembered after a sweep."""
    after = dict(before)
    for name, value in now.items():
        if math.isfinite(value):
            after[name] = [*before.get(name, ()), value][-KEPT:]
    return after
