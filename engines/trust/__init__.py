"""Selects the answer to serve, and measures how far to trust it."""

from microdiffusion.engines.trust.claims import Claim
from microdiffusion.engines.trust.coarse_test import CoarseTest
from microdiffusion.engines.trust.scores import Scores, measure, measure_held, structured_miss
from microdiffusion.engines.trust.selection import COARSE_LIMITS, Findings, Selection, select
from microdiffusion.engines.trust.uncertainty import DEFAULT_SCALE, deviation, pattern, scale

__all__ = [
    "COARSE_LIMITS",
    "DEFAULT_SCALE",
    "Claim",
    "CoarseTest",
    "Findings",
    "Scores",
    "Selection",
    "deviation",
    "measure",
    "measure_held",
    "pattern",
    "scale",
    "select",
    "structured_miss",
]
