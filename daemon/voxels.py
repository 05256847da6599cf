"""Volumes on their way to the disk: rounded, clipped, checked and summed block by block.

A block is small enough to stay in the processor's cache through all passes over it, so a volume is read
from memory once and no second volume is ever held. Used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from zlib_ng.zlib_ng import crc32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.daemon.segment import Segment

_BLOCK = 1 << 17  # voxels; 512 KiB of float32
_MOST = 65535


class VoxelWriter:
    """Writes volumes (Z, Y, X) float32 as a run file keeps them; holds one block of working room."""

    def __init__(self) -> None:
        self._rounded = np.empty(_BLOCK, np.float32)
        self._pixels = np.empty(_BLOCK, "<u2")

    def write(self, segment: Segment, name: str, index: tuple[int, ...], volume: NDArray[np.float32]) -> int:
        """Write a volume and return its CRC-32; -1 where it is not finite (what was written is void).

        Raises
        ------
        DiskError
            The disk failed.
        """
        as_integers = segment.layout.regions[name].dtype.kind == "u"
        flat = np.ascontiguousarray(volume, dtype=np.float32).reshape(-1)
        crc, at = 0, 0
        for block in self._blocks(flat, as_integers=as_integers):
            if block is None:
                return -1
            content = block.view(np.uint8).data
            crc = crc32(content, crc)
            segment.write_bytes(name, index, content, at)
            at += len(content)
        return crc

    def _blocks(self, flat: NDArray[np.float32], *, as_integers: bool) -> Iterator[NDArray[Any] | None]:
        """Yield the volume's pieces in the file's type; None at the first that is not finite."""
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            lowest, highest = block.min(), block.max()  # NaN goes through both
            if not (np.isfinite(lowest) and np.isfinite(highest)):
                yield None
                return
            if not as_integers:
                yield block
                continue
            rounded, pixels = self._rounded[: block.size], self._pixels[: block.size]
            np.rint(block, out=rounded)
            if lowest < 0 or highest > _MOST:
                np.clip(rounded, 0, _MOST, out=rounded)
            np.copyto(pixels, rounded, casting="unsafe")
            yield pixels
