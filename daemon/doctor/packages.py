"""Python and its packages: installed, and of versions that go together."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement

from microdiffusion.daemon.doctor.finding import Check, Finding, failure, ok, warning

THEME = "Python and packages"
DISTRIBUTION = "microdiffusion-daemon"
_SHOWN = ("numpy", "h5py", "pyzmq", "pydantic", "pycromanager", "pymmcore", "torch")


def checks() -> list[Check]:
    """Return the checks of this theme."""
    requirements = importlib.metadata.requires(DISTRIBUTION) or []
    return [
        Check(THEME, "Python", lambda: ok(f"{platform.python_version()}, {platform.platform()}")),
        Check(THEME, "packages", lambda: packages(requirements, installed)),
    ]


def packages(requirements: list[str], version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Judge installed versions by what mdd requires: a finding for each wrong one, one for all others."""
    versions: dict[str, str] = {}
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = version_of(wanted.name)
        install = f"python -m pip install '{wanted.name}{wanted.specifier}'."
        if version is None:
            # openvino is there for speed alone: torch takes its place.
            level = warning if wanted.name == "openvino" else failure
            yield level(f"{wanted.name} is not installed", install)
        elif not wanted.specifier.contains(version, prereleases=True):
            yield failure(f"{wanted.name} {version}, mdd needs {wanted.specifier}", install)
        else:
            versions[wanted.name] = version
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    yield ok(f"{len(versions)} as required: {shown}")


def installed(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
