"""Scores reconstruction methods on volumes whose truth is known."""

from microdiffusion.engines.evaluation.against import against_markdown, compare_run, evaluate_against
from microdiffusion.engines.evaluation.dense import Dense, dense_reference, in_the_middle, same_grid
from microdiffusion.engines.evaluation.hallucination_report import (
    hallucination_document,
    hallucination_markdown,
)
from microdiffusion.engines.evaluation.hallucinations import evaluate_hallucinations, hallucination_calls
from microdiffusion.engines.evaluation.methods import Method, measured, parse_methods
from microdiffusion.engines.evaluation.pictures import (
    cell_traces,
    check_matplotlib,
    object_views,
    sweep_curves,
    volume_picture,
)
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, normalise
from microdiffusion.engines.evaluation.report import document, markdown, write_json
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks, Results, evaluate
from microdiffusion.engines.evaluation.session_report import session_document, session_markdown
from microdiffusion.engines.evaluation.sessions import (
    FEWEST,
    SessionPlan,
    evaluate_sessions,
    session_calls,
    still_session,
)

__all__ = [
    "FEWEST",
    "Case",
    "Dense",
    "EvaluationPlan",
    "Hooks",
    "Method",
    "Protocol",
    "Results",
    "SessionPlan",
    "against_markdown",
    "cell_traces",
    "check_matplotlib",
    "compare_run",
    "dense_reference",
    "document",
    "evaluate",
    "evaluate_against",
    "evaluate_hallucinations",
    "evaluate_sessions",
    "hallucination_calls",
    "hallucination_document",
    "hallucination_markdown",
    "in_the_middle",
    "make_case",
    "markdown",
    "measured",
    "normalise",
    "object_views",
    "parse_methods",
    "same_grid",
    "session_calls",
    "session_document",
    "session_markdown",
    "still_session",
    "sweep_curves",
    "volume_picture",
    "write_json",
]
