"""The folder of the run files: which file is which run's, names for new ones, and what a killed daemon left.

A run that is resumed goes on in its own file. Of each file one attribute is read, and remembered by the
file's name, size and date, so a folder of a thousand runs is read once. Used by one thread at a time.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from microdiffusion.daemon.recorder import remove_leftovers
from microdiffusion.errors import InputFileError
from microdiffusion.runfile import open_run, peek

_MOST_NAME_BYTES = 100  # of 255: time, number and what stands for a file in the making come on top
_MAKING_S = 3600.0  # nobody takes so long to make a run file
_GIVEN = 256
_LOOKED_AT = 8  # run files, the newest ones

_log = logging.getLogger(__name__)

_Stamp = tuple[str, int, int]


class RunFolder:
    """The run files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[_Stamp, tuple[str, str]] = {}
        self._given: deque[Path] = deque(maxlen=_GIVEN)  # whose files may not be made yet

    def find(self, run_id: str) -> Path | None:
        """Return the first file of a run, None where there is none.

        Where the run was reconstructed into another file beside it, it is the oldest one. Of copies of a file
        it is the one that holds all that the others hold: of equal ones that which still has its name, and
        else the one written last.

        Raises
        ------
        InputFileError
            Two copies hold frames that the other one does not.
        """
        known: dict[_Stamp, tuple[str, str]] = {}
        found: list[tuple[str, Path]] = []
        for path in sorted(self._path.glob("*.h5")):
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
        oldest = min(found)[0] if found else ""
        alike = [path for created, path in found if created == oldest]
        return _original(alike) if len(alike) > 1 else next(iter(alike), None)

    def file_of(self, path: Path) -> Path:
        """Return the file of the run that is in `path`: itself, unless it is a copy; errors as `find`."""
        try:
            number, _ = peek(path)
        except OSError:  # whoever opens it says why
            return path
        return (self.find(number) if number else None) or path

    def new_path(self, name: str) -> Path:
        """Return a path that no file has: name, UTC time, and a number where two start in one second."""
        stem = f"{_file_name(name)}_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        path, number = self._path / f"{stem}.h5", 1
        while path.exists() or path in self._given:
            number += 1
            path = self._path / f"{stem}_{number}.h5"
        self._given.append(path)
        return path

    def unclosed(self) -> list[Path]:
        """Return the newest run files that no daemon closed: it was killed, or the power failed."""
        found = []
        newest = sorted(self._path.glob("*.h5"), key=_changed_s, reverse=True)
        for path in newest[:_LOOKED_AT]:
            try:
                if peek(path)[0]:
                    with open_run(path, missing="ignore") as run:
                        if not run.closed:
                            found.append(path)
            except (OSError, InputFileError):
                continue  # another kind of file, or damaged: `mdd verify` says how
        return found

    def remove_remains(self) -> None:
        """Remove files that were being made when a daemon, or a compression, was killed."""
        remove_leftovers(self._path)
        for path in self._path.glob(".*.h5.tmp"):
            with suppress(OSError):  # gone meanwhile
                if time.time() - path.stat().st_mtime > _MAKING_S:
                    path.unlink()


def _original(copies: list[Path]) -> Path:
    """Return that of several copies of a run file in which the run goes on."""
    held: dict[Path, set[int]] = {}
    named: dict[Path, bool] = {}
    for path in copies:
        with open_run(path, missing="ignore") as run:
            held[path] = set(run.frame_numbers().tolist())
            named[path] = run.provenance.get("file") == path.name
    best = max(copies, key=lambda path: (len(held[path]), named[path], _changed_s(path)))
    others = [path for path in copies if path != best]
    for other in others:
        if not held[other] <= held[best]:
            raise InputFileError(
                f"{best} and {other.name} are copies of one run, and each holds frames that the other does "
                "not: move the one away in which the run shall not go on."
            )
    names = ", ".join(path.name for path in others)
    _log.warning("The run goes on in %s, which holds most; a copy of it is %s.", best, names)
    return best


def _file_name(name: str) -> str:
    """Return a run's name as the beginning of a file's name, in its folder and on every system.

    A sender may say what it likes, "../../etc" and a hundred smileys included.
    """
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", name).encode(errors="replace")
    return stem[:_MOST_NAME_BYTES].decode(errors="ignore").strip(" .") or "run"


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a link to nowhere, or gone meanwhile
        return 0.0
