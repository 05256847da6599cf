"""The open files of a run, for reading.

`RunFile` reads one file: through a memory map, so that what the recorder writes is seen at once; with plain
reads, to check a disk; and through HDF5 where images are compressed. `RunParts` knows which files belong to
the run, also during the run: a further file is added as soon as it has its name, and a longer file that has
replaced an open one is opened instead. Any one thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DamagedError, InputFileError, MissingFileError
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.layout import open_hdf5, read_layout, require_compression
from microdiffusion.runfile.schema import Closed, RunPlan, position_prefix, segment_path

_COUNTS_FILES = 2  # the minor version of the layout that does
_MOST_MISSING = 1000
_NAMED = 8
_CLOSED = "The run was closed: open it again with open_run."
_UNREADABLE = (OSError, KeyError, RuntimeError, ValueError, MemoryError)
"""Exceptions that HDF5 raises on damaged bytes."""


def require_run_file(path: Path) -> None:
    """Make sure that a regular file is there.

    Raises
    ------
    MissingFileError
        There is none; where a further file of the run is, the message names it.
    """
    if path.is_file():
        return
    if further := _beside(path):
        raise MissingFileError(
            f"{path} is missing, the first file of the run that {further[0].name} belongs to: "
            "copy all files of the run into one folder."
        )
    raise MissingFileError(f"There is no file at {path}: check the path.")


def is_run_file(path: Path) -> bool:
    """Return whether this is a run file; one that cannot be opened is none, and refused by its reader."""
    try:
        with open_hdf5(path) as file:
            return "mdd_layout" in file.attrs
    except FileNotFoundError:
        require_run_file(path)  # it says so where the first file of several is missing
        return False
    except OSError:
        return False


def _beside(first: Path) -> list[Path]:
    """Return the files that are named like further ones of a run."""
    name = re.compile(re.escape(first.stem) + r"_s\d{3,}" + re.escape(first.suffix))
    if not first.parent.is_dir():
        return []
    return sorted(each for each in first.parent.iterdir() if name.fullmatch(each.name) and each.is_file())


def missing_files(parts: Sequence[RunFile], read: Callable[[RunFile, str], Any] | None = None) -> list[Path]:
    """Return the files of a run that are not there, by what its first file says.

    Before layout 1.2 that does not say how many there are: then one is missing where a later one is there, or
    where the ledger counts more frames than the files hold.

    Parameters
    ----------
    parts
        The files that belong together, from the first one on; or a further file alone.
    read
        Returns a dataset of a file; by default as a view.
    """
    read = read or (lambda part, name: part.view(name)[()])
    first, there = parts[0], len(parts)
    if first.plan.segment:
        path = first.path.with_name(re.sub(r"_s\d{3,}$", "", first.path.stem) + first.path.suffix)
        if not path.is_file():
            return [path]
        with contextlib.closing(RunParts(path)) as run:
            if run.plan.header.run_id != first.plan.header.run_id:
                return [path]
            return [each for each in run.missing() if each != first.path]
    if first.plan.minor >= _COUNTS_FILES:
        total = int(read(first, "mdd/files"))
    else:
        total = max([there, *(int(each.stem.rpartition("_s")[2]) + 1 for each in _beside(first.path))])
        if total == there and _lacks_frames(parts, read):
            total += 1
    total = min(total, there + _MOST_MISSING)  # a damaged file says anything
    numbers = (number for number in range(there, total))
    paths = [(number, segment_path(first.path, number)) for number in numbers]
    return [path for number, path in paths if number == there or not path.is_file()]


def _lacks_frames(parts: Sequence[RunFile], read: Callable[[RunFile, str], Any]) -> bool:
    """Return whether the ledger counts more frames with a place than there are in the files."""
    ledger = Ledger.of(read(parts[0], "mdd/ledger"))
    placed = sum(
        int(np.count_nonzero(np.asarray(read(part, f"{position_prefix(position)}mdd/frames/seq")) >= 0))
        for part in parts
        for position in range(len(part.plan.header.positions))
    )
    return ledger.received - ledger.unplaced > placed


def lacking_sentence(path: Path, missing: Sequence[Path]) -> str:
    """Return what to do about the missing files of a run."""
    names = ", ".join(each.name for each in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    verb = "is" if len(missing) == 1 else "are"
    others = ", ".join(each.name for each in missing[:_NAMED] if each.is_file())
    there = f" (another file has the name {others})" if others else ""
    return (
        f"{path} is a part of a run, and {names}{more} of it {verb} missing{there}: copy all files of the "
        "run into one folder."
    )


class RunFile:
    """One file of a run, open for reading.

    Attributes
    ----------
    path : Path
    plan : RunPlan
    """

    def __init__(self, path: Path) -> None:
        require_run_file(path)
        self.path = path
        try:
            # Opened once: at the end of a run a trimmed copy takes the file's name, and layout and bytes must
            # be of the same file.
            self._stream = path.open("rb", buffering=0)
        except OSError as error:
            raise InputFileError(
                f"{path} cannot be read ({error.strerror or error}): check its rights."
            ) from error
        self._bytes: NDArray[np.uint8] | None = None
        self._hdf5: h5py.File | None = None
        try:
            self._layout = read_layout(path, self._stream)
            self.plan: RunPlan = self._layout.plan
            if self._layout.packed:
                require_compression(self.plan.compression)
                self._hdf5 = h5py.File(self._stream, "r", rdcc_nbytes=0)
        except BaseException:
            self.close()
            raise

    def view(self, name: str) -> Any:
        """Return a dataset: what is contiguous as a read-only view of the file's bytes, as new as they are.

        Images that are compressed are read when they are indexed.
        """
        if name in self._layout.packed:
            return self._unpacked(name)
        if self._bytes is None:
            if self._stream.closed:
                raise ValueError(_CLOSED)
            self._bytes = np.memmap(self._stream, dtype=np.uint8, mode="r")
            if self._hdf5 is None:
                self._stream.close()  # the map keeps the file: a long run has many
        region = self._layout.regions[name]
        return (
            self._bytes[region.offset : region.offset + region.size].view(region.dtype).reshape(region.shape)
        )

    def read(self, name: str, index: tuple[int, ...] = ()) -> NDArray[Any]:
        """Return what an index selects, read from the disk and not through the map."""
        if name in self._layout.packed:
            return np.asarray(self._unpacked(name)[index])
        region = self._layout.regions[name]
        offset, size = region.locate(index)
        content = np.empty(size, np.uint8)
        room = content.data
        self._stream.seek(offset)
        while len(room):
            count = self._stream.readinto(room)
            if not count:
                raise OSError(f"it is shorter than its layout says, at byte {offset}")
            room = room[count:]
        return content.view(region.dtype).reshape(region.shape[len(index) :])

    def close(self) -> None:
        """Close the file. What was read stays valid."""
        if self._hdf5 is not None:
            self._hdf5.close()
        self._bytes = None
        self._stream.close()

    def _unpacked(self, name: str) -> Any:
        """Return images as what is read when it is indexed, figures as an array."""
        if not self._hdf5:
            raise ValueError(_CLOSED)
        schema = self._layout.packed[name]
        images = _PackedImages(self.path, name, self._hdf5[name])
        return images if schema.image else images[()].reshape(schema.shape)


class _PackedImages:
    """A dataset that HDF5 reads when it is indexed; any index of NumPy's."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        self._path, self._name, self._dataset = path, name, dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        place = tuple(takewhile(lambda part: isinstance(part, int | np.integer), index))
        plain = all(isinstance(part, slice) and (part.step or 1) > 0 for part in index[len(place) :])
        try:
            if plain:
                return self._dataset[index]
            # HDF5 selects no lists and no negative steps: those are taken from the whole image.
            return np.asarray(self._dataset[place])[index[len(place) :]]
        except _UNREADABLE as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise DamagedError(
                f"{self._path}: /{self._name} cannot be read at {place} ({reason}): "
                "the file is damaged or incomplete; `mdd verify` lists all damage."
            ) from error


class RunParts:
    """The files of a run, from the one at `path` on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[RunFile] = [RunFile(path)]
        self.plan: RunPlan = self._parts[0].plan

    def first(self) -> RunFile:
        """Return the first file."""
        self._look_for_more()
        return self._parts[0]

    def all(self) -> list[RunFile]:
        """Return the files that exist by now."""
        self._look_for_more()
        return list(self._parts)

    def missing(self) -> list[Path]:
        """Return the files of the run that are not there."""
        return missing_files(self.all())

    def require_all(self) -> None:
        """Raise MissingFileError where a file of the run is not there."""
        if missing := self.missing():
            raise MissingFileError(lacking_sentence(self.path, missing))

    def close(self) -> None:
        """Close all files."""
        for part in self._parts:
            part.close()

    def _look_for_more(self) -> None:
        """Open a longer file of the same name, and further files; they are complete once they have a name."""
        last = self._parts[-1]
        if int(last.view("mdd/closed")[()]) == Closed.REPLACED:
            self._parts[-1] = RunFile(last.path)
            last.close()
        while self.plan.segment == 0:
            path = segment_path(self.path, len(self._parts))
            if not path.is_file():
                return
            part = RunFile(path)
            # Not a further file: a copy of the first one under such a name, and a file that is about to be
            # removed because a compressed file has replaced all of the run.
            plan, before = part.plan, self._parts[-1].plan
            following = before.first_time_point + before.time_points
            expected = (self.plan.header.run_id, len(self._parts), following)
            if (plan.header.run_id, plan.segment, plan.first_time_point) != expected:
                part.close()
                return
            self._parts.append(part)
