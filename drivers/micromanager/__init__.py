"""Drives Micro-Manager through pycromanager."""

from microdiffusion.drivers.micromanager.core import has_not
from microdiffusion.drivers.micromanager.limits import Limits
from microdiffusion.drivers.micromanager.planner import AdaptivePlanner
from microdiffusion.drivers.micromanager.policies import LearnFastest, LookWhereItChanges
from microdiffusion.drivers.micromanager.policy import AcquisitionState, Policy, Proposal
from microdiffusion.drivers.micromanager.server import ask_server, check_version, expected_version
from microdiffusion.drivers.micromanager.survey import Survey, survey
from microdiffusion.drivers.micromanager.zstack import take_stack

__all__ = [
    "AcquisitionState",
    "AdaptivePlanner",
    "LearnFastest",
    "Limits",
    "LookWhereItChanges",
    "Policy",
    "Proposal",
    "Survey",
    "ask_server",
    "check_version",
    "expected_version",
    "has_not",
    "survey",
    "take_stack",
]
