"""A configuration for this microscope, from answers and from what the core reports, each value with a reason.

Pure functions; `commands/init` asks and writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microdiffusion.config import KeyPath
    from microdiffusion.drivers.micromanager import Survey

_SLICES_IN_SLAB = 6
_SLABS = 4
_DEFAULT_LENGTH_UM = 12.0
_MOST_SLICES = 4096
_NO_BEAM_UM = 1000.0


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it came from."""

    value: Any
    why: str


def suggestions(found: Survey, answers: Mapping[str, Any]) -> dict[str, Value]:
    """Return a value for each dotted key, the user's where he gave one.

    Parameters
    ----------
    found : Survey
    answers : mapping
        Dotted key to value; None or absent where the user said nothing. "volume.depth_um" is asked for
        instead of "volume.shape_z".

    Raises
    ------
    ConfigError
        The camera does not suit, there is no pixel size, or no such preset.
    """
    given = {key: value for key, value in answers.items() if value is not None}
    _check_camera(found)
    values: dict[str, Value] = {}

    def put(key: str, otherwise: Any, why: str) -> Any:
        values[key] = Value(given[key], "as you said") if key in given else Value(otherwise, why)
        return values[key].value

    put("name", "run", "a name to begin with")
    put("acquisition.exposure_ms", found.exposure_ms, f"what {found.camera} is set to now")
    length = float(
        put("sweep.length_um", _DEFAULT_LENGTH_UM, "A GUESS: measure it, or see the beam's design")
    )
    if length >= _NO_BEAM_UM:
        raise ConfigError(
            f"No beam lights a slab of {length:g} µm: sweep.length_um is in µm ({length:g} nm are "
            f"{length / 1000:g} µm)."
        )
    put("sweep.step_um", length, "slabs touch; the alternating offset makes them overlap over two sweeps")
    voxel = float(put("volume.voxel_z_um", length / _SLICES_IN_SLAB, f"{_SLICES_IN_SLAB} slices in a slab"))
    depth = float(given.get("volume.depth_um", _SLABS * length))
    slices = max(round(depth / voxel), 2)
    if slices > _MOST_SLICES:
        raise ConfigError(
            f"A depth of {depth:g} µm has {slices} slices of {voxel:g} µm, more than {_MOST_SLICES}: "
            "check the "
            "units, or give a smaller depth."
        )
    why = f"{depth:g} µm deep, {'as you said' if 'volume.depth_um' in given else f'{_SLABS} slabs'}"
    values["volume.shape_z"] = Value(slices, why)
    limits = found.stage_limits_um
    reach = f"; it goes from {limits[0]:g} to {limits[1]:g} µm" if limits else ""
    put("volume.z0_um", found.stage_um, f"where {found.stage} is now{reach}")
    if "volume.pixel_um" in given:
        put("volume.pixel_um", None, "")
    elif found.pixel_um > 0:
        values["volume.pixel_um"] = Value(None, f"Micro-Manager says {found.pixel_um:g} µm now; left to it")
    else:
        raise ConfigError(
            "Micro-Manager knows no pixel size for the present objective: calibrate it under Devices > "
            "Pixel Size "
            "Calibration, or give --pixel-um."
        )
    put(
        "camera.width", found.width, f"all columns of {found.camera} as it is set now ({found.bit_depth} bit)"
    )
    put("camera.height", found.height, "all rows")
    for key, meaning in (("offset", 0.0), ("gain", None), ("read_noise", 0.0)):
        put(f"camera.{key}", meaning, "not measured yet; left so, the noise is estimated from the frames")
    _put_channels(found, given, values)
    put("recorder.output", Path("runs"), "beside this file")
    return values


def written(values: Mapping[str, Value], backend: Mapping[str, Value], found: Survey) -> str:
    """Return the file's text."""
    from microdiffusion.config import Config, chosen_toml, keys

    everything = {**values, **backend}
    config = Config()
    tables: dict[str, Any] = config.model_dump()
    for name, value in everything.items():
        *above, last = name.split(".")
        table = tables
        for part in above:
            table = table[part]
        table[last] = value.value
    paths: dict[KeyPath, str] = {
        path: everything[key.name].why for path, key in keys().items() if key.name in everything
    }
    introduction = (
        f"Written by `mdd init` from what {found.core} reports:\n"
        f"camera {found.camera} ({found.camera_description}), focus stage {found.stage}.\n"
        "Keys that are not here have their defaults: `mdd config show FILE` shows all of them."
    )
    return chosen_toml(Config.model_validate(tables), paths, introduction)


def _check_camera(found: Survey) -> None:
    if found.components != 1 or found.bytes_per_pixel not in (1, 2):
        raise ConfigError(
            f"{found.camera} delivers {found.bytes_per_pixel} bytes and {found.components} colours a "
            "pixel: set its "
            "PixelType to 8 or 16 bit, monochrome."
        )


def _put_channels(found: Survey, given: Mapping[str, Any], values: dict[str, Value]) -> None:
    group, channels = given.get("acquisition.channel_group"), given.get("acquisition.channels", ())
    if not channels:
        known = ", ".join(found.groups) or "none"
        values["acquisition.channel_group"] = Value(None, f"one channel; configuration groups there: {known}")
        values["acquisition.channels"] = Value((), "one channel, as it is set in Micro-Manager")
        return
    if group is None:
        fitting = [name for name, presets in found.groups.items() if set(channels) <= set(presets)]
        group = fitting[0] if fitting else "Channel"
    presets = found.groups.get(group, ())
    for channel in channels:
        if channel not in presets:
            raise ConfigError(
                f"The configuration group {group!r} has no preset {channel!r}, but "
                f"{', '.join(presets) or 'none'}: "
                "correct --channels or --channel-group."
            )
    values["acquisition.channel_group"] = Value(group, "where these presets are")
    values["acquisition.channels"] = Value(tuple(channels), "as you said")
