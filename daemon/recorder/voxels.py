"""Volumes on their way to the disk: rounded, clipped, checked, checksummed and downsampled block by block.

A block is small enough to stay in the processor's cache through all passes over it, so a volume is read
from memory once and is never duplicated. Used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.runfile import Pyramid

_BLOCK = 1 << 17  # voxels; 512 KiB of float32
_MOST = 65535


class VoxelWriter:
    """Writes volumes (Z, Y, X) float32 as a run file keeps them; holds one block, and a plane of sums."""

    def __init__(self) -> None:
        self._rounded = np.empty(_BLOCK, np.float32)
        self._pixels = np.empty(_BLOCK, "<u2")
        self._pyramid: tuple[Any, Pyramid] | None = None

    def write(
        self,
        segment: Segment,
        name: str,
        index: tuple[int, ...],
        volume: NDArray[np.float32],
        *,
        coarser: str = "",
    ) -> list[int] | None:
        """Write a volume and return its CRC-32; None where it is not finite (what was written is void).

        Parameters
        ----------
        name, index
            Dataset and place of the volume.
        coarser
            Where its coarser levels go, if anywhere: the datasets' names but for the number. Their CRC-32
            follow the volume's.
        """
        dtype = segment.layout.regions[name].dtype
        volume = np.ascontiguousarray(volume, dtype=np.float32)
        levels = segment.layout.plan.pyramid if coarser else ()
        pyramid = self._levels(volume.shape, levels, dtype)
        names = [name, *(f"{coarser}{level}" for level in range(1, len(levels) + 1))]
        sums, ends = [0] * len(names), [0] * len(names)

        def put(level: int, pixels: NDArray[Any]) -> None:
            content = pixels.reshape(-1).view(np.uint8).data
            sums[level] = crc32(content, sums[level])
            segment.write_bytes(names[level], index, content, ends[level])
            ends[level] += len(content)

        height = volume.shape[1]
        for y, block in _blocks(volume):
            pixels = self._pixels_of(block, as_integers=dtype.kind == "u")
            if pixels is None:
                return None
            put(0, pixels)
            if levels:
                for plane in pixels:
                    for level, _, mean in pyramid.add(y, plane, ends_plane=y + len(plane) == height):
                        put(level, mean)
        return sums

    def _levels(self, shape: Any, factors: Any, dtype: np.dtype[Any]) -> Pyramid:
        """Return the pyramid of volumes of this shape, reused from volume to volume."""
        key = (shape, factors, dtype)
        if self._pyramid is None or self._pyramid[0] != key:
            self._pyramid = key, Pyramid(shape, factors, dtype)
        self._pyramid[1].begin()
        return self._pyramid[1]

    def _pixels_of(self, block: NDArray[np.float32], *, as_integers: bool) -> NDArray[Any] | None:
        """Return a block in the file's type; None where it is not finite."""
        lowest, highest = block.min(), block.max()  # NaN goes through both
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            return None
        if not as_integers:
            return block
        if block.size > self._rounded.size:  # rows longer than a block
            self._rounded, self._pixels = np.empty(block.size, np.float32), np.empty(block.size, "<u2")
        rounded = self._rounded[: block.size].reshape(block.shape)
        pixels = self._pixels[: block.size].reshape(block.shape)
        np.rint(block, out=rounded)
        if lowest < 0 or highest > _MOST:
            np.clip(rounded, 0, _MOST, out=rounded)
        np.copyto(pixels, rounded, casting="unsafe")
        return pixels


def _blocks(volume: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, (n, rows, X)) in the order of the bytes: whole planes, or an even number of rows."""
    depth, height, width = volume.shape
    if height * width <= _BLOCK:
        planes = _BLOCK // (height * width)
        for z in range(0, depth, planes):
            yield 0, volume[z : z + planes]
        return
    rows = max(_BLOCK // width // 2 * 2, 2)
    for z in range(depth):
        for y in range(0, height, rows):
            yield y, volume[z : z + 1, y : y + rows]
