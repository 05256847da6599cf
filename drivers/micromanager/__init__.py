"""Drives Micro-Manager through pycromanager."""

from microdiffusion.drivers.micromanager.core import has_not
from microdiffusion.drivers.micromanager.server import ask_server, check_version, expected_version
from microdiffusion.drivers.micromanager.survey import Survey, survey
from microdiffusion.drivers.micromanager.zstack import take_stack

__all__ = [
    "Survey",
    "ask_server",
    "check_version",
    "expected_version",
    "has_not",
    "survey",
    "take_stack",
]
