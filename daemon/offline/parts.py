"""Volumes of a part of a session, in a file of their own until the run file is assembled.

For each sweep a line of JSON, which says what arrays follow, and their bytes; at the end where each sweep is,
and what made it. No HDF5: opening its groups and datasets took longer than reading the volumes. Whoever
writes a part names it when it is complete. Holds a sweep at a time in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.daemon.offline.sweeps import SweepKey
from microdiffusion.errors import DamagedError
from microdiffusion.frames import Confidence, Drift, Reconstruction

Made = tuple[SweepKey, Reconstruction | None, float]
"""A sweep, its volume or None, and the camera time of its last frame, s."""

_ARRAYS = ("volume", "uncertainty", "uncertainty_map", "age", "slots")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, OverflowError)  # also what its contents may cause
_END_BYTES = 8  # at the very end: where what the part says of itself begins


def write_part(path: Path, made: Iterable[Made], about: Mapping[str, str]) -> None:
    """Write volumes as they come; `about` says what made them."""
    places: list[tuple[int, int, int, int]] = []
    with path.open("wb") as file:
        for key, result, acquired_s in made:
            if result is None:
                continue
            values = {field.name: getattr(result, field.name) for field in fields(result)}
            given = {name: values.pop(name) for name in _ARRAYS}
            arrays = {name: np.ascontiguousarray(each) for name, each in given.items() if each is not None}
            values |= {"drift": asdict(result.drift), "confidence": asdict(result.confidence)}
            line = {
                "acquired_s": acquired_s,
                "figures": values,
                "arrays": {name: (each.dtype.str, each.shape) for name, each in arrays.items()},
            }
            places.append((*key, file.tell()))
            file.write(json.dumps(line, default=np.ndarray.item).encode() + b"\n")
            for each in arrays.values():
                file.write(each.data)
        end = file.tell()
        file.write(json.dumps({"about": dict(about), "places": places}).encode())
        file.write(end.to_bytes(_END_BYTES, "little"))


def read_part(path: Path) -> Iterator[Made]:
    """Yield what a part holds, sweep by sweep, in time.

    Raises
    ------
    DamagedError
        It is not what `write_part` wrote.
    """
    try:
        with path.open("rb") as file:
            for *key, place in sorted(_end_of(file)["places"]):
                file.seek(place)
                yield SweepKey(*key), *_sweep(file)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def read_about(path: Path) -> dict[str, str]:
    """Return what made the volumes of a part; errors as of `read_part`."""
    try:
        with path.open("rb") as file:
            return dict(_end_of(file)["about"])
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _sweep(file: BufferedReader) -> tuple[Reconstruction, float]:
    line = json.loads(file.readline())
    values: dict[str, Any] = line["figures"]
    values["drift"] = Drift(**values["drift"])
    values["confidence"] = Confidence(**values["confidence"])
    for name, (kind, shape) in line["arrays"].items():
        array = values[name] = np.empty(shape, kind)
        if file.readinto(array.data) != array.nbytes:
            raise ValueError("it ends too early")
    return Reconstruction(**values), float(line["acquired_s"])


def _end_of(file: BufferedReader) -> dict[str, Any]:
    """Return what a part says of itself at its end."""
    size = file.seek(-_END_BYTES, os.SEEK_END)
    file.seek(int.from_bytes(file.read(_END_BYTES), "little"))
    end: dict[str, Any] = json.loads(file.read(size - file.tell()))
    return end


def _damaged(path: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{path} cannot be read ({error}): remove it, and it is made again.")
