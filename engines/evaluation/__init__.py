"""Scores reconstruction methods on volumes whose truth is known."""

from microdiffusion.engines.evaluation.measure import measured
from microdiffusion.engines.evaluation.methods import parse_methods
from microdiffusion.engines.evaluation.perceptual import Perceptual
from microdiffusion.engines.evaluation.protocol import Protocol
from microdiffusion.engines.evaluation.runner import Hooks, Plan, Results, evaluate

__all__ = ["Hooks", "Perceptual", "Plan", "Protocol", "Results", "evaluate", "measured", "parse_methods"]
