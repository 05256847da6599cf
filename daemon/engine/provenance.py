"""How a volume came about: versions, and what the engine said of itself. Pure."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.system import package_versions

if TYPE_CHECKING:
    from microdiffusion.daemon.engine.messages import EngineInfo

_PACKAGES = (
    *("numpy", "h5py", "pyzmq", "pydantic", "torch", "pycromanager", "pymmcore", "mm-test-adapters"),
    *("openvino", "tensorrt", "tensorrt-rtx-cu13-bindings"),
)


def provenance(info: EngineInfo | None) -> dict[str, str]:
    """Return what is needed to know how a volume came about; without the engine's part where it is None."""
    versions = {
        "mdd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **package_versions(_PACKAGES),
    }
    if info is None:
        return versions
    return {
        **versions,
        "device": info.device,
        **({"device_pending": info.pending} if info.pending else {}),
        "weights": info.weights or "none",
        "weights_sha256": info.weights_sha256 or "none",
    }
