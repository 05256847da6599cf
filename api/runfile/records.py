"""Events and gaps of a run, as the reader returns them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from microdiffusion.runfile.schema import Status


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during the run: seconds since its start, a kind, a sentence."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A time point that has no volume.

    Attributes
    ----------
    time_point, channel : int
    status : Status
        LOST, SKIPPED or FAILED; EMPTY: not reconstructed, or not yet.
    reason : str
        Why, in a sentence.
    """

    time_point: int
    channel: int
    status: Status
    reason: str


def settled(status: Any, reason: Any) -> tuple[Status, str]:
    """Return the status of a time point, and its reason; an unknown code counts as a failure."""
    code = int(status)
    if code == Status.EMPTY:
        return Status.EMPTY, "it was not reconstructed, or not yet"
    return Status(code) if code in set(Status) else Status.FAILED, text_of(reason) or "no reason is given"


def text_of(value: Any) -> str:
    """Return a text of the file, whatever bytes it has."""
    return bytes(value).decode(errors="replace")


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object; empty where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the latter by brackets without end
        return {}
    return value if isinstance(value, dict) else {}
