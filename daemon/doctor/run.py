"""Runs the checks side by side and gives each of them a line, whatever it does.

A check that raises is a line that says so; one that does not come back within the time is another. Each has
a thread of its own, which a hanging one keeps until the process ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from microdiffusion.daemon.doctor.finding import Finding, warning

LIMIT_S = 9.0
"""After this time the page is printed, with what is known."""

Findings = Finding | Iterable[Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at.

    Attributes
    ----------
    theme, name : str
        Its group on the page, and what a line about it begins with where it gives none.
    look : callable
        Probes and judges.
    """

    theme: str
    name: str
    look: Callable[[], Findings]


@dataclass(frozen=True, slots=True)
class Line:
    """A finding and its group."""

    theme: str
    finding: Finding


def examine(checks: Sequence[Check], *, limit_s: float = LIMIT_S) -> list[Line]:
    """Return the lines of all checks, in their order, within `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    answers: list[list[Finding] | None] = [None] * len(checks)
    threads = []
    for number, check in enumerate(checks):
        thread = threading.Thread(
            target=_look, args=(check, answers, number), name=f"mdd-doctor-{check.name}", daemon=True
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(max(deadline_s - time.monotonic(), 0.0))
    lines = []
    for check, answer in zip(checks, tuple(answers), strict=True):
        if answer is None:
            text = f"no answer within {limit_s:g} s"
            answer = [warning(check.name, text, "Look again when the machine is less busy: mdd doctor.")]
        lines += [Line(check.theme, finding) for finding in answer]
    return lines


def _look(check: Check, answers: list[list[Finding] | None], number: int) -> None:
    try:
        found = check.look()
        answers[number] = [found] if isinstance(found, Finding) else list(found)
    except Exception as error:  # whatever a driver's library raises, the other lines are wanted
        text = f"this check itself broke ({type(error).__name__}: {error})"
        answers[number] = [warning(check.name, text, "Please report it with: mdd doctor --json.")]
