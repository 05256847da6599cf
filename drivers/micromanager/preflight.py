"""Checks of the instrument before a run: is it free, stage travel, exposure.

The stage is sent to both ends of the run, where it would go moments later anyway, and asked for its position.
A stage that stops short, stays or moves backwards gives volumes that look right and are not. A position is
believed once it has stood still: another program, or a hand on the joystick, may move the stage meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from microdiffusion.config import AcquisitionConfig, Config
from microdiffusion.drivers.micromanager.server import message_of
from microdiffusion.drivers.plan import Plan
from microdiffusion.errors import AcquisitionError

LIVE = "Micro-Manager's camera is running: switch Live view off there, or end the acquisition that uses it."
TOLERANCE = 0.25
"""Largest deviation of a reported stage position, in slices."""
STILL_S = 0.2
"""Time for which a stage must stay where it went."""
_EXPOSURE_TOLERANCE = 0.05
_ENGINE = "org.micromanager.acqj.internal.Engine"


def check_free(core: Any, acquisition: AcquisitionConfig, note: Callable[[str], None]) -> None:
    """See that nobody else uses the camera; to be called before anything is changed.

    Raises
    ------
    AcquisitionError
        It is running: Live view, most likely.
    """
    if core.is_sequence_running():
        raise AcquisitionError(LIVE)
    if acquisition.backend != "java":
        return
    from pyjavaz import JavaClass

    runs = False
    with suppress(Exception):  # an older Micro-Manager knows no such class or method
        engine = JavaClass(_ENGINE, port=acquisition.port).get_instance()
        runs = engine is not None and bool(engine.any_acquisitions_running())
    if runs:
        note(
            "Micro-Manager says that an acquisition is running. If one is, stop it or this run: each moves "
            "the stage in the other's exposures. It also says so after a driver that was killed, until it "
            "is restarted."
        )


def check_travel(core: Any, plan: Plan, voxel_z_um: float) -> None:
    """Send the focus stage to both ends of the run and check its position.

    Raises
    ------
    AcquisitionError
        It refuses, stops elsewhere, moves backwards, or moves when it was not sent anywhere.
    """
    stage = core.get_focus_device()
    depths = [slab.stage.z_um for sweep in (0, 1) for slab in plan.slabs(sweep)]
    low, high = min(depths), max(depths)
    slack_um = TOLERANCE * voxel_z_um
    reached = [_go(core, stage, z, (low, high), slack_um) for z in (low, high)]
    wrong = [abs(found - z) > slack_um for z, found in zip((low, high), reached, strict=True)]
    if not any(wrong):
        return
    # Believed if it happens again; a stage that somebody else moves is elsewhere each time.
    again = [_go(core, stage, z, (low, high), slack_um) for z in (low, high)]
    for before, after in zip(reached, again, strict=True):
        _check_still(stage, before, after, slack_um)
    if high - low > voxel_z_um and reached[1] - reached[0] < -0.5 * (high - low):
        raise AcquisitionError(
            f"The focus stage {stage} moves backwards: sent from {low:g} to {high:g} µm, twice, it reports "
            f"{reached[0]:g} and {reached[1]:g} µm; reverse its axis in Micro-Manager (Devices > Device "
            "Property Browser)."
        )
    wanted, found = ((low, reached[0]), (high, reached[1]))[wrong.index(True)]
    raise AcquisitionError(
        f"The focus stage {stage} was sent to {wanted:g} µm and reports {found:g} µm: check its "
        "limits, its unit and its joystick in Micro-Manager, or correct volume.z0_um."
    )


def _check_still(stage: str, before_um: float, after_um: float, slack_um: float) -> None:
    if abs(after_um - before_um) > slack_um:
        raise AcquisitionError(
            f"The focus stage {stage} moved from {before_um:g} to {after_um:g} µm while mdd was not moving "
            "it: end the other acquisition or the autofocus that drives it, and leave its joystick alone."
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


def _go(core: Any, stage: str, z_um: float, ends: tuple[float, float], slack_um: float) -> float:
    try:
        core.set_position(stage, z_um)
        core.wait_for_device(stage)
        reached_um = float(core.get_position(stage))
        time.sleep(STILL_S)
        _check_still(stage, reached_um, float(core.get_position(stage)), slack_um)
        return reached_um
    except AcquisitionError:
        raise
    except Exception as error:  # the core raises bare RuntimeError for everything
        raise AcquisitionError(
            f"The focus stage {stage} does not go to {z_um:g} µm ({message_of(error)}): the run needs "
            f"{ends[0]:g} to {ends[1]:g} µm; correct volume.z0_um and volume.shape_z, or the stage's limits."
        ) from error
