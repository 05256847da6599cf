"""A lazy array over time, in one or several parts. Pure but for what its parts read; any one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TimeSeries:
    """A lazy array over time: `series[t]`, `series[t, 3:5]`, `series[-1]`, `series[:10]` read what they name.

    Only axis 0 may go over several files; every answer is a copy.
    """

    def __init__(self, parts: Callable[[], Iterator[NDArray[Any]]]) -> None:
        self._parts = parts

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, time first."""
        parts = list(self._parts())
        return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return next(self._parts()).dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        """Return the number of time points."""
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[t] for t in range(len(self)))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            first, rest = slice(None), [Ellipsis, *rest]
        parts = list(self._parts())
        if len(parts) == 1:
            return np.array(parts[0][(first, *rest)])
        length = sum(part.shape[0] for part in parts)
        if isinstance(first, slice):
            chosen = [self[(t, *rest)] for t in range(*first.indices(length))]
            return np.stack(chosen) if chosen else np.array(parts[0][(slice(0, 0), *rest)])
        t = int(first)
        if not -length <= t < length:
            raise IndexError(f"time point {t} is outside of 0 to {length - 1}")
        t %= length
        for part in parts:
            if t < part.shape[0]:
                return np.array(part[(t, *rest)])
            t -= part.shape[0]
        raise IndexError(t)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)
