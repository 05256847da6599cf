"""The messages between the daemon and the engine process. Plain data on a private pipe.

The daemon sends `Begin`, `Work`, `Release`, `End` and `Configure`. The process sends `Building` while an
engine of TensorRT is built, `EngineInfo` once it is open, one answer to each `Work` (a `Reconstruction` or an
`EngineError`), before it a `SweepFeedback` where the run is adaptive, `Released`, and a `Notice` whenever
something changes by itself.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.engine.placement import SessionName
from microdiffusion.daemon.system import package_versions

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.daemon.engine.sinks import Lane
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The open engine.

    `device` names runtime, device and precision, `reason` says why these; `weights` is a file name, with its
    checksum; `fallback` is a sentence where a runtime failed and torch took its place, `slow` one where the
    engine is too slow for the sweeps that are configured.
    """

    device: str
    reason: str
    weights: str
    weights_sha256: str
    fallback: str = ""
    slow: str = ""

    @classmethod
    def of(cls, engine: Engine, slow: str = "") -> EngineInfo:
        """Return the description of an open engine."""
        return cls(engine.name, engine.reason, engine.weights, engine.weights_sha256, engine.fallback, slow)


def provenance(info: EngineInfo | None) -> dict[str, str]:
    """Return versions, and the engine that made the volumes, if it is known."""
    versions = {
        "mdd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **package_versions(),
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
    """The share of a build that is done; a first message of 1 says that nothing has to be built."""

    share: float


@dataclass(frozen=True, slots=True)
class Begin:
    """Sweeps of this run will follow."""

    header: RunHeader


@dataclass(frozen=True, slots=True)
class End:
    """The run is over: forget its sessions."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Work:
    """Request for a volume; see `Reconstructor.reconstruct`."""

    run_id: str
    sweep: Sweep
    lane: Lane
    effort: int


@dataclass(frozen=True, slots=True)
class Release:
    """Put a session aside, on the disk: another process goes on with it."""

    session: SessionName


@dataclass(frozen=True, slots=True)
class Released:
    """The state of a session is on the disk, and not in this process any more."""

    session: SessionName


@dataclass(frozen=True, slots=True)
class Configure:
    """New settings, from the next sweep on."""

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning for the user, and `changes` of the settings that the process has made or needs."""

    text: str
    changes: dict[str, object] = field(default_factory=dict)
