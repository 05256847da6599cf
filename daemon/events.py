"""What runs put into their files' /mdd/events, told to whoever keeps a log as well.

A logger of the standard library without a way to the terminal: the recorder tells it, the log listens.
"""

from __future__ import annotations

import logging

EVENTS = logging.getLogger("microdiffusion.events")
EVENTS.propagate = False
EVENTS.setLevel(logging.INFO)
EVENTS.addHandler(logging.NullHandler())


def tell(kind: str, text: str, run: str) -> None:
    """Tell an event of a run; at once, on any thread."""
    EVENTS.info("%s", text, extra={"kind": kind, "run": run})
