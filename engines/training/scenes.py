"""The pool of training cubes: recorded volumes and phantoms, cut, stretched and scaled to [0, 1].

`build_pool` returns a float16 array (N, SIZE, SIZE, SIZE); the loop degrades its cubes with random
optics. Held-out volumes are named by file stem and never opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
from scipy import ndimage

from microdiffusion.engines.training import phantoms
from microdiffusion.errors import InputFileError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 64


def read_volumes(folder: Path, held_out: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Return the volumes (Z, Y, X) of a folder's HDF5 files by stem, but for those held out."""
    if not folder.is_dir():
        raise MissingFileError(f"The folder of training volumes {folder} does not exist.")
    result = {}
    for path in sorted(folder.glob("*.h5")):
        if path.stem in held_out:
            continue
        with h5py.File(path, "r") as file:
            if "volume" not in file or file["volume"].ndim != 3:
                raise InputFileError(f"{path} has no dataset `volume` with axes Z, Y, X.")
            result[path.stem] = file["volume"][()].astype(np.float32)
    return result


def crop(volume: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a random cube of a recorded volume, stretched by up to half in each direction."""
    low, high = np.percentile(
        volume[:: max(1, volume.shape[0] // 32), ::4, ::4], [1, rng.choice([99.9, 99.97])]
    )
    zoom = np.exp(rng.uniform(np.log(0.7), np.log(1.5), 2))[[0, 1, 1]]
    wanted = np.minimum(np.ceil(SIZE / zoom).astype(int), volume.shape)
    start = [int(rng.integers(0, n - w + 1)) for n, w in zip(volume.shape, wanted, strict=True)]
    part = volume[tuple(slice(s, s + w) for s, w in zip(start, wanted, strict=True))]
    part = (part - low) / max(high - low, 1e-6)
    part = ndimage.zoom(part, zoom, order=1)
    missing = [max(0, SIZE - n) for n in part.shape]
    if any(missing):
        part = np.pad(part, [(0, m) for m in missing], mode="symmetric")
    return np.asarray(part[:SIZE, :SIZE, :SIZE].clip(0, 1.5), dtype=np.float32)


def finish(cube: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Scale a phantom to [0, 1], blur it as a microscope does, and lay it on a background."""
    cube = ndimage.gaussian_filter(cube, (rng.uniform(0.0, 1.0), 0.3, 0.3))
    top = np.percentile(cube, 99.8)
    cube = np.clip(cube / max(float(top), 1e-6), 0, 1.5) ** rng.uniform(0.7, 1.4)
    if rng.random() < 0.6:
        haze = ndimage.gaussian_filter(cube, rng.uniform(4, 12))
        cube = cube + haze * rng.uniform(0, 0.6)
    if rng.random() < 0.5:
        cube = cube + ndimage.gaussian_filter(rng.standard_normal(cube.shape), 1.0) * rng.uniform(0, 0.05)
    cube = cube + rng.uniform(0, 0.15)
    return np.asarray((cube / max(float(np.percentile(cube, 99.9)), 1e-6)).clip(0, 1.5), dtype=np.float32)


def build_pool(
    volumes: dict[str, NDArray[np.float32]],
    trees: list[NDArray[np.float64]],
    vessel_graph: NDArray[np.float64] | None,
    *,
    count: int,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float16]:
    """Return `count` cubes (N, SIZE, SIZE, SIZE) float16, 45 % recorded, the rest phantoms."""
    names = list(volumes)

    def recorded() -> NDArray[np.float32]:
        return crop(volumes[names[rng.integers(len(names))]], rng)

    makers: list[tuple[float, Callable[[], NDArray[np.float32]]]] = [
        (0.08, lambda: finish(phantoms.blobs(rng, SIZE), rng)),
        (0.05, lambda: finish(phantoms.texture(rng, SIZE), rng)),
    ]
    if names:
        makers.append((0.45, recorded))
    if trees:
        makers.append(
            (0.34, lambda: finish(phantoms.neurites(trees[rng.integers(len(trees))], rng, SIZE), rng))
        )
    if vessel_graph is not None:
        makers.append((0.08, lambda: finish(phantoms.vessels(vessel_graph, rng, SIZE), rng)))
    shares = np.array([share for share, _ in makers])
    pool = np.empty((count, SIZE, SIZE, SIZE), dtype=np.float16)
    made = 0
    while made < count:
        cube = makers[rng.choice(len(makers), p=shares / shares.sum())][1]()
        if cube.std() > 0.01:  # an empty corner teaches nothing
            pool[made] = cube
            made += 1
            progress(made)
    return pool
