"""Common to the formats of stacks: lengths, notes, and `FILE#PART` for files that hold several volumes.

Pure functions but for a look at which files there are.
"""

from __future__ import annotations

import contextlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.text import command_line, count_noun, strip_control

Edges = tuple[float | None, float | None, float | None]
"""Edges of a voxel (z, y, x), µm; None where a file does not say."""
UNKNOWN: Edges = (None, None, None)
PIXEL_KEYS = ("PixelSize_um", "PixelSizeUm")
Z_KEYS = ("ZPosition_um_Intended", "ZPositionUm")
STEP_KEYS = ("z-step_um", "ZStepUm")
"""Names in Micro-Manager's metadata: of pycromanager's engine, then of its own."""
_TO_UM = {
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "micrometres": 1.0,
    "pm": 1e-6,
    "å": 1e-4,
    "inch": 25400.0,
    "in": 25400.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}
"""Units as files write them, lower case and with the micro sign, to µm."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of a file on its volume.

    Attributes
    ----------
    edges_um : (z, y, x)
        Edges of a voxel, µm; None where the file does not say.
    licence : str
    z_um : (N,) float64, or None
        Stage position of each image, in their order, µm.
    """

    edges_um: Edges = UNKNOWN
    licence: str = ""
    z_um: NDArray[np.float64] | None = None


def stated(notes: Mapping[str, Any], *names: str) -> Any:
    """Return what notes say under the first of these names that they have; None without any."""
    return next((notes[name] for name in names if name in notes), None)


def length_um(value: Any, unit: Any) -> float | None:
    """Return a length in µm; ImageJ's spacing is negative where a stack was taken downwards."""
    scale = unit_um(unit)
    with contextlib.suppress(TypeError, ValueError):
        length = abs(float(value)) * (scale or math.nan)
        return length if math.isfinite(length) and length > 0 else None
    return None


def step_um(z_um: NDArray[np.float64] | None) -> float | None:
    """Return the usual distance of planes that are at different depths, µm; None where that is not known."""
    if z_um is None or np.ptp(z_um) == 0:
        return None
    return length_um(np.median(np.diff(np.unique(z_um))), "um")


def unit_um(unit: Any) -> float | None:
    """Return a unit in µm; None for one that is not known."""
    return _TO_UM.get(str(unit).lower().replace("\u03bc", "µ"))  # the Greek letter as well


def split_part(path: str | Path) -> tuple[Path, str]:
    """Return a file, or NDTiff folder, and the part that is named after its last #: "" where none is.

    A # that belongs to the name of a file is left there.
    """
    whole = str(path)
    if not Path(path).exists():
        for at in reversed([place for place, letter in enumerate(whole) if letter == "#"]):
            place = Path(whole[:at])
            if place.is_file() or is_ndtiff(place):
                return place, whole[at + 1 :]
    return Path(path), ""


def choose_part(path: Path, names: Sequence[str], wanted: str) -> int:
    """Return the number of the part of a file that is wanted.

    Parts whose names are missing, or cannot be told apart or typed, go by their numbers, from 0.

    Raises
    ------
    InputFileError
        There are several and none is wanted, or none is called so; it says what to write.
    """
    if len(names) == 1 and not wanted:
        return 0
    labels = [strip_control(name) for name in names]
    keys = [_key(name) for name in names]
    if len(set(keys)) < len(keys) or not all(name.isprintable() and name for name in names):
        labels = [str(number) for number in range(len(names))]
        keys = [_key(label) for label in labels]
    if _key(wanted) in keys:
        return keys.index(_key(wanted))
    called = f", none called {strip_control(wanted)}" if wanted else ""
    raise InputFileError(
        f"{path} holds {count_noun(len(names), 'image or position', 'images or positions')}{called}, and a "
        f"volume is one ({shorten(', '.join(labels), 200)}): name it after the file, as in "
        f"{command_line(Path(f'{path}#{labels[0]}'))}."
    )


def _key(name: str) -> str:
    """Return a name as it comes back from a path, however its letters are composed."""
    return str(PurePosixPath("#" + unicodedata.normalize("NFC", name).replace("\\", "/")))


def is_ndtiff(folder: Path) -> bool:
    """Return whether a folder is an NDTiff dataset, or contains one in full resolution."""
    return (folder / "NDTiff.index").is_file() or (folder / "Full resolution" / "NDTiff.index").is_file()
