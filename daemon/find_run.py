"""Finds the run file of a run by its number: a run that is gone on with goes on in its own file.

Reads one attribute of each run file in a folder and remembers it by the file's name, size and date, so a
folder of a thousand runs is read once. Used by one thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py

if TYPE_CHECKING:
    from pathlib import Path

_Stamp = tuple[str, int, int]


class RunFinder:
    """Knows which run is in which file of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[_Stamp, str] = {}

    def find(self, run_id: str) -> Path | None:
        """Return the first file of a run; None where the folder has none."""
        known: dict[_Stamp, str] = {}
        found = None
        for path in sorted(self._folder.glob("*.h5")):
            try:
                status = path.stat()
                stamp = (path.name, status.st_size, status.st_mtime_ns)
                known[stamp] = self._known.get(stamp) or _run_id(path)
            except OSError:
                continue  # another kind of file, or gone meanwhile
            if known[stamp] == run_id:
                found = path
        self._known = known
        return found


def _run_id(path: Path) -> str:
    """Return the run of a first file; "-" where it is no run file, or a further file of a run."""
    # Through a stream HDF5 takes no lock, so a file that is being written can be asked too.
    with path.open("rb") as stream, h5py.File(stream, "r") as file:
        if file.attrs.get("segment", -1) != 0:
            return "-"
        return str(file.attrs.get("run_id", "-"))
