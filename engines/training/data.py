"""The pool of training cubes: recorded volumes and phantoms, cut, stretched and scaled to [0, 1].

`build_pool` returns a float16 array (N, SIZE, SIZE, SIZE); the loop degrades its cubes with random
optics. Reading the volumes, and keeping back those that judge, is the work of `sources`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from microdiffusion.engines.training import phantoms
from microdiffusion.errors import ConfigError, InputFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

SIZE = 64
SHARES = {"recorded": 0.45, "neurites": 0.34, "vessels": 0.08, "nuclei": 0.08, "textures": 0.05}
"""How often each kind of cube is drawn; kinds without a source drop out and the others take their place."""


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
    shares: Mapping[str, float] = MappingProxyType(SHARES),
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float16]:
    """Return `count` cubes (N, SIZE, SIZE, SIZE) float16 of the kinds in `shares`.

    Raises
    ------
    ConfigError
        No kind that has a source has a share.
    InputFileError
        Nearly every cube that was drawn is empty.
    """
    names = list(volumes)

    def recorded() -> NDArray[np.float32]:
        return crop(volumes[names[rng.integers(len(names))]], rng)

    makers: dict[str, Callable[[], NDArray[np.float32]]] = {
        "nuclei": lambda: finish(phantoms.blobs(rng, SIZE), rng),
        "textures": lambda: finish(phantoms.texture(rng, SIZE), rng),
    }
    if names:
        makers["recorded"] = recorded
    if trees:
        makers["neurites"] = lambda: finish(
            phantoms.neurites(trees[rng.integers(len(trees))], rng, SIZE), rng
        )
    if vessel_graph is not None:
        makers["vessels"] = lambda: finish(phantoms.vessels(vessel_graph, rng, SIZE), rng)
    kinds = [kind for kind in makers if shares.get(kind, 0) > 0]
    if not kinds:
        raise ConfigError(
            f"training.shares leaves nothing to train on: expected a share above 0 for {', '.join(makers)}."
        )
    weights = np.array([shares[kind] for kind in kinds])
    pool = np.empty((count, SIZE, SIZE, SIZE), dtype=np.float16)
    made = tried = 0
    while made < count:
        cube = makers[kinds[rng.choice(len(kinds), p=weights / weights.sum())]]()
        tried += 1
        if cube.std() > 0.01:  # an empty corner teaches nothing
            pool[made] = cube
            made += 1
            progress(made)
        elif tried > 100 * (made + 1):
            raise InputFileError(
                "99 of 100 training cubes are empty: check that the volumes hold more than background."
            )
    return pool
