"""Images on their way into chunks: cut as their bytes come, compressed by several threads, stored in order.

Owns the threads and what is half-way: one chunk being filled for each image that is being written, and a few
that are being compressed. A chunk is one stretch of an image's bytes (`swmr_file.chunk_shape`); at an edge it
is filled up with zeros, as HDF5 stores whole chunks. What comes out is what HDF5's own filters would have
made, so every HDF5 reads it. Used by one thread at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from zlib_ng import zlib_ng

if TYPE_CHECKING:
    from numpy.typing import NDArray

Store = Callable[[tuple[int, ...], Any], None]
_THREADS = max(1, min(4, (os.cpu_count() or 2) // 2))
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """How an image's bytes are cut: for each chunk its place in the image and where its bytes end."""

    places: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    chunk_bytes: int

    @classmethod
    def of(cls, shape: tuple[int, ...], chunk: tuple[int, ...], itemsize: int) -> Cut:
        """Return the cut of an image (Z, Y, X) or (Y, X) into chunks of a shape."""
        *planes, height, width = shape
        *_, rows, _ = chunk
        places: list[tuple[int, ...]] = []
        ends: list[int] = []
        if not planes:
            planes, chunk = [1], (1, *chunk)
        for z in range(0, planes[0], chunk[0]):
            for y in range(0, height, rows):
                places.append((z, y, 0)[3 - len(shape) :])
                # Several planes only where rows is the height, else one plane and some of its rows.
                stop = (min(z + chunk[0], planes[0]) - 1) * height + min(y + rows, height)
                ends.append(stop * width * itemsize)
        size = chunk[0] * rows * width * itemsize
        return cls(tuple(places), tuple(ends), size)


@dataclass(slots=True)
class _Image:
    """An image that is being written."""

    cut: Cut
    room: NDArray[np.uint8]
    at: int = 0
    chunk: int = 0
    waiting: deque[tuple[tuple[int, ...], Future[Any]]] = field(default_factory=deque)


class ChunkWriter:
    """Cuts and compresses; `close` ends the threads.

    Parameters
    ----------
    compression : str
        "gzip" is done here; of anything else the plain bytes are stored.
    """

    def __init__(self, compression: str) -> None:
        self._deflates = compression == "gzip"
        self._pool = ThreadPoolExecutor(_THREADS, "mdd-compress") if self._deflates else None
        self._images: dict[Any, _Image] = {}

    def feed(
        self, key: Any, content: memoryview, start: int, *, cut: Cut, itemsize: int, store: Store
    ) -> None:
        """Take an image's next bytes and store the chunks that are complete.

        Parameters
        ----------
        key
            Which image; its bytes come in order, from 0 on, once more from 0 where an attempt broke off.
        store
            Called with a chunk's place in the image and its bytes.
        """
        if start == 0:
            self._images[key] = _Image(cut, np.empty(cut.chunk_bytes, np.uint8))
        image = self._images[key]
        if start != image.at:
            raise ValueError(f"bytes of {key} come from {start} on instead of {image.at}")
        for piece in _pieces(image, content):
            first = image.cut.ends[image.chunk - 1] if image.chunk else 0
            image.room[image.at - first : image.at - first + len(piece)] = piece
            image.at += len(piece)
            if image.at < image.cut.ends[image.chunk]:
                continue
            image.room[image.at - first :] = 0
            self._hand_over(image, itemsize, store)
        if image.chunk == len(image.cut.ends):
            while image.waiting:
                _store_oldest(image, store)
            del self._images[key]

    def close(self) -> None:
        """End the threads; what is half-way is given up."""
        self._images.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _hand_over(self, image: _Image, itemsize: int, store: Store) -> None:
        place = image.cut.places[image.chunk]
        image.chunk += 1
        if self._pool is None:
            store(place, image.room)
            return
        image.waiting.append((place, self._pool.submit(deflate, image.room, itemsize)))
        image.room = np.empty(image.cut.chunk_bytes, np.uint8)
        while len(image.waiting) > 2 * _THREADS or (image.waiting and image.waiting[0][1].done()):
            _store_oldest(image, store)


def deflate(content: NDArray[np.uint8], itemsize: int) -> bytes:
    """Return bytes as HDF5's filters shuffle and deflate leave them."""
    shuffled = np.ascontiguousarray(content.reshape(-1, itemsize).T)
    return zlib_ng.compress(shuffled.reshape(-1).data, _LEVEL)


def _store_oldest(image: _Image, store: Store) -> None:
    place, compressed = image.waiting[0]
    store(place, compressed.result())
    image.waiting.popleft()


def _pieces(image: _Image, content: memoryview) -> Iterator[NDArray[np.uint8]]:
    """Yield what goes into the chunk that is being filled, chunk after chunk."""
    left = np.frombuffer(content, np.uint8)
    while left.size:
        size = min(image.cut.ends[image.chunk] - image.at, left.size)
        yield left[:size]
        left = left[size:]
