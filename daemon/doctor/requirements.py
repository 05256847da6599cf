"""What the configured run asks of this computer: bytes, bytes a second, memory. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from microdiffusion.config import Config
from microdiffusion.drivers.plan import Plan
from microdiffusion.engines.memory import reconstruction_bytes
from microdiffusion.header import RunHeader
from microdiffusion.runfile import RunPlan, file_bytes

ASSUMED_EDGE = 2048
"""Pixels of a camera that nobody has described: the usual sCMOS."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a run takes.

    Attributes
    ----------
    file_bytes : int
        Of one run file, which is reserved at the start.
    frames_per_s, volumes_per_s : float
        Bytes to the disk: the projections, which come whatever happens, and the volume of every sweep, as far
        as the engine keeps up.
    engine_bytes : int
        Memory of the engine, at most.
    assumed : str
        What had to be assumed; empty where the configuration says it all.
    """

    file_bytes: int
    frames_per_s: float
    volumes_per_s: float
    engine_bytes: int
    assumed: str = ""


def need_of(config: Config) -> Need | None:
    """Return what the configured run takes; None where its frames decide (acquisition.driver = "none").

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
    pixel_um = volume.pixel_um or 1.0
    header = RunHeader(
        run_id="0" * 32,
        shape=(volume.shape_z, height, width),
        voxel_size_um=(volume.voxel_z_um, pixel_um, pixel_um),
        z0_um=volume.z0_um,
        profile_weights=tuple(float(w) for w in plan.profile.weights),
        profile_spacing_um=plan.profile.spacing_um,
        channels=acquisition.channels or ("default",),
        positions=tuple(map(str, range(max(len(acquisition.positions_um), 1)))),
        frames_per_sweep=plan.frames_per_sweep_max,
    )
    size = file_bytes(RunPlan(header, config.recorder.time_points, plan.frames_per_sweep_max))
    frames = plan.frames_per_sweep_max * len(header.channels) * len(header.positions)
    sweep_s = max(acquisition.sweep_interval_s, frames * acquisition.exposure_ms / 1000.0)
    raw = 2 * height * width * frames
    per_time_point = size / config.recorder.time_points
    whole = camera.height and camera.width
    return Need(
        size,
        raw / sweep_s,
        max(per_time_point - raw, 0.0) / sweep_s,
        reconstruction_bytes(header, config.engine),
        "" if whole else f"for {width} x {height} pixels, assumed",
    )
