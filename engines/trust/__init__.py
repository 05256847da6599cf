"""Decides which estimate is served, and how far it can be trusted."""

from microdiffusion.engines.trust.coarse_test import OctaveTest
from microdiffusion.engines.trust.scores import Figures, measure, measure_held, structured_miss
from microdiffusion.engines.trust.selection import OCTAVE, Findings, judge
from microdiffusion.engines.trust.uncertainty import UNTOLD, deviation, pattern, scale

__all__ = [
    "OCTAVE",
    "UNTOLD",
    "Figures",
    "Findings",
    "OctaveTest",
    "deviation",
    "judge",
    "measure",
    "measure_held",
    "pattern",
    "scale",
    "structured_miss",
]
