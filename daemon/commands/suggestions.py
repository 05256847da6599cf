"""Suggestions of `mdd init`: a value for each key, from answers and from the core, with the reason. Pure."""

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
_YOURS = "your choice"


@dataclass(frozen=True, slots=True)
class Value:
    """A value and the reason for it."""

    value: Any
    why: str


def suggestions(found: Survey, given: Mapping[str, Any]) -> dict[str, Value]:
    """Return a value for each dotted key, the user's where one is given.

    In `given`, "volume.depth_um" stands for "volume.shape_z".

    Raises
    ------
    ConfigError
        The camera does not suit, there is no pixel size, or no such preset.
    """
    if found.components != 1 or found.bytes_per_pixel not in (1, 2):
        raise ConfigError(
            f"{found.camera} delivers {found.bytes_per_pixel} bytes and {found.components} colours per "
            "pixel: set its PixelType to 8 or 16 bit, monochrome."
        )
    values: dict[str, Value] = {}

    def put(key: str, otherwise: Any, why: str) -> Any:
        values[key] = Value(given[key], _YOURS) if key in given else Value(otherwise, why)
        return values[key].value

    put("name", "run", "a name to begin with")
    put("acquisition.exposure_ms", found.exposure_ms, f"current setting of {found.camera}")
    length = float(
        put("sweep.length_um", _DEFAULT_LENGTH_UM, "A GUESS: measure it, or see the beam's design")
    )
    if length >= _NO_BEAM_UM:
        raise ConfigError(
            f"No beam lights a slab of {length:g} µm: sweep.length_um is in µm ({length:g} nm are "
            f"{length / 1000:g} µm)."
        )
    put("sweep.step_um", length, "slabs touch; each sweep starts elsewhere, so together they overlap")
    voxel = float(put("volume.voxel_z_um", length / _SLICES_IN_SLAB, f"{_SLICES_IN_SLAB} slices per slab"))
    depth = float(given.get("volume.depth_um", _SLABS * length))
    slices = max(round(depth / voxel), 2)
    if slices > _MOST_SLICES:
        raise ConfigError(
            f"A depth of {depth:g} µm has {slices} slices of {voxel:g} µm, more than {_MOST_SLICES}: check "
            "the units, or give a smaller depth."
        )
    why = f"{depth:g} µm deep, {_YOURS if 'volume.depth_um' in given else f'{_SLABS} slabs'}"
    values["volume.shape_z"] = Value(slices, why)
    limits = found.stage_limits_um
    reach = f"; it goes from {limits[0]:g} to {limits[1]:g} µm" if limits else ""
    put("volume.z0_um", found.stage_um, f"current position of {found.stage}{reach}")
    put("volume.pixel_um", None, f"left to Micro-Manager, which now says {found.pixel_um:g} µm")
    if "volume.pixel_um" not in given and found.pixel_um <= 0:
        raise ConfigError(
            "Micro-Manager knows no pixel size for the present objective: calibrate it under Devices > Pixel "
            "Size Calibration, or give --pixel-um."
        )
    why = f"all columns of {found.camera} as set now ({found.bit_depth} bit)"
    put("camera.width", found.width, why)
    put("camera.height", found.height, "all rows")
    for key, unknown in (("offset", 0.0), ("gain", None), ("read_noise", 0.0)):
        put(f"camera.{key}", unknown, "not measured yet; until then, noise is estimated from the frames")
    values |= _channels(found, given)
    put("recorder.output", Path("runs"), "beside this file")
    return values


def _channels(found: Survey, given: Mapping[str, Any]) -> dict[str, Value]:
    group, channels = given.get("acquisition.channel_group"), given.get("acquisition.channels", ())
    if not channels:
        known = ", ".join(found.groups) or "none"
        return {
            "acquisition.channel_group": Value(None, f"one channel; configuration groups there: {known}"),
            "acquisition.channels": Value((), "one channel, as set in Micro-Manager"),
        }
    if group is None:
        fitting = (name for name, presets in found.groups.items() if set(channels) <= set(presets))
        group = next(fitting, "Channel")
    from microdiffusion.drivers.micromanager import has_not

    presets = found.groups.get(group, ())
    for channel in channels:
        if channel not in presets:
            owner = f"The configuration group {group!r}"
            keys = "acquisition.channels or acquisition.channel_group"
            raise ConfigError(has_not(owner, "preset", channel, presets, keys))
    return {
        "acquisition.channel_group": Value(group, "the group of these presets"),
        "acquisition.channels": Value(tuple(channels), _YOURS),
    }


def written(values: Mapping[str, Value], backend: Mapping[str, Value], found: Survey) -> str:
    """Return the file's text."""
    from microdiffusion.config import Config, chosen_toml, keys

    everything = {**values, **backend}
    tables: dict[str, Any] = Config().model_dump()
    for name, value in everything.items():
        *above, last = name.split(".")
        table = tables
        for part in above:
            table = table[part]
        table[last] = value.value
    reasons: dict[KeyPath, str] = {
        path: everything[key.name].why for path, key in keys().items() if key.name in everything
    }
    introduction = (
        f"Written by `mdd init` from what {found.core} reports:\n"
        f"camera {found.camera} ({found.camera_description}), focus stage {found.stage}.\n"
        "Keys that are not here have their defaults: `mdd config show FILE` shows all of them."
    )
    return chosen_toml(Config.model_validate(tables), reasons, introduction)
