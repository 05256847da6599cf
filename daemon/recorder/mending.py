"""What a writer that is gone left of a file of the SWMR storage, made whole before anybody goes on with it.

A killed process tears nothing. A power cut may: HDF5 changes its tables in place, and of what was not
forced to the disk any page may be missing. After `mend` the file holds what its marks say, and no more:
every dataset is as long as `/mdd/status`, and the tables lead to the images of volumes that are marked
written and of frames that are marked received. Whatever else they led to may lie where the disk has
nothing, and HDF5 would give that room away again. Call with the run's lock held; done once more it changes
nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from microdiffusion.daemon.recorder.chunk_tables import ChunkTables, chunks_of
from microdiffusion.errors import DiskError, InputFileError, MddError
from microdiffusion.runfile import Status, SwmrPart, is_image, item_axes, open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from microdiffusion.runfile import Dataset

_STATUS = "mdd/status"


@dataclass(slots=True)
class Mended:
    """What was done.

    Attributes
    ----------
    tables : int
        How many were changed.
    gone : dict of str to set of tuple of int
        Images (index by dataset) that are marked as there and are not, as the file was cut off before them.
    """

    tables: int = 0
    gone: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)


def mend(path: Path) -> Mended:
    """Mend the tables of a file that no process writes any more.

    Raises
    ------
    InputFileError
        The file is no run file, or damaged in another way than a power cut does it.
    DiskError
        It cannot be written.
    """
    try:
        with path.open("r+b") as stream:
            mended = _mend(path, stream)
            stream.flush()
            if mended.tables:
                os.fsync(stream.fileno())
            return mended
    except MddError:
        raise
    except (LookupError, ArithmeticError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise InputFileError(
            f"{path} is damaged in a way that cannot be mended ({reason}): use a copy, if there is one."
        ) from error
    except OSError as error:
        raise DiskError(f"{path} cannot be mended ({error.strerror or error}): check the disk.") from error


def _mend(path: Path, stream: BinaryIO) -> Mended:
    end = path.stat().st_size
    # The status first: without it HDF5 cannot tell what kind of run file this is.
    mended = Mended(_tables(path, stream, [_STATUS])[_STATUS].save())
    stream.flush()
    part = SwmrPart(path)
    try:
        timed = {name: one for name, one in part.schema.items() if one.timed}
        tables = _tables(path, stream, timed)
        figures = [name for name, one in timed.items() if not is_image(one)]
        length = min(tables[name].lasts(end) for name in figures)
        length = min(length, tables[_STATUS].length)
        if length == 0:
            raise ValueError("too little of it is left")
        for name, table in tables.items():
            table.length = length
            if name in figures:
                table.keep(np.ones(ceil(length / table.chunk[0]), bool), 1, end)
                mended.tables += table.save()
        stream.flush()
        for name in timed.keys() - figures:
            marks = _marks(part, timed[name], length)
            each = _chunks_of_one(timed[name], tables[name])
            lost = marks & ~tables[name].keep(marks.reshape(-1), each, end).reshape(marks.shape)
            if lost.any():
                mended.gone[name] = {tuple(index) for index in np.argwhere(lost).tolist()}
            mended.tables += tables[name].save()
    finally:
        part.close()
    return mended


def _tables(path: Path, stream: BinaryIO, names: Iterable[str]) -> dict[str, ChunkTables]:
    """Return the tables of datasets; their places are in the groups, which never change."""
    with open_hdf5(path) as file:
        return {name: ChunkTables(stream, int(file.id.links.get_info(name.encode()).u)) for name in names}


def _marks(part: SwmrPart, schema: Dataset, length: int) -> NDArray[np.bool_]:
    """Return which images of a dataset are marked as there, (T[, C][, M]) bool."""
    prefix = schema.path[: schema.path.index("/") + 1] if schema.path.startswith("position_") else ""
    if schema.path.endswith("projections"):
        return np.asarray(part.view(f"{prefix}mdd/frames/seq")[:length] >= 0)
    return np.asarray(part.view(f"{prefix}{_STATUS}")[:length] == Status.WRITTEN)


def _chunks_of_one(schema: Dataset, table: ChunkTables) -> int:
    lead = item_axes(schema)
    if table.chunk[:lead] != (1,) * lead:
        raise ValueError(f"/{schema.path} has chunks of several images")
    return chunks_of(schema.shape[lead:], table.chunk[lead:])
