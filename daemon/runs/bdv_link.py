"""BigDataViewer's link onto a run that goes on: made at its start, made anew at its end.

Owns one short thread, which makes the link while the first frames come in; nothing waits for it but the end
of the run. A link that cannot be made is told, and never hurts the run.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from microdiffusion.errors import MddError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class RunLink:
    """The link of a run.

    Parameters
    ----------
    run : Path
        The run's first file, which is there.
    tell : callable
        Takes a sentence where it cannot be made; on any thread.
    """

    def __init__(self, run: Path, tell: Callable[[str], None]) -> None:
        self._run = run
        self._tell = tell
        self._thread = threading.Thread(target=self._begin, name="mdd-bdv-link", daemon=True)

    def begin(self) -> None:
        """Make it, on a thread of its own; a run that is gone on with may have it already."""
        self._thread.start()

    def finish(self) -> None:
        """Make it anew, when the run's files are closed: all of them, and what is missing."""
        self._thread.join()
        self._safely(self._renew)

    def _begin(self) -> None:
        from microdiffusion.export import link_run, renew_link

        self._safely(lambda: renew_link(self._run) or link_run(self._run))

    def _renew(self) -> object:
        from microdiffusion.export import renew_link

        return renew_link(self._run)

    def _safely(self, work: Callable[[], object]) -> None:
        try:
            work()
        except MddError as error:
            self._tell(f"no link for BigDataViewer: {error}")
        except Exception as error:  # whatever HDF5 raises: the run goes on without
            self._tell(f"no link for BigDataViewer ({type(error).__name__}: {error})")
