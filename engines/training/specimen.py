"""A slow, dense stack of the user's own specimen: what is trained on, and what is kept aside to judge.

The stack is brought to the slices and pixels of the session, in units of its own light range. A block at one
end of its longer lateral axis is kept aside, through all slices and time points, and a margin beside it
belongs to neither: structures that reach across must not be known from the training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.engines.training.fine_tune import cut_cube
from microdiffusion.errors import InputFileError
from microdiffusion.files import open_volume, split_part

MARGIN = 8  # pixels between what is trained on and what is kept aside
_ASIDE = (24, 96)  # pixels kept aside: a quarter of the axis, within these
_SHORTEST = 72  # of the longer lateral axis: a training cube's worth is left
_FEWEST_SLICES = 16
_MOST = 1 << 26  # voxels of a volume; a part of a larger one tells as much
_TIME_POINTS = 4
_SAME = 0.03  # relative difference of voxel sizes that is none
_COARSER = 2.0  # times the session's slices, beyond which the stack shows nothing new


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """One specimen.

    Attributes
    ----------
    name : str
        As the stack's file, or as the user calls it.
    fingerprint : str
        Checksum of the stack.
    volumes : tuple of (Z, Y, X) float32
        To train on, in units of the light range.
    aside : (Z, Y, X) float32
        To judge by: never trained on.
    """

    name: str
    fingerprint: str
    volumes: tuple[NDArray[np.float32], ...]
    aside: NDArray[np.float32]


def read_specimen(path: Path, voxel_um: tuple[float, float | None, float | None], name: str = "") -> Specimen:
    """Read a stack (any that `open_volume` reads), scaled to voxels (z, y, x) of a session, µm.

    None in `voxel_um`: as in the stack.

    Raises
    ------
    MissingFileError, InputFileError, DependencyError
        The file is absent or cannot be used, or is too small or too coarse to learn from.
    """
    with open_volume(path) as file:
        factors = _factors(path, file.edges_um, voxel_um)
        numbers = np.unique(np.linspace(0, len(file) - 1, min(_TIME_POINTS, len(file))).round().astype(int))
        digest = hashlib.sha256()
        volumes = []
        for number in numbers:
            volume = _part(file.volume(int(number)), factors)
            digest.update(f"{volume.shape}".encode() + np.ascontiguousarray(volume).tobytes())
            if factors != (1.0, 1.0, 1.0):
                volume = ndimage.zoom(volume, factors, order=1)
            volumes.append(volume)
    rows, columns = volumes[0].shape[1:]
    if max(rows, columns) < _SHORTEST or volumes[0].shape[0] < _FEWEST_SLICES:
        size = " x ".join(str(edge) for edge in volumes[0].shape)
        raise InputFileError(
            f"{path} has {size} voxels of the session's size (z, y, x), too few to learn from and to keep "
            f"some aside: expected at least {_FEWEST_SLICES} slices, and {_SHORTEST} pixels one way."
        )
    low, high = np.percentile(volumes[0], [1.0, 99.9])
    if not high > low:
        raise InputFileError(f"{path} is empty: nearly every voxel is {low:g}; record the specimen itself.")
    light = [np.asarray(((each - low) / (high - low)).clip(0, 1.5), np.float32) for each in volumes]
    file_path, part = split_part(path)
    named = name or file_path.stem.removesuffix(".ome") + (f"#{part}" if part else "")
    kept, aside = _kept_aside(light)
    return Specimen(named, digest.hexdigest()[:16], kept, aside)


def _factors(
    path: Path,
    edges_um: tuple[float | None, ...],
    voxel_um: tuple[float | None, ...],
) -> tuple[float, float, float]:
    """Return by how much each axis is stretched."""
    pairs = zip(edges_um, voxel_um, strict=True)
    factors = [1.0 if edge is None or wanted is None else edge / wanted for edge, wanted in pairs]
    if factors[0] > _COARSER:
        raise InputFileError(
            f"{path} has slices {edges_um[0]:g} µm apart, the session has them {voxel_um[0]:g} µm apart, so "
            "the stack shows nothing that the session does not: record a denser one."
        )
    z, y, x = (1.0 if abs(factor - 1) < _SAME else factor for factor in factors)
    return z, y, x


def _part(volume: NDArray[np.float32], factors: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return the middle of a volume, cut to `_MOST` voxels once it is stretched."""
    slices = volume.shape[0] * factors[0]
    edge = (_MOST / slices) ** 0.5
    wanted = [
        max(1, min(n, int(edge / factor))) for n, factor in zip(volume.shape[1:], factors[1:], strict=True)
    ]
    start = [(n - w) // 2 for n, w in zip(volume.shape[1:], wanted, strict=True)]
    rows, columns = (slice(s, s + w) for s, w in zip(start, wanted, strict=True))
    return volume[:, rows, columns]


def _kept_aside(
    volumes: list[NDArray[np.float32]],
) -> tuple[tuple[NDArray[np.float32], ...], NDArray[np.float32]]:
    """Return what is trained on, and the end of the longer lateral axis that shows more."""
    axis = 1 if volumes[0].shape[1] > volumes[0].shape[2] else 2
    length = volumes[0].shape[axis]
    width = min(max(length // 4, _ASIDE[0]), _ASIDE[1])
    ends = [(slice(0, width), slice(width + MARGIN, None)), (slice(-width, None), slice(0, -width - MARGIN))]

    def along(volume: NDArray[np.float32], part: slice) -> NDArray[np.float32]:
        return volume[(slice(None),) * axis + (part,)]

    aside, rest = max(ends, key=lambda pair: float(along(volumes[0], pair[0]).std()))
    return tuple(along(volume, rest) for volume in volumes), along(volumes[0], aside)


def cube_pool(specimen: Specimen, count: int, rng: np.random.Generator) -> NDArray[np.float16]:
    """Return random cubes (count, SIZE, SIZE, SIZE) of what is trained on."""
    volumes = specimen.volumes
    return np.stack([cut_cube(volumes[rng.integers(len(volumes))], rng) for _ in range(count)])
