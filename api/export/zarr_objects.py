"""A volume as Zarr's objects, byte for byte: chunks (Zarr 2), or shards of chunks with an index (Zarr 3).

For stores, where an object is one request: zarr itself takes a shard apart on one event loop, in which every
volume waits for the others, and copies it three times more. Metadata stay zarr's, and so is what reads the
objects. Any thread; a chunk at a time is held beside the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.export.ome_zarr import blosc

_ABSENT = 2**64 - 1  # of a chunk's offset and size: there is none


def objects_of(
    array: Any, voxels: NDArray[Any], *, compress: bool
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield the objects of a volume: place (z, y, x) among them, and content.

    Parameters
    ----------
    array : zarr.Array
        (T, C, Z, Y, X), made by `create_level`.
    voxels : (Z, Y, X)
    """
    codec = blosc(compress=compress)
    chunk, whole = array.chunks[2:], (array.shards or array.chunks)[2:]
    for place in np.ndindex(*_counts(voxels.shape, whole)):
        part = _block(voxels, place, whole)
        data = _shard(array, part, codec) if array.shards else codec.encode(_padded(array, part, chunk))
        yield place, data


def _shard(array: Any, voxels: NDArray[Any], codec: Any) -> bytes:
    """Return a shard: compressed chunks, offset and size of each, and the CRC-32C of that table.

    Zarr's specification: codec `sharding_indexed`, index at the end, little-endian.
    """
    chunk = array.chunks[2:]
    index = np.full((*_counts(array.shards[2:], chunk), 2), _ABSENT, "<u8")
    parts: list[bytes] = []
    end = 0
    for place in np.ndindex(*_counts(voxels.shape, chunk)):
        parts.append(codec.encode(_padded(array, _block(voxels, place, chunk), chunk)))
        index[place] = end, len(parts[-1])
        end += len(parts[-1])
    table = index.tobytes()
    return b"".join([*parts, table, _crc32c(table).to_bytes(4, "little")])


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a table of some hundred bytes: bit by bit is fast enough."""
    remainder = 2**32 - 1
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ (2**32 - 1)


def _counts(shape: tuple[int, ...], edges: tuple[int, ...]) -> list[int]:
    return [-(-length // edge) for length, edge in zip(shape, edges, strict=True)]


def _block(voxels: NDArray[Any], place: tuple[int, ...], edges: tuple[int, ...]) -> NDArray[Any]:
    return voxels[tuple(slice(at * edge, (at + 1) * edge) for at, edge in zip(place, edges, strict=True))]


def _padded(array: Any, voxels: NDArray[Any], chunk: tuple[int, ...]) -> NDArray[Any]:
    """Return voxels as one whole chunk, in the array's type; the fill value lies beyond the array's edge."""
    if voxels.shape == chunk:
        return np.ascontiguousarray(voxels, array.dtype)
    padded = np.full(chunk, array.fill_value, array.dtype)
    padded[tuple(map(slice, voxels.shape))] = voxels
    return padded
