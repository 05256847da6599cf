"""Volumes of a part of a session, in a file of their own until the run file is assembled.

HDF5: a group for each sweep, its arrays as datasets, everything else as JSON. Whoever writes one names it
when it is complete. Holds a sweep at a time in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from microdiffusion.daemon.offline.sweeps import SweepKey
from microdiffusion.errors import DamagedError
from microdiffusion.frames import Confidence, Drift, Reconstruction

Made = tuple[SweepKey, Reconstruction | None, float]
"""A sweep, its volume or None, and the camera time of its last frame, s."""

_ARRAYS = ("volume", "uncertainty", "uncertainty_map", "age", "slots")


def write_part(path: Path, made: Iterable[Made], about: Mapping[str, str]) -> None:
    """Write volumes as they come; `about` says what made them."""
    with h5py.File(path, "w") as file:
        for key, result, acquired_s in made:
            if result is None:
                continue
            values = {field.name: getattr(result, field.name) for field in fields(result)}
            group = file.create_group("{}/{}/{}".format(*key))
            for name in _ARRAYS:
                array = values.pop(name)
                if array is not None:
                    group.create_dataset(name, data=array)
            values |= {"drift": asdict(result.drift), "confidence": asdict(result.confidence)}
            group.attrs["figures"] = json.dumps(values, default=np.ndarray.item)
            group.attrs["acquired_s"] = acquired_s
        file.attrs["about"] = json.dumps(dict(about))


def read_part(path: Path) -> Iterator[Made]:
    """Yield what a part holds, sweep by sweep.

    Raises
    ------
    DamagedError
        It is not what `write_part` wrote.
    """
    with _opened(path) as file:
        keys = [SweepKey(int(t), int(c), int(p)) for t in file for c in file[t] for p in file[f"{t}/{c}"]]
        for key in sorted(keys):
            group = file["{}/{}/{}".format(*key)]
            values: dict[str, Any] = json.loads(group.attrs["figures"])
            values["drift"] = Drift(**values["drift"])
            values["confidence"] = Confidence(**values["confidence"])
            values |= {name: group[name][()] for name in _ARRAYS if name in group}
            yield key, Reconstruction(**values), float(group.attrs["acquired_s"])


def read_about(path: Path) -> dict[str, str]:
    """Return what made the volumes of a part; errors as of `read_part`."""
    with _opened(path) as file:
        return dict(json.loads(file.attrs["about"]))


def _opened(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error}): remove it, and it is made again.") from error
    return file
