"""The instrument's own settings: what a run changes of them is put back at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from microdiffusion.config import AcquisitionConfig
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch
from microdiffusion.drivers.micromanager.core import named_devices
from microdiffusion.drivers.micromanager.server import message_of
from microdiffusion.errors import AcquisitionError

Steps = list[tuple[str, "Callable[[], object]"]]


@contextmanager
def left_as_found(
    core: Any, acquisition: AcquisitionConfig, watch: MicroscopeWatch, note: Callable[[str], None]
) -> Iterator[None]:
    """Put stages, preset, exposure and region of interest back at the end; `note` what could not be."""
    steps = watch.call("say how it is set", _found, core, acquisition)
    try:
        yield
    finally:
        try:
            for problem in watch.call("put its settings back", _put_back, steps):
                note(problem)
        except AcquisitionError as error:
            names = ", ".join(name for name, _ in steps)
            note(f"{error} Not put back as they were: {names}.")


def _found(core: Any, acquisition: AcquisitionConfig) -> Steps:
    """Return what there is to be put back, and how."""
    _, stage = named_devices(core)
    z_um = float(core.get_position(stage))
    steps: Steps = [(f"focus stage at {z_um:g} µm", partial(core.set_position, stage, z_um))]
    if acquisition.positions_um and core.get_xy_stage_device():
        x_um, y_um = float(core.get_x_position()), float(core.get_y_position())
        steps.append((f"XY stage at {x_um:g}, {y_um:g} µm", partial(core.set_xy_position, x_um, y_um)))
    group = acquisition.channel_group
    preset = str(core.get_current_config(group)) if group and acquisition.channels else ""
    if preset:  # empty where the devices fit none
        steps.append((f"preset {preset}", partial(core.set_config, group, preset)))
    exposure_ms = float(core.get_exposure())
    steps.append((f"exposure of {exposure_ms:g} ms", partial(core.set_exposure, exposure_ms)))
    region = _region(core)
    x, y, width, height = region
    steps.append((f"region of {width} x {height} pixels at {x}, {y}", partial(_set_region, core, region)))
    return steps


def _put_back(steps: Steps) -> list[str]:
    problems = []
    for name, step in steps:
        try:
            step()
        except Exception as error:  # the others are put back all the same
            problems.append(f"Not put back as it was: {name} ({message_of(error)}).")
    return problems


def _region(core: Any) -> tuple[int, int, int, int]:
    region = core.get_roi()
    if hasattr(region, "width"):  # a proxy of java.awt.Rectangle
        region = region.x, region.y, region.width, region.height
    x, y, width, height = (int(number) for number in region)
    return x, y, width, height


def _set_region(core: Any, region: tuple[int, int, int, int]) -> None:
    core.clear_roi()
    if region != _region(core):
        core.set_roi(*region)
