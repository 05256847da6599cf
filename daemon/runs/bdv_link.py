"""BigDataViewer's link onto a run that goes on: made at its start, renewed at its end.

It is made by a short-lived thread while the first frames come in; nothing waits for that but the end of the
run. A link that cannot be made is told, and never hurts the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path


class RunLink:
    """The link of a run whose first file is `run`; `tell` takes a sentence where it cannot be made."""

    def __init__(self, run: Path, tell: Callable[[str], None]) -> None:
        self._run = run
        self._tell = tell
        self._thread = threading.Thread(target=self._make, args=(True,), name="mdd-bdv-link", daemon=True)

    def begin(self) -> None:
        """Make the link, on a thread; a run that is resumed may have it already."""
        self._thread.start()

    def finish(self) -> None:
        """Renew it, when the run's files are closed: all of them are known, and what is missing."""
        self._thread.join()
        self._make(first=False)

    def _make(self, first: bool) -> None:
        from microdiffusion.export import link_run, renew_link

        try:
            if not renew_link(self._run) and first:
                link_run(self._run)
        except Exception as error:  # whatever HDF5 raises: the run does without
            self._tell(f"no link for BigDataViewer: {error}")
