"""A survey of the instrument by Micro-Manager's core, as a start for a configuration.

`survey` asks in a separate process: a core lasts for the life of its process, device adapters print freely,
and a bridge that hangs must not block the caller.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microdiffusion.drivers.micromanager.core import named_devices, names_of, open_core, stage_limits
from microdiffusion.drivers.micromanager.server import message_of
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.processes import redirect_output

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from microdiffusion.config import AcquisitionConfig

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Survey:
    """The instrument, as reported by the core: labels, image, current values, groups and their presets."""

    core: str
    camera: str
    camera_description: str
    stage: str
    width: int
    height: int
    bit_depth: int
    bytes_per_pixel: int
    components: int
    pixel_um: float  # in the specimen; 0 if Micro-Manager knows none
    exposure_ms: float
    stage_um: float
    stage_limits_um: tuple[float, float] | None = None  # travel range, if the stage reports it
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_live: bool = False  # the camera is running: Live view, most likely


def survey(acquisition: AcquisitionConfig, *, timeout_s: float = TIMEOUT_S) -> Survey:
    """Return what the core of this configuration reports.

    Raises
    ------
    MddError
        See `open_core`; or it has no camera or stage, or does not answer within `timeout_s`.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(acquisition, there), name="mdd-survey", daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(timeout_s):
            raise AcquisitionError(
                f"Micro-Manager's core has not answered for {timeout_s:g} s: restart Micro-Manager, and "
                "check that its devices respond."
            )
        found: Survey | MddError = here.recv()
    except EOFError:
        raise AcquisitionError(
            "The process that asks Micro-Manager's core died: a device adapter may have crashed; open the "
            "configuration in Micro-Manager first."
        ) from None
    finally:
        child.kill()
        child.join()
        here.close()
    if isinstance(found, MddError):
        raise found
    return found


def ask(core: Any) -> Survey:
    """Return what a core reports; raise `AcquisitionError` without camera or focus stage."""
    camera, stage = named_devices(core)
    return Survey(
        core=str(core.get_version_info()),
        camera=camera,
        camera_description=str(core.get_device_description(camera)),
        stage=stage,
        width=int(core.get_image_width()),
        height=int(core.get_image_height()),
        bit_depth=int(core.get_image_bit_depth()),
        bytes_per_pixel=int(core.get_bytes_per_pixel()),
        components=int(core.get_number_of_components()),
        pixel_um=float(core.get_pixel_size_um()),
        exposure_ms=float(core.get_exposure()),
        stage_um=float(core.get_position(stage)),
        stage_limits_um=stage_limits(core, stage),
        groups={
            group: tuple(names_of(core.get_available_configs(group)))
            for group in names_of(core.get_available_config_groups())
        },
        is_live=bool(core.is_sequence_running()),
    )


def _run(acquisition: AcquisitionConfig, pipe: Connection) -> None:
    redirect_output(None)
    try:
        pipe.send(ask(open_core(acquisition)))
    except MddError as error:
        pipe.send(error)
    except Exception as error:
        text = (
            f"Micro-Manager's core cannot be asked ({message_of(error)}): open its configuration there first."
        )
        pipe.send(AcquisitionError(text))
    pipe.close()
