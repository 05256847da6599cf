"""A lazy array over time, in one or several files, that never returns data for a gap.

Owns the indexing: the leading axes (time, then channel and frame where they exist) select *items*, each of
which is present or a gap, and has a checksum. A gap raises an error with its reason, unless the caller chose
a value for gaps (`filled`); an item that is read completely is compared with its checksum. No state but that
of its pieces; any one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import DamagedError, GapError

Item = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One file's part of a series: an array, which of its items are present, and their CRC-32."""

    data: Any  # a NumPy array, or what is indexed like one
    there: Callable[[Item], bool] | None = None
    checksums: Any = None


class TimeSeries:
    """A lazy array over time: `series[t]`, `series[t, 3:5]`, `series[-1]`, `series[:10]` read what they name.

    Every answer is a copy.

    Parameters
    ----------
    pieces : callable
        Yields the pieces, in time.
    name : str
        Name of an item in messages.
    leading : int
        Number of axes that name an item.
    why : callable
        Returns why an item is not there, and what to do.
    fill
        Value of gaps; None: a gap is an error.
    """

    def __init__(
        self,
        pieces: Callable[[], Iterator[Piece]],
        *,
        name: str = "item",
        leading: int = 1,
        why: Callable[[Item], str] = lambda item: "it is not there.",
        fill: float | None = None,
    ) -> None:
        self._pieces = pieces
        self._name = name
        self._leading = leading
        self._why = why
        self._fill = fill

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, time first."""
        return _shape(list(self._pieces()))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype: np.dtype[Any] = next(self._pieces()).data.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def filled(self, value: float) -> TimeSeries:
        """Return the same series with `value` wherever nothing is there, instead of an error."""
        return TimeSeries(self._pieces, name=self._name, leading=self._leading, why=self._why, fill=value)

    def __len__(self) -> int:
        """Return the number of time points."""
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[t] for t in range(len(self)))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read.

        Raises
        ------
        GapError
            Something of it is not there.
        DamagedError
            A whole item does not have its checksum.
        """
        pieces = list(self._pieces())
        shape = _shape(pieces)
        full = expanded(index, len(shape))
        leading, rest = full[: self._leading], full[self._leading :]
        chosen = [np.arange(size)[one] for one, size in zip(leading, shape, strict=False)]
        if any(one.ndim > 1 for one in chosen):
            raise IndexError("axes of time, channel and frame take numbers, slices and lists of numbers")
        tail = shape[self._leading :]
        inner = np.broadcast_to(np.empty((), np.uint8), tail)[rest].shape
        whole = all(isinstance(one, slice) for one in rest) and all(
            one.indices(size) == (0, size, 1) for one, size in zip(rest, tail, strict=True)
        )
        outer = [size for one in chosen for size in one.shape]
        found = np.empty((*outer, *inner), pieces[0].data.dtype)
        rows = found.reshape(prod(outer), *inner)
        for row, item in enumerate(product(*(one.reshape(-1).tolist() for one in chosen))):
            self._read(pieces, item, rest, rows[row : row + 1], whole=whole)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _read(
        self, pieces: Sequence[Piece], item: Item, rest: tuple[Any, ...], room: NDArray[Any], *, whole: bool
    ) -> None:
        """Read one item, or a part of it, into `room`, which has one more axis in front."""
        t, *further = item
        for piece in pieces:
            if t < piece.data.shape[0]:
                break
            t -= piece.data.shape[0]
        place = (t, *further)
        # Presence first: it is written last.
        if piece.there is not None and not piece.there(place):
            if self._fill is None:
                raise GapError(f"There is no {self._name} at {_text(item)}: {self._why(item)}")
            room[...] = self._fill
            return
        room[0] = piece.data[(*place, *rest)]
        if whole and piece.checksums is not None:
            found = crc32(np.ascontiguousarray(room).reshape(-1).view(np.uint8).data)
            if found != piece.checksums[place]:
                raise DamagedError(
                    f"The {self._name} at {_text(item)} does not have its checksum: the file is damaged; "
                    "`mdd verify` lists all damage, open_run(path, check=False) reads it as it is."
                )


def _shape(pieces: Sequence[Piece]) -> tuple[int, ...]:
    return (sum(piece.data.shape[0] for piece in pieces), *pieces[0].data.shape[1:])


def _text(item: Item) -> str:
    return f"time point {item[0]}" if len(item) == 1 else f"{item}"


def expanded(index: Any, dimensions: int) -> tuple[Any, ...]:
    """Return an index with one entry for each axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [number for number, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > dimensions or any(part is None for part in parts):
        raise IndexError(f"{index!r} does not fit an array of {dimensions} axes")
    at = dots[0] if dots else len(parts)
    missing = dimensions - (len(parts) - len(dots))
    return (*parts[:at], *[slice(None)] * missing, *parts[at + len(dots) :])
