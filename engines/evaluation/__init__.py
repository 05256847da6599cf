"""Scores reconstruction methods on volumes whose truth is known."""

from microdiffusion.engines.evaluation.methods import measured, parse_methods
from microdiffusion.engines.evaluation.pictures import check_matplotlib, step_curves, volume_picture
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, normalise
from microdiffusion.engines.evaluation.report import (
    document,
    markdown,
    write_csv,
    write_json,
    write_markdown,
)
from microdiffusion.engines.evaluation.runner import Hooks, Plan, Results, evaluate

__all__ = [
    "Case",
    "Hooks",
    "Plan",
    "Protocol",
    "Results",
    "check_matplotlib",
    "document",
    "evaluate",
    "make_case",
    "markdown",
    "measured",
    "normalise",
    "parse_methods",
    "step_curves",
    "volume_picture",
    "write_csv",
    "write_json",
    "write_markdown",
]
