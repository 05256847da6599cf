"""A check and what it finds. Values only; any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class Severity(StrEnum):
    """Severity of a finding: fine, worth knowing, or a run will fail."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """Severity, what was found, and what to do about it (empty where nothing needs doing)."""

    level: Severity
    text: str
    fix: str = ""


ok = partial(Finding, Severity.OK)
warning = partial(Finding, Severity.WARNING)
failure = partial(Finding, Severity.FAILURE)


@dataclass(frozen=True, slots=True)
class Check:
    """A group on the page, the name of a line in it, and the function that looks and judges."""

    theme: str
    name: str
    look: Callable[[], Finding | Iterable[Finding]]


Findings = Sequence[tuple[Check, Finding]]
"""Findings of several checks, in the order of the page."""
