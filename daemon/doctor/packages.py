"""Python and its packages: whether they are there, and of versions that go together."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

from packaging.requirements import Requirement

from microdiffusion.config import Config
from microdiffusion.daemon.doctor.finding import Finding, failure, ok, warning
from microdiffusion.daemon.doctor.run import Check

THEME = "Python and packages"
DISTRIBUTION = "microdiffusion-daemon"
OLDEST_PYTHON = (3, 11)
_SHOWN = ("numpy", "h5py", "pyzmq", "pydantic", "pycromanager", "torch")


def checks(config: Config) -> list[Check]:
    """Return the checks of this theme."""
    return [
        Check(THEME, "Python", lambda: python(sys.version_info[:3], sys.maxsize > 1 << 32)),
        Check(THEME, "packages", lambda: packages(_requirements(), installed)),
        Check(THEME, "HDF5", lambda: hdf5(*_hdf5_versions())),
        Check(THEME, "ZeroMQ", lambda: zeromq(*_zmq_facts())),
    ]


def python(version: tuple[int, ...], wide: bool) -> Finding:
    """Judge the interpreter."""
    text = f"{'.'.join(map(str, version))}, {64 if wide else 32} bit"
    if version[:2] < OLDEST_PYTHON:
        return failure("Python", text, "Install Python 3.11 or newer and mdd in it.")
    if not wide:
        return failure("Python", text, "Install a 64-bit Python: volumes do not fit into 32 bits.")
    return ok("Python", f"{text}, {platform.platform()}")


def packages(requirements: list[str], version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Judge what is installed by what mdd asks for: one line where all is well, one for each that is not."""
    well: dict[str, str] = {}
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = version_of(wanted.name)
        install = f"python -m pip install '{wanted.name}{wanted.specifier}'"
        if version is None:
            # The one package that is there for speed alone: torch takes its place.
            report = warning if wanted.name == "openvino" else failure
            yield report(wanted.name, "not installed", f"{install}.")
        elif not wanted.specifier.contains(version, prereleases=True):
            yield failure(wanted.name, f"{version}, mdd needs {wanted.specifier}", f"{install}.")
        else:
            well[wanted.name] = version
    shown = ", ".join(f"{name} {well[name]}" for name in _SHOWN if name in well)
    yield ok("packages", f"{len(well)} as mdd needs them: {shown}")


def hdf5(h5py_version: str, hdf5_version: str) -> Finding:
    """Judge the HDF5 that h5py was built with."""
    text = f"{hdf5_version}, through h5py {h5py_version}"
    if tuple(int(part) for part in hdf5_version.split(".")[:2]) < (1, 10):
        return failure("HDF5", text, "python -m pip install --upgrade h5py (HDF5 1.10 or newer).")
    return ok("HDF5", text)


def zeromq(version: str, has_curve: bool) -> Finding:
    """Judge ZeroMQ."""
    if not has_curve:
        return warning(
            "ZeroMQ", f"{version}, without CURVE", "Install pyzmq from its wheel to reach other machines."
        )
    return ok("ZeroMQ", f"{version}, with CURVE")


def installed(name: str) -> str | None:
    """Return the version of an installed distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    return importlib.metadata.requires(DISTRIBUTION) or []


def _hdf5_versions() -> tuple[str, str]:
    import h5py

    return h5py.version.version, h5py.version.hdf5_version


def _zmq_facts() -> tuple[str, bool]:
    import zmq

    has: Any = zmq.has("curve")
    return zmq.zmq_version(), bool(has)
