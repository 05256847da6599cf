"""What the daemon and the engine's process say to each other through their pipe.

Down go `Begin`, `Work`, `End` and `Configure`. Up come `Building` while an engine of TensorRT is built,
`EngineInfo` once the engine is open, then one answer for each `Work` (a `Reconstruction` or an
`EngineError`), and a `Notice` whenever there is something to tell. Plain data; the pipe is private to the
two.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.system import package_versions

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine.sinks import Lane
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

_PACKAGES = (
    *("numpy", "h5py", "pyzmq", "pydantic", "torch", "pycromanager", "pymmcore", "mm-test-adapters"),
    *("openvino", "tensorrt", "tensorrt-rtx-cu13-bindings"),
)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What serves.

    `device` names runtime, device and precision, `reason` says why these; `weights` is a file name, with its
    checksum. `fallback` is one sentence where a runtime failed and torch took its place.
    """

    device: str
    reason: str
    weights: str
    weights_sha256: str
    fallback: str = ""

    @classmethod
    def of(cls, engine: Engine) -> EngineInfo:
        """Return what there is to say of an open engine."""
        return cls(engine.name, engine.reason, engine.weights, engine.weights_sha256, engine.fallback)


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
        "weights": info.weights or "none",
        "weights_sha256": info.weights_sha256 or "none",
    }


@dataclass(frozen=True, slots=True)
class Building:
    """The share of a build that is done; 1 as the first word: there is nothing to build."""

    share: float


@dataclass(frozen=True, slots=True)
class Begin:
    """Sweeps of this run may come."""

    header: RunHeader


@dataclass(frozen=True, slots=True)
class End:
    """None of this run come any more: forget its sessions."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Work:
    """Asks for a volume; see `Reconstructor.reconstruct`."""

    run_id: str
    sweep: Sweep
    lane: Lane
    effort: int


@dataclass(frozen=True, slots=True)
class Configure:
    """Go on with these settings from the next sweep on."""

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Notice:
    """Something for the user, and `changes` of the configuration for this process and the ones after it."""

    text: str
    changes: dict[str, object] = field(default_factory=dict)
