"""The events of runs, told to whoever keeps a log besides the run files.

A logger of the standard library without a handler that prints: the recorder tells it, the log listens.
"""

from __future__ import annotations

import logging

EVENTS = logging.getLogger("microdiffusion.events")
EVENTS.propagate = False
EVENTS.setLevel(logging.INFO)
EVENTS.addHandler(logging.NullHandler())


def tell(kind: str, text: str, run: str) -> None:
    """Tell an event of a run; on any thread."""
    EVENTS.info("%s", text, extra={"kind": kind, "run": run})
