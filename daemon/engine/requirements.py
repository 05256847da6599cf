"""Demands of the configured run on this computer: disk space, bytes per second, memory. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from microdiffusion.config import Config
from microdiffusion.drivers.plan import Plan
from microdiffusion.engines.memory import reconstruction_bytes
from microdiffusion.runfile import RunPlan, file_bytes

ASSUMED_EDGE = 2048
"""Pixels of a camera that the configuration does not describe: the usual sCMOS."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The needs of a run.

    `file_bytes` of a run file are reserved at the start. `frames_per_s`, in bytes, go to the disk in any
    case, `volumes_per_s` if the engine keeps up. `engine_bytes` is the engine's memory, at most. `assumed`
    says what the configuration leaves open. Sweeps of each of `sessions` come every `sweep_s`.
    """

    file_bytes: int
    frames_per_s: float
    volumes_per_s: float
    engine_bytes: int
    assumed: str = ""
    sweep_s: float = 0.0
    sessions: int = 1


def requirements_of(config: Config) -> Requirements | None:
    """Return what the configured run needs; None where the incoming frames decide (driver "none").

    Raises
    ------
    UserError
        The configured beam does not fit into the volume.
    """
    acquisition, camera, volume = config.acquisition, config.camera, config.volume
    if acquisition.driver == "none":
        return None
    plan = Plan(config)
    height, width = camera.height or ASSUMED_EDGE, camera.width or ASSUMED_EDGE
    header = plan.header(
        (height, width),
        volume.pixel_um or 1.0,
        source="",
        channels=acquisition.channels or ("default",),
        positions=tuple(map(str, range(max(len(acquisition.positions_um), 1)))),
    )
    size = file_bytes(RunPlan(header, config.recorder.time_points, plan.frames_per_sweep_max))
    frames = plan.frames_per_sweep_max * len(header.channels) * len(header.positions)
    sweep_s = max(acquisition.sweep_interval_s, frames * acquisition.exposure_ms / 1000.0)
    raw = 2 * height * width * frames
    return Requirements(
        size,
        raw / sweep_s,
        max(size / config.recorder.time_points - raw, 0.0) / sweep_s,
        reconstruction_bytes(header, config.engine),
        "" if camera.height and camera.width else f"(assuming {width} x {height} pixels)",
        sweep_s,
        len(header.channels) * len(header.positions),
    )
