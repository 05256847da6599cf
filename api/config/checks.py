"""Values that are possible one by one and cannot be meant together: mistaken units, a pace no camera keeps.

Pure function, safe on any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.errors import GeometryError

if TYPE_CHECKING:
    from microdiffusion.config.models import Config

PIXEL_MOST_UM = 100.0
"""Camera pixel in the specimen beyond which somebody mistook a unit."""


def check_sense(config: Config) -> None:
    """Refuse lengths that can only be of another unit, and a pace that no camera keeps.

    Raises
    ------
    GeometryError
        One sentence for the first that does not make sense.
    """
    sweep, volume, acquisition = config.sweep, config.volume, config.acquisition
    length_um, step_um = sweep.length_um, sweep.resolved_step_um
    depth_um = volume.shape_z * volume.voxel_z_um
    if length_um >= 1000 and length_um > depth_um:
        raise GeometryError(
            f"A slab of {length_um:g} µm does not fit into a volume of {depth_um:g} µm: sweep.length_um "
            "is in µm "
            f"({length_um:g} nm are {length_um / 1000:g} µm); shorten it, or enlarge volume.shape_z."
        )
    if volume.voxel_z_um > length_um:
        raise GeometryError(
            f"A voxel of {volume.voxel_z_um:g} µm is longer than the slab of {length_um:g} µm: "
            "volume.voxel_z_um is "
            "in µm; make it a third of sweep.length_um or less."
        )
    if step_um > 2 * length_um:
        raise GeometryError(
            f"A step of {step_um:g} µm is more than two slabs of {length_um:g} µm: half of the specimen "
            "would never "
            "be lit; lower sweep.step_um to sweep.length_um or less."
        )
    if volume.pixel_um is not None and volume.pixel_um > PIXEL_MOST_UM:
        raise GeometryError(
            f"A camera pixel of {volume.pixel_um:g} µm in the specimen is no microscope's: "
            "volume.pixel_um is in µm, "
            "the camera's pixel divided by the magnification."
        )
    interval_s = acquisition.sweep_interval_s
    if acquisition.driver == "micromanager" and interval_s > 0 and depth_um >= length_um:
        stacks = max(len(acquisition.channels), 1) * max(len(acquisition.positions_um), 1)
        frames = (int((depth_um - length_um) / step_um + 1e-6) + 1) * stacks
        least_s = frames * acquisition.exposure_ms / 1000.0
        if least_s > interval_s:
            raise GeometryError(
                f"A sweep of {frames} frames of {acquisition.exposure_ms:g} ms takes {least_s:g} s, "
                "longer than "
                f"acquisition.sweep_interval_s = {interval_s:g}: raise that (0: as fast as it goes), or "
                "lower "
                "acquisition.exposure_ms."
            )
