"""A z-stack of one position, acquired with pycromanager, for `mdd calibrate beam --acquire`.

No daemon and no wire: the images stay in memory here. Checks and settings of the devices are those of a run
(`core.prepare`); the focus stage is moved back afterwards. Runs on the main thread of a process that does
nothing else: with the Python backend there is one core per process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.config import Config
from microdiffusion.drivers.micromanager.acquisition import ImageWatch, close_acquisition, open_acquisition
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch, watched
from microdiffusion.drivers.micromanager.core import open_core, prepare
from microdiffusion.drivers.micromanager.preflight import check_free
from microdiffusion.drivers.micromanager.restore import left_as_found
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.errors import AcquisitionError
from microdiffusion.frames import StagePosition
from microdiffusion.processes import exit_anyway

EXIT_S = 1.5
"""Time limit for the exit of the interpreter when Micro-Manager is lost."""


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
    never = threading.Event()
    with watched(config.acquisition, never.is_set) as watch:
        try:
            core = watch.call("answer", open_core, config.acquisition)
            watch.call("say what it does", check_free, core, config.acquisition, note)
            with left_as_found(core, config.acquisition, watch, note):
                return _take_stack(core, config, z_um, watch, note)
        finally:
            if watch.is_lost:
                exit_anyway(AcquisitionError.exit_code, EXIT_S)


def _take_stack(
    core: Any, config: Config, z_um: NDArray[np.float64], watch: MicroscopeWatch, note: Callable[[str], None]
) -> tuple[NDArray[np.uint16], NDArray[np.float64], tuple[float, float], float | None]:
    header = watch.call("take its settings", prepare, core, config, Plan(config))
    bits = watch.call("say its bit depth", core.get_image_bit_depth)
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

    exposure_ms = config.acquisition.exposure_ms
    acquisition = open_acquisition(config.acquisition, watch, "calibration", take)
    try:
        events = [{"axes": {"z": n}, "z": float(z), "exposure": exposure_ms} for n, z in enumerate(z_um)]
        watch.call("take a stack", acquisition.acquire, events)
        images = ImageWatch(came, exposure_ms)
        while not is_complete():
            watch.raise_if_lost()
            images.wait()
    finally:
        close_acquisition(acquisition, watch, abort=not is_complete())
    if failure:
        raise AcquisitionError(f"An image could not be used: {failure[0]}.") from failure[0]
    if len(found) < len(z_um):
        raise AcquisitionError(
            f"{len(found)} of {len(z_um)} images came: check camera and stage in Micro-Manager."
        )
    order = sorted(found)
    full = None if specimen is not None else float(2 ** int(bits) - 1)
    return (
        np.stack([found[index][1] for index in order]),
        np.array([found[index][0] for index in order]),
        header.voxel_size_um[1:],
        full,
    )
