"""Selects the answer to serve, and measures how far to trust it."""

from microdiffusion.engines.trust import intervals
from microdiffusion.engines.trust.claims import Claim
from microdiffusion.engines.trust.quality_watch import alarms_of, novelty, remembered, strangeness
from microdiffusion.engines.trust.scores import Scores, measure, measure_held, structured_miss
from microdiffusion.engines.trust.selection import TELLING, Findings, Selection, select
from microdiffusion.engines.trust.symptoms import Glance, appearance, glance, in_reverse, surprise
from microdiffusion.engines.trust.uncertainty import Clues, brightness_slope, deviation

__all__ = [
    "TELLING",
    "Claim",
    "Clues",
    "Findings",
    "Glance",
    "Scores",
    "Selection",
    "alarms_of",
    "appearance",
    "brightness_slope",
    "deviation",
    "glance",
    "in_reverse",
    "intervals",
    "measure",
    "measure_held",
    "novelty",
    "remembered",
    "select",
    "strangeness",
    "structured_miss",
    "surprise",
]
