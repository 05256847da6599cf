"""Micro-Manager: its device adapters, its server and their versions; `packages` judges what is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from microdiffusion.config import AcquisitionConfig
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.daemon.doctor.ports import refused
from microdiffusion.drivers.micromanager import (
    Survey,
    ask_server,
    check_version,
    expected_version,
    survey,
)
from microdiffusion.errors import MddError

THEME = "Microscope"
SURVEY_S = 7.0
"""Time limit for Micro-Manager to say whether its camera is free."""


def checks(acquisition: AcquisitionConfig) -> list[Check]:
    """Return the checks of this theme, for the configured driver."""
    if acquisition.driver == "none":
        return [Check(THEME, "driver", lambda: ok("none here: frames come over the network"))]
    if acquisition.driver == "watch":
        return [Check(THEME, "watched folder", lambda: watched(acquisition.watch))]
    if acquisition.backend == "java":
        port = acquisition.port
        look = partial(
            server, port, ask_server, expected_version(), partial(survey, acquisition, timeout_s=SURVEY_S)
        )
        return [Check(THEME, "pycro-manager server", look)]
    return [
        Check(THEME, "device adapters", partial(adapters, acquisition.mm_app_path, installed("pymmcore")))
    ]


def adapters(folder: Path | None, core_version: str | None) -> Finding:
    """Judge the device adapters that mdd's own core is to load: those of `folder`, or the demo's."""
    numbers = (core_version or "").split(".")
    interface = numbers[3] if len(numbers) > 3 else "?"
    if folder is None:
        return ok(f"the demo devices, device interface {interface}")
    count = sum("mmgr_dal_" in path.name for path in folder.iterdir())
    if count:
        return ok(f"{count} in {folder}; they must be of device interface {interface}")
    return failure(
        f"{folder} holds no device adapters (mmgr_dal_...)",
        "Set acquisition.mm_app_path to Micro-Manager's folder, usually C:/Program Files/Micro-Manager-2.0.",
    )


def server(port: int, ask: Callable[[int], str], expected: str, look: Callable[[], Survey]) -> Finding:
    """Judge what listens at the port of Micro-Manager's pycro-manager server, and whether it is free."""
    try:
        answered = ask(port)
        check_version(answered, expected)
    except MddError as error:
        return refused(error)
    try:
        found = look()
    except MddError as error:  # a slow machine, perhaps
        return warning(f"answers at port {port}, but not whether its camera is free", str(error))
    if found.is_live:
        return failure(
            f"{found.camera} is running", "Switch Live view off, or end the acquisition that uses the camera."
        )
    text = f"answers at port {port}, protocol {answered}, {found.camera} is free"
    if expected and answered != expected:
        fix = "Keep Micro-Manager (nightly build) and pycromanager of about the same age."
        return warning(f"{text}, but pycromanager here speaks {expected}", fix)
    return ok(text)


def watched(folder: Path | None) -> Finding:
    """Judge the folder where another program's acquisition is to appear."""
    if folder is None or not folder.exists():
        return warning(
            f"{folder} does not exist yet",
            "Create it, or correct acquisition.watch: it is the directory root of the acquisition.",
        )
    if not folder.is_dir() and folder.suffix.lower() not in (".tif", ".tiff"):
        return failure(
            f"{folder} is a file",
            "Set acquisition.watch to the folder of the NDTiff data set, or to ScanImage's first file.",
        )
    return ok(str(folder))
