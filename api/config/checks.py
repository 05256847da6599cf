"""Checks of several keys at once: mistaken units, slabs that do not fit, files that do not exist.

Pure functions, safe on any thread.
"""

from __future__ import annotations

from pathlib import Path

from microdiffusion.config.models import Config
from microdiffusion.config.reference import KeyPath
from microdiffusion.errors import GeometryError
from microdiffusion.optics import sweep_positions

MAX_PIXEL_UM = 100.0
"""Camera pixel in the specimen beyond which its unit must be a mistake."""

MAX_PROJECTIONS = 10_000
"""Projections of a sweep beyond which a unit must be a mistake."""

INPUT_PATHS = (
    ("acquisition", "mm_app_path"),
    ("acquisition", "mm_config"),
    ("sweep", "calibration"),
    ("sweep", "axial_profile"),
    ("camera", "calibration"),
    ("engine", "weights"),
)


def missing_inputs(config: Config) -> dict[KeyPath, Path]:
    """Return the files and folders that are to be read and do not exist, by their keys."""
    named = {(table, name): getattr(getattr(config, table), name) for table, name in INPUT_PATHS}
    return {key: path for key, path in named.items() if path is not None and not path.exists()}


def check_geometry(config: Config) -> None:
    """Refuse slabs that do not fit into the volume, where the configuration decides about both.

    Raises
    ------
    GeometryError
        One sentence for the first thing that does not make sense.
    """
    sweep, volume = config.sweep, config.volume
    if config.acquisition.driver == "none" or sweep.axial_profile is not None:
        return
    _check_units(config)
    _check_pace(config)
    step_um = sweep.resolved_step_um
    depth_um = volume.shape_z * volume.voxel_z_um
    if depth_um > MAX_PROJECTIONS * step_um:
        raise GeometryError(
            f"A step of {step_um:g} µm over {depth_um:g} µm makes more than {MAX_PROJECTIONS} "
            "projections of a sweep: check its unit."
        )
    sweep_positions(
        length_um=sweep.length_um,
        step_um=step_um,
        z0_um=volume.z0_um,
        voxel_z_um=volume.voxel_z_um,
        shape_z=volume.shape_z,
    )


def _check_units(config: Config) -> None:
    """Refuse lengths that only make sense in another unit."""
    sweep, volume = config.sweep, config.volume
    length_um, step_um = sweep.length_um, sweep.resolved_step_um
    depth_um = volume.shape_z * volume.voxel_z_um
    if length_um >= 1000 and length_um > depth_um:
        raise GeometryError(
            f"A slab of {length_um:g} µm does not fit into a volume of {depth_um:g} µm: sweep.length_um is "
            f"in µm ({length_um:g} nm are {length_um / 1000:g} µm); shorten it, or enlarge volume.shape_z."
        )
    if volume.voxel_z_um > length_um:
        raise GeometryError(
            f"A voxel of {volume.voxel_z_um:g} µm is longer than the slab of {length_um:g} µm: "
            "volume.voxel_z_um is in µm; make it a third of sweep.length_um or less."
        )
    if step_um > 2 * length_um:
        raise GeometryError(
            f"A step of {step_um:g} µm is more than two slabs of {length_um:g} µm: half of the specimen "
            "would never be lit; lower sweep.step_um to sweep.length_um or less."
        )
    if volume.pixel_um is not None and volume.pixel_um > MAX_PIXEL_UM:
        raise GeometryError(
            f"A camera pixel of {volume.pixel_um:g} µm in the specimen is no microscope's: volume.pixel_um "
            "is in µm, the camera's pixel divided by the magnification."
        )


def _check_pace(config: Config) -> None:
    """Refuse sweeps that take longer than the interval between them."""
    acquisition, sweep, volume = config.acquisition, config.sweep, config.volume
    interval_s = acquisition.sweep_interval_s
    travel_um = volume.shape_z * volume.voxel_z_um - sweep.length_um
    if acquisition.driver != "micromanager" or interval_s == 0 or travel_um < 0:
        return
    stacks = max(len(acquisition.channels), 1) * max(len(acquisition.positions_um), 1)
    frames = (int(travel_um / sweep.resolved_step_um + 1e-6) + 1) * stacks
    least_s = frames * acquisition.exposure_ms / 1000.0
    if least_s > interval_s:
        raise GeometryError(
            f"A sweep of {frames} frames of {acquisition.exposure_ms:g} ms takes {least_s:g} s, longer than "
            f"acquisition.sweep_interval_s = {interval_s:g}: raise that (0: as fast as it goes), or lower "
            "acquisition.exposure_ms."
        )
