"""The files of a run as a reader has them open: bytes through a memory map, one file or several.

Owns which files belong to a run that is being read (`RunParts`), also while it goes on: a further file is
taken in as soon as it has its name, and where a longer file takes the name of one that is open, that is
opened instead. Any one thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.runfile.layout import Closed, RunPlan, read_layout, segment_path
from microdiffusion.runfile.swmr_file import SwmrPart, is_swmr_file


class Part(Protocol):
    """One file of a run."""

    path: Path

    @property
    def plan(self) -> RunPlan:
        """What was fixed when it was made."""
        ...

    def view(self, name: str) -> Any:
        """Return a dataset, as new as the file is: a NumPy array, or what is indexed like one."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class StaticPart:
    """A file whose bytes lie where they lay when it was made."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"There is no run file at {path}: check the path.")
        self.path = path
        # Opened once: at the end of a run a trimmed copy takes the file's name, and layout and bytes must
        # be of the same file.
        with path.open("rb") as stream:
            self._layout = read_layout(path, stream)
            self._bytes: NDArray[np.uint8] | None = np.memmap(stream, dtype=np.uint8, mode="r")

    @property
    def plan(self) -> RunPlan:
        """See `Part`."""
        return self._layout.plan

    def view(self, name: str) -> NDArray[Any]:
        """Return a dataset as a view of the file's bytes: read-only, and as new as they are."""
        if self._bytes is None:
            raise ValueError("The run was closed: open it again with open_run.")
        region = self._layout.regions[name]
        return (
            self._bytes[region.offset : region.offset + region.size].view(region.dtype).reshape(region.shape)
        )

    def close(self) -> None:
        """Let go of the bytes."""
        self._bytes = None


def open_part(path: Path) -> Part:
    """Open one file of a run.

    Raises
    ------
    MissingFileError, InputFileError
        There is none; it cannot be read.
    """
    try:
        swmr = path.is_file() and is_swmr_file(path)
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read ({error.strerror or error}): check its rights."
        ) from error
    return SwmrPart(path) if swmr else StaticPart(path)


class RunParts:
    """The files of a run, from the one at `path` on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[Part] = [open_part(path)]
        self.plan: RunPlan = self._parts[0].plan

    def first(self) -> Part:
        """Return the first file."""
        self._look_for_more()
        return self._parts[0]

    def all(self) -> list[Part]:
        """Return those that there are by now."""
        self._look_for_more()
        return list(self._parts)

    def close(self) -> None:
        """Let go of all."""
        for part in self._parts:
            part.close()

    def _look_for_more(self) -> None:
        """Take in a longer file of the same name, and those that the run went on in.

        Those are complete as soon as they have their name.
        """
        last = self._parts[-1]
        if int(last.view("mdd/closed")[()]) == Closed.REPLACED:
            self._parts[-1] = open_part(last.path)
            last.close()
        while self.plan.segment == 0:
            path = segment_path(self.path, len(self._parts))
            if not path.is_file():
                return
            part = open_part(path)
            # A copy of the run's first file that has such a name is none of its further files.
            if (part.plan.header.run_id, part.plan.segment) != (self.plan.header.run_id, len(self._parts)):
                part.close()
                return
            self._parts.append(part)
