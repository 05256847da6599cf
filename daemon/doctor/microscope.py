"""Micro-Manager: its packages, its server, and their versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from microdiffusion.config import AcquisitionConfig
from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning
from microdiffusion.daemon.doctor.network import refused
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.drivers.micromanager import ask_server, check_version, expected_version
from microdiffusion.errors import AcquisitionError

THEME = "Microscope"


def checks(acquisition: AcquisitionConfig) -> list[Check]:
    """Return the checks of this theme, for the configured driver."""
    if acquisition.driver == "none":
        return [Check(THEME, "driver", lambda: ok("none here: frames come over the network"))]
    if acquisition.driver == "watch":
        return [Check(THEME, "watched folder", lambda: watched(acquisition.watch))]
    bridge_check = Check(THEME, "pycromanager", lambda: bridge(installed))
    if acquisition.backend == "java":
        port = acquisition.port
        return [
            bridge_check,
            Check(THEME, "pycro-manager server", lambda: server(port, ask_server, expected_version())),
        ]
    folder = acquisition.mm_app_path
    return [
        bridge_check,
        Check(THEME, "MMCore", lambda: core(installed("pymmcore"))),
        Check(
            THEME,
            "device adapters",
            lambda: adapters(folder, installed("pymmcore") or "", installed("mm-test-adapters")),
        ),
    ]


def core(version: str | None) -> Finding:
    """Judge mdd's own core, by the version of pymmcore."""
    if version is None:
        return failure("pymmcore is not installed", "python -m pip install pymmcore.")
    return ok(f"pymmcore {version}, device interface {_interface(version)}")


def adapters(folder: Path | None, core_version: str, demo: str | None) -> Finding:
    """Judge the device adapters that the core is to load: those of `folder`, or the demo's."""
    interface = _interface(core_version)
    if folder is not None:
        count = sum("mmgr_dal_" in path.name for path in folder.iterdir())
        if count:
            return ok(f"{count} in {folder}; they must be of device interface {interface}")
        return failure(
            f"{folder} holds no device adapters (mmgr_dal_...)",
            "Set acquisition.mm_app_path to Micro-Manager's folder, usually "
            "C:/Program Files/Micro-Manager-2.0.",
        )
    fix = f"python -m pip install 'mm-test-adapters=={interface}.*'."
    if demo is None:
        return failure("mm-test-adapters is not installed", fix)
    if demo.partition(".")[0] != interface:
        return failure(f"mm-test-adapters {demo} has another device interface than {interface}", fix)
    return ok(f"mm-test-adapters {demo}: the demo devices")


def _interface(version: str) -> str:
    """Return the device interface of a pymmcore version, its fourth number."""
    numbers = version.split(".")
    return numbers[3] if len(numbers) > 3 else "?"


def bridge(version_of: Callable[[str], str | None]) -> Finding:
    """Judge pycromanager and its parts."""
    versions = {name: version_of(name) for name in ("pycromanager", "mmpycorex", "pyjavaz")}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        text = f"{', '.join(absent)} not installed"
        return failure(text, "python -m pip install 'pycromanager>=0.34,<2'.")
    return ok(", ".join(f"{name} {version}" for name, version in versions.items()))


def server(port: int, ask: Callable[[int], str], expected: str) -> Finding:
    """Judge what listens at the port of Micro-Manager's pycro-manager server."""
    try:
        answered = ask(port)
        check_version(answered, expected)
    except AcquisitionError as error:
        return refused(error)
    text = f"answers at port {port}, protocol {answered}"
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
    if not folder.is_dir():
        return failure(f"{folder} is a file", "Set acquisition.watch to the folder of the NDTiff data set.")
    return ok(str(folder))
