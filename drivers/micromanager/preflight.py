"""Checks of the instrument before a run: stage travel, exposure.

The stage is sent to both ends of the run, where it would go moments later anyway, and asked for its position.
A stage that stops short, stays or moves backwards gives volumes that look right and are not. Runs on the
main thread of the driver process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microdiffusion.drivers.micromanager.core import first_line
from microdiffusion.errors import AcquisitionError

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.drivers.plan import Plan

_TOLERANCE = 0.25
"""Largest deviation of a reported stage position, in slices."""
_EXPOSURE_TOLERANCE = 0.05


def check_travel(core: Any, plan: Plan, voxel_z_um: float) -> None:
    """Send the focus stage to both ends of the run and check its position.

    Raises
    ------
    AcquisitionError
        It refuses, stops elsewhere, or moves backwards.
    """
    stage = core.get_focus_device()
    depths = [slab.stage.z_um for sweep in (0, 1) for slab in plan.slabs(sweep)]
    low, high = min(depths), max(depths)
    reached = [_go(core, stage, z, (low, high)) for z in (low, high)]
    if high - low > voxel_z_um and reached[1] - reached[0] < -0.5 * (high - low):
        raise AcquisitionError(
            f"The focus stage {stage} moves backwards: sent from {low:g} to {high:g} µm it reports "
            f"{reached[0]:g} and {reached[1]:g} µm; reverse its axis in Micro-Manager (Devices > Device "
            "Property Browser)."
        )
    for wanted, found in zip((low, high), reached, strict=True):
        if abs(found - wanted) > _TOLERANCE * voxel_z_um:
            raise AcquisitionError(
                f"The focus stage {stage} was sent to {wanted:g} µm and reports {found:g} µm: check its "
                "limits, its unit and its joystick in Micro-Manager, or correct volume.z0_um."
            )


def exposure_remark(core: Any, config: Config) -> str:
    """Return a message if the camera rounds the exposure to another one; empty if not."""
    wanted, found = config.acquisition.exposure_ms, float(core.get_exposure())
    if abs(found - wanted) <= _EXPOSURE_TOLERANCE * wanted:
        return ""
    return (
        f"the camera exposes for {found:g} ms, not for {wanted:g} as configured: set "
        "acquisition.exposure_ms to what it supports"
    )


def _go(core: Any, stage: str, z_um: float, ends: tuple[float, float]) -> float:
    try:
        core.set_position(stage, z_um)
        core.wait_for_device(stage)
        return float(core.get_position(stage))
    except Exception as error:  # the core raises bare RuntimeError for everything
        raise AcquisitionError(
            f"The focus stage {stage} does not go to {z_um:g} µm ({first_line(error)}): the run needs "
            f"{ends[0]:g} to {ends[1]:g} µm; correct volume.z0_um and volume.shape_z, or the stage's limits."
        ) from error
