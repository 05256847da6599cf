"""Shared by the formats: the result of an export, and the description of a run that each contains.

Pure; any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.errors import DependencyError
from microdiffusion.export.source import ExportGap, Picture

Progress = Callable[[int, int], None]
"""Takes the number of volumes done, and of all."""


@dataclass(slots=True)
class Exported:
    """Result of an export.

    Attributes
    ----------
    outputs : list of Path or str
        Files, folders, or the address in an object store; a viewer opens the last one.
    volumes : int
    gaps : list of ExportGap
    notes : list of str
        Remarks for those who open the output.
    """

    outputs: Sequence[Path | str]
    volumes: int = 0
    gaps: list[ExportGap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def needs(package: str, error: ImportError, extra: str = "export") -> DependencyError:
    """Return the error with the install line of a format's library."""
    return DependencyError(
        f'This format needs {package}: python -m pip install "microdiffusion-daemon[{extra}]" ({error}).'
    )


def volumes_and_gaps(pictures: Sequence[Picture]) -> tuple[int, list[ExportGap]]:
    """Return the number of volumes (and uncertainties), and the gaps of the volumes."""
    gaps = [gap for picture in pictures if picture.kind == "volume" for gap in picture.gaps()]
    return sum(int(np.count_nonzero(picture.written)) for picture in pictures), gaps


def about(picture: Picture) -> dict[str, Any]:
    """Return the description of its run that every export contains; plain values, ready for JSON."""
    header = picture.run.header
    return {
        "mdd_version": version("microdiffusion-daemon"),
        "run_id": header.run_id,
        "run": header.name,
        "file": picture.run.path.name,
        "content": picture.kind,
        "position": picture.name,
        "channels": list(picture.channels),
        "first_time_point": picture.time_points.start,
        "run_was_closed": picture.run.closed,
        "times_s": [
            [None if not np.isfinite(value) else round(float(value), 6) for value in row]
            for row in picture.times_s
        ],
        "gaps": [asdict(gap) for gap in picture.gaps()],
    }


def as_text(value: Any) -> str:
    """Return JSON of one line."""
    return json.dumps(value, ensure_ascii=False)


def channel_name(picture: Picture, channel: int) -> str:
    """Return a channel's name, as viewers show it."""
    name = picture.channels[channel]
    return name if picture.kind == "volume" else f"uncertainty of {name}"
