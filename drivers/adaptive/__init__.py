"""Adaptive acquisition: policies, the user's limits, and the planner that holds the ones to the others.

Knows nothing of a microscope: a driver's loop hands it the moments at which sweeps start and end.
"""

from microdiffusion.drivers.adaptive.limits import Limits
from microdiffusion.drivers.adaptive.planner import AdaptivePlanner
from microdiffusion.drivers.adaptive.policies import LearnFastest, LookWhereItChanges
from microdiffusion.drivers.adaptive.policy import AcquisitionState, Policy, Proposal

__all__ = [
    "AcquisitionState",
    "AdaptivePlanner",
    "LearnFastest",
    "Limits",
    "LookWhereItChanges",
    "Policy",
    "Proposal",
]
