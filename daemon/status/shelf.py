"""The newest preview of every session, and which of them is told next.

A preview is ten times as large as all figures together, so a snapshot carries one at most: the one that has
waited longest of those that are new, and again each `AGAIN_S` for whoever has joined since. Plain state,
guarded by its owner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microdiffusion.daemon.status.previews import Preview
    from microdiffusion.header import RunHeader

AGAIN_S = 2.0
MOST_SESSIONS = 64
"""Sessions of which a preview is kept; the one that has had none for the longest time makes room."""


@dataclass(slots=True)
class _Place:
    preview: Preview
    new: bool = True
    told_s: float = -math.inf


class LatestPreviews:
    """Keeps the previews."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the sessions that have one, sorted."""
        return tuple(sorted(self._places))

    def put(self, session: str, preview: Preview | None) -> None:
        """Put a session's newest preview on the shelf; None takes it away."""
        before = self._places.pop(session, None)
        if preview is None:
            return
        if len(self._places) >= MOST_SESSIONS:
            del self._places[next(iter(self._places))]
        place = _Place(preview)
        if before is not None:
            place.told_s = before.told_s
        self._places[session] = place

    def next(self, now_s: float) -> tuple[str, Preview | None]:
        """Return the session whose preview is to be told now, and it; ("", None) where none is."""
        due = [
            (not place.new, place.told_s, name)
            for name, place in self._places.items()
            if place.new or now_s - place.told_s >= AGAIN_S
        ]
        if not due:
            return "", None
        name = min(due)[2]
        place = self._places[name]
        place.new, place.told_s = False, now_s
        return name, place.preview


def session_name(header: RunHeader, channel: int, position: int) -> str:
    """Return how a session is called: the run's name, and channel and position where there are several."""
    parts = [header.name]
    if len(header.channels) > 1:
        parts.append(header.channels[channel])
    if len(header.positions) > 1:
        parts.append(f"position {header.positions[position]}")
    return " · ".join(parts)
