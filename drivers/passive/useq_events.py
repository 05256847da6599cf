"""Reads the images that pymmcore-plus signals: events of useq-schema, and its metadata of a frame.

Imports neither of them. A channel is known by its preset, a position by its name or else its number. The
depth is what the event asks for, without the correction of an autofocus, which follows the specimen; of an
event that asks for none it is where the stage is. Axes that a sweep does not have (tiles of a grid, several
cameras, an action that is no image) stay as they are, for `geometry` to refuse by name. Pure, safe on any
thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from microdiffusion.drivers.passive.geometry import Axis, Image

_AXES = {"t": "time", "p": "position", "c": "channel", "g": "grid", "cam": "camera"}


def useq_image(pixels: NDArray[Any], event: Any, metadata: Mapping[str, Any]) -> Image:
    """Return the image of a `frameReady` signal: `event` is its `MDAEvent`, `metadata` its frame metadata."""
    axes: dict[str, Axis] = {}
    for key, number in event.index.items():
        name = str(getattr(key, "value", key))
        axes[_AXES.get(name, name)] = int(number)
    plan = event.sequence
    if "channel" in axes and event.channel is not None:
        names = [channel.config for channel in getattr(plan, "channels", ())]
        axes["channel"] = _unique(event.channel.config, names, axes["channel"])
    if "position" in axes and event.pos_name:
        names = [position.name for position in getattr(plan, "stage_positions", ())]
        axes["position"] = _unique(event.pos_name, names, axes["position"])
    kind = getattr(event.action, "type", "acquire_image")
    if kind != "acquire_image":
        axes["action"] = str(kind)
    z_um = event.z_pos if event.z_pos is not None else metadata.get("position", {}).get("z")
    return Image(
        axes,
        {
            "ZPosition_um_Intended": z_um,
            "PixelSize_um": metadata.get("pixel_size_um"),
            "Exposure": event.exposure or metadata.get("exposure_ms"),
            "ElapsedTime-ms": metadata.get("runner_time_ms"),
        },
        pixels,
    )


def _unique(name: str, names: list[str], number: Axis) -> str:
    """Return the name, with its number where the sequence has it more than once."""
    return name if names.count(name) < 2 else f"{name} {number}"
