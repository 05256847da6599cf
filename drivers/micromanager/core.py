"""Micro-Manager's core on either backend: open it, check the devices, set the camera up.

`open_core` returns the core object of the process: with the Python backend a pymmcore of our own (one for
the life of the process: pycromanager's engine keeps the first), with the Java backend a proxy of the running
Micro-Manager. `prepare` turns the core's values into the run's header. Users meet these errors first, so each
names the menu, the option or the file to change. Runs on the main thread of the driver process.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from microdiffusion.config import AcquisitionConfig, CameraConfig, Config
from microdiffusion.drivers.micromanager.server import (
    ask_server,
    check_version,
    expected_version,
    message_of,
    server_menu,
)
from microdiffusion.drivers.plan import Plan
from microdiffusion.errors import AcquisitionError, MissingFileError
from microdiffusion.header import RunHeader

DEMO_CONFIG = "MMConfig_demo.cfg"
_CIRCULAR_BUFFER_MB = 256
_BRIDGE_TIMEOUT_MS = 5000


def open_core(acquisition: AcquisitionConfig) -> Any:
    """Return the core; both backends offer the same methods, in snake case.

    Raises
    ------
    AcquisitionError
        There is no server at the port, the device adapters have another interface, or the configuration does
        not load.
    MissingFileError
        The adapter folder or the configuration file does not exist.
    """
    return _connect(acquisition.port) if acquisition.backend == "java" else _load(acquisition)


def _connect(port: int) -> Any:
    check_version(ask_server(port), expected_version())
    from mmpycorex import Core

    try:
        core = Core(port=port, timeout=_BRIDGE_TIMEOUT_MS)
        core.get_version_info()
    except Exception as error:  # the bridge raises bare Exception
        raise AcquisitionError(
            f"What listens at port {port} does not answer as a pycro-manager server does "
            f"({message_of(error)}): {server_menu(port)}, and use releases of Micro-Manager and pycromanager "
            "of about the same date."
        ) from error
    return core


def _load(acquisition: AcquisitionConfig) -> Any:
    if acquisition.mm_app_path is None:
        import mm_test_adapters

        _check_demo_interface()
        adapters = Path(mm_test_adapters.device_adapter_path())
    else:
        adapters = acquisition.mm_app_path.expanduser().resolve()
        if not adapters.is_dir():
            raise MissingFileError(
                f"The Micro-Manager folder {adapters} does not exist: correct acquisition.mm_app_path."
            )
    file = adapters / DEMO_CONFIG
    if acquisition.mm_config is not None:
        file = acquisition.mm_config.expanduser().resolve()
    if not file.is_file():
        raise MissingFileError(
            f"The Micro-Manager configuration {file} does not exist: correct acquisition.mm_config."
        )
    from mmpycorex import Core
    from pycromanager import start_headless

    try:
        start_headless(
            str(adapters), config_file=str(file), python_backend=True, buffer_size_mb=_CIRCULAR_BUFFER_MB
        )
    except Exception as error:  # the core raises bare RuntimeError for all it dislikes
        text = message_of(error)
        advice = (
            f"pymmcore here has device interface {_interface_of_pymmcore()}, so install the pymmcore whose "
            "fourth number is the interface of these adapters"
            if "interface" in text.lower()
            else "open it in Micro-Manager's Hardware Configuration Wizard, or correct acquisition.mm_config"
        )
        raise AcquisitionError(
            f"The Micro-Manager configuration {file} does not load ({text}): {advice}."
        ) from error
    return Core()


def _interface_of_pymmcore() -> str:
    return version("pymmcore").split(".")[3]


def _check_demo_interface() -> None:
    wanted, offered = _interface_of_pymmcore(), version("mm-test-adapters").split(".")[0]
    if wanted != offered:
        raise AcquisitionError(
            f"pymmcore {version('pymmcore')} has device interface {wanted}, mm-test-adapters "
            f"{version('mm-test-adapters')} has {offered}: python -m pip install "
            f"'mm-test-adapters=={wanted}.*'."
        )


def prepare(core: Any, config: Config, plan: Plan, *, run_id: str | None = None) -> RunHeader:
    """Check the devices, set exposure and region of interest, and return the run's header.

    Parameters
    ----------
    run_id : str or None
        The run to resume; None: a new one.

    Raises
    ------
    AcquisitionError
        A device, a channel or the pixel size is missing, or the camera does not suit.
    """
    _check_devices(core, config.acquisition)
    height, width = _set_region(core, config.camera)
    core.set_exposure(float(config.acquisition.exposure_ms))
    pixel_um = config.volume.pixel_um or float(core.get_pixel_size_um())
    if pixel_um <= 0:
        raise AcquisitionError(
            "Micro-Manager knows no pixel size for the current objective: calibrate it under Devices > Pixel "
            "Size Calibration, or set volume.pixel_um."
        )
    positions = range(max(len(config.acquisition.positions_um), 1))
    return plan.header(
        (height, width),
        pixel_um,
        source=_describe(core, config.acquisition),
        run_id=run_id,
        channels=config.acquisition.channels or ("default",),
        positions=tuple(str(position) for position in positions),
    )


def named_devices(core: Any) -> tuple[str, str]:
    """Return the labels of camera and focus stage; raise `AcquisitionError` where there is none."""
    return (
        _named(core.get_camera_device(), "camera", "Core-Camera"),
        _named(core.get_focus_device(), "focus stage", "Core-Focus"),
    )


def stage_limits(core: Any, stage: str) -> tuple[float, float] | None:
    """Return least and greatest position of a stage, µm; None where it does not report them."""
    if not (core.has_property(stage, "Position") and core.has_property_limits(stage, "Position")):
        return None
    return (
        float(core.get_property_lower_limit(stage, "Position")),
        float(core.get_property_upper_limit(stage, "Position")),
    )


def _named(device: object, what: str, label: str) -> str:
    if not device:
        raise AcquisitionError(
            f"The Micro-Manager configuration names no {what}: choose one under Devices > Device Property "
            f"Browser, {label}."
        )
    return str(device)


def _check_devices(core: Any, acquisition: AcquisitionConfig) -> None:
    named_devices(core)
    if acquisition.positions_um:
        _named(core.get_xy_stage_device(), "XY stage, which positions need", "Core-XYStage")
    if acquisition.channels:
        groups = names_of(core.get_available_config_groups())
        group = acquisition.channel_group
        if group not in groups:
            key = "acquisition.channel_group"
            raise AcquisitionError(has_not("Micro-Manager", "configuration group", group or "", groups, key))
        presets = names_of(core.get_available_configs(group))
        for channel in acquisition.channels:
            if channel not in presets:
                owner, key = f"The configuration group {group!r}", "acquisition.channels"
                raise AcquisitionError(has_not(owner, "preset", channel, presets, key))
    if core.get_number_of_camera_channels() != 1 or core.get_number_of_components() != 1:
        raise AcquisitionError(
            f"{core.get_camera_device()} delivers colour or several images at once: choose one monochrome "
            "camera."
        )
    if core.get_bytes_per_pixel() not in (1, 2):
        raise AcquisitionError(
            f"{core.get_camera_device()} delivers {core.get_bytes_per_pixel()} bytes per pixel: set its "
            "PixelType to 8 or 16 bit."
        )


def _set_region(core: Any, camera: CameraConfig) -> tuple[int, int]:
    """Set the centred region of interest and return the camera's rows and columns."""
    core.clear_roi()
    rows, columns = int(core.get_image_height()), int(core.get_image_width())
    height, width = camera.height or rows, camera.width or columns
    if height > rows or width > columns:
        raise AcquisitionError(
            f"{core.get_camera_device()} has {columns} x {rows} pixels, fewer than the {width} x {height} of "
            "camera.width and camera.height: make these smaller, or the binning."
        )
    if (height, width) != (rows, columns):
        core.set_roi((columns - width) // 2, (rows - height) // 2, width, height)
    # Some cameras round the region; the header holds the actual one.
    return int(core.get_image_height()), int(core.get_image_width())


def _describe(core: Any, acquisition: AcquisitionConfig) -> str:
    """Return one line that describes the instrument."""
    camera = core.get_camera_device()
    return (
        f"Micro-Manager ({acquisition.backend}), {core.get_version_info()}, {camera} "
        f"{int(core.get_image_bit_depth())} bit, exposure {float(core.get_exposure()):g} ms, "
        f"focus {core.get_focus_device()}, pycromanager {version('pycromanager')}"
        + (", virtual specimen" if acquisition.specimen else "")
    )


def has_not(owner: str, what: str, name: str, known: Sequence[str], key: str) -> str:
    """Return the sentence that refuses the configuration group or preset `name`, set by `key`."""
    text = f"{owner} has no {what} {name!r}, but {', '.join(known) or 'none at all'}: correct {key}."
    if any(ord(letter) > 255 for letter in name) and (not known or any("?" in other for other in known)):
        text += (
            " Letters beyond Latin-1 arrive over the bridge as '?': give it another name in Micro-Manager."
        )
    return text


def names_of(vector: Any) -> list[str]:
    """Return a core's list of names: a tuple in Python, a proxy of a C++ vector in Java."""
    if hasattr(vector, "size") and hasattr(vector, "get"):
        return [str(vector.get(i)) for i in range(vector.size())]
    return [str(item) for item in vector]
