"""What daemon and engine process say to each other through their pipe.

Down go `Begin`, `Work`, `End`, `Configure` and `ChangeOver`; up come `EngineInfo` once, then for each `Work`
one answer (a `Reconstruction` or an `EngineError`), for each `ChangeOver` a `Changed`, and a `Changed` or a
`Told` whenever there is something to tell. Plain data; the pipe is private to the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the child found.

    Attributes
    ----------
    device, reason : str
        Runtime, device and precision, and why these.
    weights, weights_sha256 : str
        File name and checksum.
    fallback : str
        Which runtime failed and was replaced, as a sentence.
    pending : str
        The runtime that is being built, and will replace this one.
    """

    device: str
    reason: str
    weights: str
    weights_sha256: str
    fallback: str = ""
    pending: str = ""

    @classmethod
    def of(cls, engine: Engine) -> EngineInfo:
        """Return what there is to say of an open engine."""
        return cls(
            engine.name,
            engine.reason,
            engine.weights,
            engine.weights_sha256,
            engine.fallback,
            engine.pending,
        )


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
    lane: Literal["sweep", "rolling", "later"]
    effort: int


@dataclass(frozen=True, slots=True)
class Configure:
    """Go on with these settings from the next sweep on."""

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class ChangeOver:
    """Asks the child to open the engine again and to go on with it."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What serves now, or None and why it goes on as before; `failure` also says why it had to change."""

    info: EngineInfo | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """Something for the user and for the next child: `tile` where smaller tiles are needed from now on."""

    text: str
    tile: int | None = None
