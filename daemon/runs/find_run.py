"""Finds the run file of a run by its number: a run that is gone on with goes on in its own file.

Reads one attribute of each run file in a folder and remembers it by the file's name, size and date, so a
folder of a thousand runs is read once. Used by one thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.runfile import peek

if TYPE_CHECKING:
    from pathlib import Path

_Stamp = tuple[str, int, int]


class RunFinder:
    """Knows which run is in which file of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[_Stamp, tuple[str, str]] = {}

    def find(self, run_id: str) -> Path | None:
        """Return the first file of a run, the oldest where it was reconstructed anew beside it, or None."""
        known: dict[_Stamp, tuple[str, str]] = {}
        found: list[tuple[str, Path]] = []
        for path in sorted(self._folder.glob("*.h5")):
            try:
                status = path.stat()
                stamp = (path.name, status.st_size, status.st_mtime_ns)
                known[stamp] = self._known[stamp] if stamp in self._known else peek(path)
            except OSError:
                continue  # another kind of file, or gone meanwhile
            number, created = known[stamp]
            if number == run_id:
                found.append((created, path))
        self._known = known
        return min(found)[1] if found else None
