"""What a training learns from: recorded volumes, morphologies, and who has to be thanked for them.

Reads everything once, names the file that cannot be used, and keeps for each source its licence and origin:
the model card has to say them. Held-out volumes are read too, but only to judge with; a name that fits no
volume is refused, because a slip of the pen there would train on what should judge.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.engines.training import phantoms
from microdiffusion.errors import ConfigError, InputFileError, MissingFileError
from microdiffusion.files import open_volume, volume_paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

NOT_STATED = "not stated"
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
        Volumes to train on, and volumes to judge with. A file of several time points is several volumes,
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
        """Return a checksum of what is trained on: another one means another training."""
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
        Names of volumes to judge with: file names without their ending.
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
        name = _name(path)
        if name in seen:
            raise InputFileError(f"{seen[name]} and {path} have the same name: rename one of them.")
        seen[name] = path
        _read_volume(result, name, path, held=name in held_out, licence=licence)
    for name in held_out:
        if name not in seen:
            close = get_close_matches(name, seen, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(
                f"There is no volume {name} to hold out{hint}: expected one of {', '.join(seen) or 'none'}."
            )
    if morphologies is not None:
        _read_morphologies(result, morphologies)
    return result


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem.removesuffix(".ome")


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
        suffix = path.suffix.lower()
        if suffix == ".swc":
            result.trees.append(phantoms.read_swc(path))
        elif suffix in (".h5", ".hdf5"):
            graphs.append(phantoms.read_vessel_graph(path))
        else:
            continue
        source, licence = known.get(path.name, (NOT_STATED, NOT_STATED))
        result.records.append(Record(path.stem, "tree" if suffix == ".swc" else "vessels", licence, source))
    if graphs:
        result.graph = np.concatenate(graphs)
    if not graphs and not result.trees:
        raise InputFileError(f"{folder} holds no morphology: expected .swc trees or .h5 vessel graphs.")


def _provenance(path: Path) -> dict[str, tuple[str, str]]:
    """Return repository and licence by file name."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        return {
            row["file"]: (row.get("repository") or NOT_STATED, row.get("licence") or NOT_STATED)
            for row in rows
            if row.get("file")
        }
