"""Micro-Manager: its packages, its server, and what they say of their versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from microdiffusion.config import AcquisitionConfig, Config
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.packages import installed
from microdiffusion.daemon.doctor.run import Check
from microdiffusion.drivers.micromanager import ask_server, check_version, expected_version
from microdiffusion.errors import AcquisitionError

THEME = "Microscope"


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme, for the driver that is configured."""
    acquisition = config.acquisition
    if acquisition.driver == "none":
        return [Check(THEME, "driver", lambda: ok("driver", "none here: frames come over the network"))]
    if acquisition.driver == "watch":
        return [Check(THEME, "watched folder", lambda: watched(acquisition))]
    if acquisition.backend == "java":
        return [
            Check(THEME, "bridge", lambda: bridge(installed)),
            Check(THEME, "pycro-manager server", lambda: server(acquisition.port, ask_server, _expected())),
        ]
    return [
        Check(THEME, "core", lambda: core(acquisition, installed)),
        Check(THEME, "bridge", lambda: bridge(installed)),
    ]


def core(acquisition: AcquisitionConfig, version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Judge the core of our own and the device adapters that it is to load."""
    core_version = version_of("pymmcore")
    if core_version is None:
        yield failure("MMCore", "pymmcore is not installed", "python -m pip install pymmcore.")
        return
    numbers = core_version.split(".")
    interface = numbers[3] if len(numbers) > 3 else "?"
    yield ok("MMCore", f"{'.'.join(numbers[:3])}, device interface {interface} (pymmcore {core_version})")
    if acquisition.mm_app_path is not None:
        yield _own_adapters(acquisition.mm_app_path, interface)
        return
    demo = version_of("mm-test-adapters")
    cure = f"python -m pip install 'mm-test-adapters=={interface}.*'."
    if demo is None:
        yield failure("device adapters", "mm-test-adapters is not installed", cure)
    elif demo.partition(".")[0] != interface:
        yield failure("device adapters", f"mm-test-adapters {demo} is of another device interface", cure)
    else:
        yield ok("device adapters", f"mm-test-adapters {demo}: the demo devices")


def _own_adapters(folder: Path, interface: str) -> Finding:
    adapters = [path.name for path in folder.iterdir() if "mmgr_dal_" in path.name]
    if not adapters:
        return failure(
            "device adapters",
            f"{folder} holds no device adapters (mmgr_dal_...)",
            "Name Micro-Manager's own folder in acquisition.mm_app_path, C:/Program Files/Micro-Manager-2.0 "
            "as a rule.",
        )
    return ok("device adapters", f"{len(adapters)} in {folder}; they must be of device interface {interface}")


def bridge(version_of: Callable[[str], str | None]) -> Finding:
    """Say which versions of pycromanager and its parts are there."""
    names = ("pycromanager", "mmpycorex", "pyjavaz")
    versions = {name: version_of(name) for name in names}
    absent = [name for name, version in versions.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if absent:
        return failure(
            "pycromanager",
            f"{', '.join(absent)} not installed",
            "python -m pip install 'pycromanager>=0.34,<2'.",
        )
    return ok("pycromanager", text)


def server(port: int, ask: Callable[[int], str], expected: str) -> Finding:
    """Judge what listens at the port of Micro-Manager's pycro-manager server."""
    name = "pycro-manager server"
    try:
        answered = ask(port)
        check_version(answered, expected)
    except AcquisitionError as error:
        found, _, cure = str(error).partition(": ")
        return failure(name, found, cure[:1].upper() + cure[1:])
    text = f"answers at port {port}, protocol {answered}"
    if expected and answered != expected:
        return warning(
            name,
            f"{text}, pycromanager here speaks {expected}",
            "Keep Micro-Manager (nightly build) and pycromanager of about the same age.",
        )
    return ok(name, text)


def watched(acquisition: AcquisitionConfig) -> Finding:
    """Judge the folder where somebody else's acquisition is to appear."""
    name, folder = "watched folder", acquisition.watch
    if folder is None or not folder.exists():
        return warning(
            name,
            f"{folder} does not exist yet",
            "Make it, or correct acquisition.watch: it is the directory root of the acquisition.",
        )
    if not folder.is_dir():
        return failure(
            name, f"{folder} is a file", "Set acquisition.watch to the folder of the NDTiff data set."
        )
    return ok(name, str(folder))


def _expected() -> str:
    try:
        return expected_version()
    except ImportError:
        return ""
