"""The training data: recorded volumes, morphologies and phantoms, as a pool of cubes.

`gather` reads everything once, names the file that cannot be used, and keeps for each source its licence and
origin, which the model card has to state. Held-out volumes are read too, but only to validate with; a name
that fits no volume is refused, because a typo there would train on what should validate. `build_pool` cuts,
stretches and scales them to cubes in [0, 1]; the loop degrades these with random optics.
"""

from __future__ import annotations

import csv
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.engines.training import phantoms
from microdiffusion.errors import ConfigError, InputFileError, MissingFileError
from microdiffusion.files import open_volume, split_part, volume_paths
from microdiffusion.text import did_you_mean

SIZE = 64
NOT_STATED = "not stated"
_OVERLAID = 0.2
"""Share of the recorded cubes that another one is laid over: denser specimens, and of two kinds."""
PROVENANCE = "PROVENANCE.csv"
"""Beside morphologies: a table with the columns file, repository and licence."""


@dataclass(frozen=True, slots=True)
class Record:
    """One source, for the card: its name, its kind ("volume", "held out", "tree", "vessels"), and origin."""

    name: str
    kind: str
    licence: str
    source: str
    structure: str = ""
    size: str = ""


@dataclass(slots=True)
class Sources:
    """Everything that was read.

    Attributes
    ----------
    used, held : dict of name to (Z, Y, X) float32
        Volumes to train on, and volumes to validate with. A file of several time points is several volumes,
        `name#0`, `name#1` ...
    trees : list of (N, 2, 4) float64
        Segments of each morphology; see `phantoms.read_swc`.
    graph : (N, 2, 4) float64 or None
        Segments of the vessel graphs.
    records : list of Record
    """

    used: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    held: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    trees: list[NDArray[np.float64]] = field(default_factory=list)
    graph: NDArray[np.float64] | None = None
    records: list[Record] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a checksum of the training data."""
        digest = hashlib.sha256()
        for name, volume in self.used.items():
            digest.update(f"{name} {volume.shape}".encode())
            digest.update(np.ascontiguousarray(volume[::7, ::7, ::7]).tobytes())
        for tree in [*self.trees, *([] if self.graph is None else [self.graph])]:
            digest.update(tree.tobytes())
        return digest.hexdigest()[:16]


def gather(
    volumes: Sequence[Path],
    morphologies: Path | None = None,
    *,
    held_out: Sequence[str] = (),
    licence: str = "",
) -> Sources:
    """Read volumes (files, or folders of them) and a folder of morphologies.

    Parameters
    ----------
    held_out
        Names of volumes to validate with: file names without their ending.
    licence
        Of the volumes whose files state none.

    Raises
    ------
    MissingFileError, InputFileError, DependencyError
        A file is absent or cannot be used; the message names it.
    ConfigError
        A held-out name fits no volume.
    """
    result = Sources()
    seen: dict[str, Path] = {}
    for path in [path for place in volumes for path in volume_paths(place)]:
        file, part = split_part(path)
        name = file.name if file.is_dir() else file.stem.removesuffix(".ome")
        name += f"#{part}" if part else ""
        if name in seen:
            raise InputFileError(f"{seen[name]} and {path} have the same name: rename one of them.")
        seen[name] = path
        _read_volume(result, name, path, held=name in held_out, licence=licence)
    for name in held_out:
        if name not in seen:
            raise ConfigError(
                f"There is no volume {name} to hold out{did_you_mean(name, seen)}: "
                f"expected one of {', '.join(seen) or 'none'}."
            )
    if morphologies is not None:
        _read_morphologies(result, morphologies)
    return result


def _read_volume(result: Sources, name: str, path: Path, *, held: bool, licence: str) -> None:
    with open_volume(path) as file:
        group = result.held if held else result.used
        for number in range(len(file)):
            volume = file.volume(number)
            if volume.max() <= volume.min():
                raise InputFileError(f"{path} is empty: every voxel is {volume.flat[0]:g}; leave it out.")
            group[name if len(file) == 1 else f"{name}#{number}"] = volume
        origin = file.origin
        result.records.append(
            Record(
                name,
                "held out" if held else "volume",
                origin.licence or licence or NOT_STATED,
                origin.source or NOT_STATED,
                origin.structure,
                " × ".join(str(n) for n in file.shape[file.shape[0] == 1 :]),
            )
        )


def _read_morphologies(result: Sources, folder: Path) -> None:
    if not folder.is_dir():
        raise MissingFileError(f"There is no folder of morphologies {folder}: check its name.")
    known = _provenance(folder / PROVENANCE)
    graphs = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".swc":
            kind = "tree"
            result.trees.append(phantoms.read_swc(path))
        elif path.suffix.lower() in (".h5", ".hdf5"):
            kind = "vessels"
            graphs.append(phantoms.read_vessel_graph(path))
        else:
            continue
        source, licence = known.get(path.name, (NOT_STATED, NOT_STATED))
        result.records.append(Record(path.stem, kind, licence, source))
    if graphs:
        result.graph = np.concatenate(graphs)
    elif not result.trees:
        raise InputFileError(f"{folder} holds no morphology: expected .swc trees or .h5 vessel graphs.")


def _provenance(path: Path) -> dict[str, tuple[str, str]]:
    """Return repository and licence by file name."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            row["file"]: (row.get("repository") or NOT_STATED, row.get("licence") or NOT_STATED)
            for row in csv.DictReader(stream)
            if row.get("file")
        }


def build_pool(
    sources: Sources,
    *,
    count: int,
    rng: np.random.Generator,
    shares: Mapping[str, float],
    until_s: float = math.inf,
) -> NDArray[np.float16]:
    """Return `count` cubes (N, SIZE, SIZE, SIZE) float16 of the kinds in `shares`.

    Fewer, but at least 4, where it is later than `until_s` (`time.monotonic()`); they are the first of all.
    Kinds without a source drop out; the others are drawn more often instead.

    Raises
    ------
    ConfigError
        No kind that has a source has a share.
    InputFileError
        Nearly every cube that was drawn is empty.
    """
    volumes, trees, graph = list(sources.used.values()), sources.trees, sources.graph
    makers: dict[str, Callable[[], NDArray[np.float32]]] = {
        "nuclei": lambda: finish(phantoms.blobs(rng, SIZE), rng),
        "textures": lambda: finish(phantoms.texture(rng, SIZE), rng),
    }
    if volumes:

        def recorded() -> NDArray[np.float32]:
            cube = crop(volumes[rng.integers(len(volumes))], rng)
            if rng.random() < _OVERLAID:
                cube = cube + rng.uniform(0.2, 1.0) * crop(volumes[rng.integers(len(volumes))], rng)
            return np.asarray(cube.clip(0, 1.5), dtype=np.float32)

        makers["recorded"] = recorded
    if trees:
        makers["neurites"] = lambda: finish(
            phantoms.neurites(trees[rng.integers(len(trees))], rng, SIZE), rng
        )
    if graph is not None:
        makers["vessels"] = lambda: finish(phantoms.vessels(graph, rng, SIZE), rng)
    kinds = [kind for kind in makers if shares.get(kind, 0) > 0]
    if not kinds:
        raise ConfigError(
            f"training.shares leaves nothing to train on: expected a share above 0 for {', '.join(makers)}."
        )
    weights = np.array([shares[kind] for kind in kinds])
    pool = np.empty((count, SIZE, SIZE, SIZE), dtype=np.float16)
    made = tried = 0
    while made < count and (made < 4 or time.monotonic() < until_s):
        cube = makers[kinds[rng.choice(len(kinds), p=weights / weights.sum())]]()
        tried += 1
        if cube.std() > 0.01:  # nothing is learned from an empty corner
            pool[made] = cube
            made += 1
        elif tried > 100 * (made + 1):
            raise InputFileError(
                "99 of 100 training cubes are empty: check that the volumes hold more than background."
            )
    return pool[:made]


def crop(volume: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a random cube of a recorded volume, stretched by up to half, often with other contrast."""
    low, high = np.percentile(
        volume[:: max(1, volume.shape[0] // 32), ::4, ::4], [1, rng.choice([99.9, 99.97])]
    )
    zoom = np.exp(rng.uniform(np.log(0.7), np.log(1.5), 2))[[0, 1, 1]]
    wanted = np.minimum(np.ceil(SIZE / zoom).astype(int), volume.shape)
    start = [int(rng.integers(0, n - w + 1)) for n, w in zip(volume.shape, wanted, strict=True)]
    part = volume[tuple(slice(s, s + w) for s, w in zip(start, wanted, strict=True))]
    part = ndimage.zoom((part - low) / max(high - low, 1e-6), zoom, order=1)
    part = np.pad(part, [(0, max(0, SIZE - n)) for n in part.shape], mode="symmetric")
    part = part[:SIZE, :SIZE, :SIZE].clip(0, 1.5)
    # Other stains and cameras: bright against dim structures of the same shape.
    part = part ** rng.uniform(0.7, 1.4) if rng.random() < 0.5 else part
    return np.asarray(part, dtype=np.float32)


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
