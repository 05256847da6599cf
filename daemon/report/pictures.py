"""Small pictures for a page: projections of volumes as PNG in data URIs, every one of bounded size.

Brightness is the same for all pictures of a channel, so that they can be compared. Pure functions.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.status import resize_max

EDGE_MOST = 320
"""Longest edge of a picture, pixels."""


def png(grey: NDArray[np.uint8]) -> bytes:
    """Return an image (H, W) uint8 as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = grey
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(grey: NDArray[np.uint8]) -> str:
    """Return an image (H, W) uint8 as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(grey)).decode("ascii")


def projections(
    volume: NDArray[np.generic], voxel_um: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the maximum projections xy (Y, X), xz (Z', X) and yz (Y, Z') with square pixels."""
    stack = np.asarray(volume)
    xy, xz, yz = stack.max(axis=0), stack.max(axis=1), stack.max(axis=2).T
    depth = max(round(stack.shape[0] * voxel_um[0] / voxel_um[2]), 1)
    rows = max(round(stack.shape[1] * voxel_um[1] / voxel_um[2]), 1)
    scale = min(EDGE_MOST / max(rows, stack.shape[2], depth), 1.0)
    z, y, x = (max(round(n * scale), 1) for n in (depth, rows, stack.shape[2]))
    return (
        np.asarray(resize_max(xy, (y, x)), np.float32),
        np.asarray(resize_max(xz, (z, x)), np.float32),
        np.asarray(resize_max(yz, (y, z)), np.float32),
    )


def window(images: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the brightnesses that become black and white."""
    if not images:
        return 0.0, 1.0
    pixels = np.concatenate([image.ravel() for image in images])
    pixels = pixels[np.isfinite(pixels)]
    low, high = np.percentile(pixels, (2.0, 99.8)) if pixels.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-9))


def shown(image: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Return an image as uint8 between `limits`, a little brighter in the dark parts."""
    share = np.clip((np.nan_to_num(image) - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)
    return np.asarray(np.rint(255.0 * share**0.8), np.uint8)
