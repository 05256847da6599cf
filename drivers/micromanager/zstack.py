"""A z-stack of one position, acquired with pycromanager, for `mdd calibrate beam --acquire`.

No daemon and no wire: the images stay in memory here. Checks and settings of the devices are those of a run
(`core.prepare`); the focus stage is moved back afterwards. Runs on the main thread of a process that does
nothing else: with the Python backend there is one core per process.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.drivers.micromanager.acquisition import ImageWatch, close_acquisition
from microdiffusion.drivers.micromanager.core import focus_restored, open_core, prepare
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.errors import AcquisitionError
from microdiffusion.frames import StagePosition

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.config import Config


def take_stack(
    config: Config, z_um: NDArray[np.float64], *, note: Callable[[str], None] = lambda _: None
) -> tuple[NDArray[np.uint16], NDArray[np.float64], tuple[float, float], float | None]:
    """Return images (Z, Y, X) uint16, stage positions (Z,) µm, pixel (y, x) µm, and the camera's limit.

    `z_um` (Z,) are the positions, in the order of acquisition.

    Raises
    ------
    AcquisitionError
        The microscope could not start or failed, or images are missing.
    """
    core = open_core(config.acquisition)
    header = prepare(core, config, Plan(config))
    specimen = specimen_of_run(config.specimen, header) if config.acquisition.specimen else None
    note(f"{header.source}; {header.shape[2]} x {header.shape[1]} pixels; {len(z_um)} images")
    found: dict[int, tuple[float, NDArray[np.uint16]]] = {}
    failure: list[Exception] = []
    came = threading.Event()
    began_s = time.monotonic()

    def take(image: NDArray[Any], metadata: dict[str, Any]) -> None:
        # Never raises, and leaves nothing in pycromanager's storage.
        try:
            index = int(metadata["Axes"]["z"])
            position = float(metadata.get("ZPosition_um_Intended", z_um[index]))
            pixels = np.array(image, dtype=np.uint16)
            if specimen is not None:
                rng = np.random.default_rng([config.specimen.seed, 111, index])
                elapsed_s = time.monotonic() - began_s
                light = specimen.expected(StagePosition(position), header.profile, elapsed_s)
                pixels = header.camera.expose(light, rng)
            found[index] = (position, pixels)
        except Exception as error:
            failure.append(error)
        came.set()

    def is_complete() -> bool:
        return len(found) + len(failure) >= len(z_um)

    with focus_restored(core, note):
        from pycromanager import Acquisition

        exposure_ms = config.acquisition.exposure_ms
        acquisition = Acquisition(
            name="calibration", image_process_fn=take, show_display=False, port=config.acquisition.port
        )
        try:
            acquisition.acquire(
                [{"axes": {"z": n}, "z": float(z), "exposure": exposure_ms} for n, z in enumerate(z_um)]
            )
            watch = ImageWatch(came, exposure_ms)
            while not is_complete():
                watch.wait()
        finally:
            close_acquisition(acquisition, abort=not is_complete())
    if failure:
        raise AcquisitionError(f"An image could not be used: {failure[0]}.") from failure[0]
    if len(found) < len(z_um):
        raise AcquisitionError(
            f"{len(found)} of {len(z_um)} images came: check camera and stage in Micro-Manager."
        )
    order = sorted(found)
    full = None if specimen is not None else float(2 ** int(core.get_image_bit_depth()) - 1)
    return (
        np.stack([found[index][1] for index in order]),
        np.array([found[index][0] for index in order]),
        header.voxel_size_um[1:],
        full,
    )
