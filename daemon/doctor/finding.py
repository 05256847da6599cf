"""What a check says: one line, how bad it is, and what to do. Values only; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: as it should be, worth knowing, or a run will fail of it."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    name : str
        What was looked at.
    level : Level
    text : str
        What was found.
    cure : str
        What to do; only where something is to be done.
    """

    name: str
    level: Level
    text: str
    cure: str = ""


def ok(name: str, text: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(name, Level.OK, text)


def warning(name: str, text: str, cure: str) -> Finding:
    """Return a finding that a run survives."""
    return Finding(name, Level.WARNING, text, cure)


def failure(name: str, text: str, cure: str) -> Finding:
    """Return a finding that a run does not survive."""
    return Finding(name, Level.FAILURE, text, cure)
