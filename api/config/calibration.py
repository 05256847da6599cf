"""Calibration files: the measurements of `mdd calibrate`, as small TOML files that a configuration names.

Two kinds, `beam` and `camera`, written with their uncertainty, date and source; each refusal to read one is
one sentence. `load` applies them to a configuration. Pure functions.
"""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from microdiffusion.config.reference import toml_value
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.header import NonNegative, Positive
from microdiffusion.optics import AxialProfile
from microdiffusion.text import encodable

Interval = tuple[FiniteFloat, FiniteFloat]
Column = Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=65536)]


class _Frozen(BaseModel):
    """A table of a calibration file: frozen; keys of a later version are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CalibrationOrigin(_Frozen):
    """The origin of a calibration; times are ISO 8601."""

    date_utc: str
    date_local: str = ""
    source: str = ""
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()


class BeamFile(_Frozen):
    """A measured beam, µm; intervals of 95 %.

    Attributes
    ----------
    length_um : float
        Full width at half maximum: what `sweep.length_um` becomes.
    equivalent_um : float
        Length of the box with the same sum and sum of squares.
    weights, low, high : (K,)
        Against depth minus the slab's centre, `spacing_um` apart, the middle one at 0; unit sum; its band.
    figures : mapping
        Numbers that say how good it is, such as beads and residual.
    """

    kind: Literal["beam"]
    length_um: Positive
    length_interval_um: Interval
    equivalent_um: Positive
    equivalent_interval_um: Interval
    centroid_um: FiniteFloat = 0.0
    spacing_um: Positive
    weights: Column
    low: tuple[NonNegative, ...] = ()
    high: tuple[NonNegative, ...] = ()
    figures: dict[str, float | int | str] = {}
    origin: CalibrationOrigin

    @model_validator(mode="after")
    def _some_light(self) -> Self:
        if sum(self.weights) <= 0:
            raise ValueError("weights need a positive number")
        return self

    @property
    def profile(self) -> AxialProfile:
        """The axial profile."""
        return AxialProfile.sampled(self.weights, self.spacing_um)


class CameraFile(_Frozen):
    """A measured camera, counts; intervals of 95 %."""

    kind: Literal["camera"]
    offset: FiniteFloat
    offset_interval: Interval
    read_noise: NonNegative
    read_noise_interval: Interval
    gain: Positive
    gain_interval: Interval
    figures: dict[str, float | int | str] = {}
    origin: CalibrationOrigin


_File = TypeVar("_File", BeamFile, CameraFile)


def read_beam(path: Path) -> BeamFile:
    """Return a measured beam.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such file, or it is not what `mdd calibrate beam` writes.
    """
    return _read(path, BeamFile, "beam")


def read_camera(path: Path) -> CameraFile:
    """Return a measured camera; raises as `read_beam` does."""
    return _read(path, CameraFile, "camera")


def _read(path: Path, model: type[_File], kind: str) -> _File:
    command = f"`mdd calibrate {kind}`"
    try:
        parsed = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(
            f"There is no calibration file {path}: check its name, or make it with {command}."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputFileError(
            f"The calibration {path} is not valid TOML ({error}): make it with {command}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(
            f"The calibration {path} cannot be read ({error}): make it with {command}."
        ) from None
    if parsed.get("kind") != kind:
        found = f"of kind {parsed['kind']!r}" if "kind" in parsed else "no calibration"
        raise InputFileError(
            f"{path} is {found}, not a {kind} calibration: name the file that {command} wrote."
        )
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputFileError(
            f"The calibration {path} is damaged ({place + ': ' if place else ''}{first['msg']}): make it "
            f"again with {command}."
        ) from None


def calibration_toml(content: BeamFile | CameraFile, name: str) -> str:
    """Return the text of a calibration file of that name."""
    key, meaning = {
        "beam": ("sweep", "The beam's axial profile, by depth minus slab centre; length_um: its FWHM."),
        "camera": ("camera", "The camera: counts of a dark frame and their noise, counts per photon."),
    }[content.kind]
    lines = [
        f"# {meaning}",
        f"# Measured by `mdd calibrate {content.kind}`; to use it, in the configuration:",
        "#",
        f"#     [{key}]",
        f"#     calibration = {toml_value(encodable(name))}",
        "",
        *_table(content.model_dump(mode="json")),
    ]
    return "\n".join(lines) + "\n"


def _table(values: Mapping[str, Any], above: str = "") -> list[str]:
    lines, tables = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            tables += ["", f"[{above}{name}]", *_table(value, f"{above}{name}.")]
            continue
        key = name if name.replace("-", "").replace("_", "").isalnum() else toml_value(name)
        line = f"{key} = {toml_value(_rounded(value))}"
        is_column = isinstance(value, list) and all(isinstance(item, float) for item in value)
        lines += textwrap.wrap(line, 100, subsequent_indent="    ") if is_column else [line]
    return lines + tables


def _rounded(value: Any) -> Any:
    """Return a value with six significant digits, where it is a float or has some."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
