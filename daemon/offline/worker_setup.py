"""Start and end of a worker on this machine, called by Dask in its process (a `preload`)."""

from __future__ import annotations

import os
from typing import Any


def dask_setup(worker: Any) -> None:
    """Import what reconstructs, and leave Ctrl-C to the command, which ends its workers in order."""
    import microdiffusion.engines.pipeline  # noqa: F401 here, not while a piece waits
    from microdiffusion.processes import leave_stops_to_parent

    leave_stops_to_parent()


def dask_teardown(worker: Any) -> None:
    """End at once: a piece in the making is not finished first, and nothing of it is there."""
    os._exit(0)
