"""What is trained on what, and for how long; and what of it a checkpoint has to agree with.

A `TrainingPlan` is the training's side of the configuration table `[training]`: checked there, trusted here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from microdiffusion.engines.diffusion import DenoiserShape
from microdiffusion.engines.training.data import SHARES

if TYPE_CHECKING:
    from microdiffusion.config import TrainingConfig
    from microdiffusion.engines.training.degrade import Formulation


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What is trained on what, and for how long; see `models.TrainingConfig` for the meanings.

    `volumes` may be one path or several; `start` are weights to start from. `command` and `machine` are
    texts for the model card.
    """

    volumes: Path | tuple[Path, ...]
    morphologies: Path | None
    output: Path
    held_out: tuple[str, ...] = ()
    shape: DenoiserShape = field(default_factory=DenoiserShape)
    iterations: int = 20_000
    minutes: float = 60.0
    batch: int = 16
    rate: float = 1e-3
    start: Path | None = None
    formulation: Formulation = "bridge"
    pool: int = 1500
    seed: int = 0
    validate_every: int = 1000
    ring: int = 48
    renew_every: int = 4
    workers: int = 0
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    licence: str = ""
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    command: str = ""
    machine: str = ""

    @classmethod
    def of(
        cls, config: TrainingConfig, *, resume: bool = False, command: str = "", machine: str = ""
    ) -> Self:
        """Return the plan of a configuration."""
        return cls(
            volumes=config.volumes,
            morphologies=config.morphologies,
            output=config.output,
            held_out=config.held_out,
            shape=DenoiserShape(config.widths, config.blocks, config.embedding),
            iterations=config.iterations,
            minutes=config.minutes,
            batch=config.batch,
            rate=config.rate,
            start=config.init,
            pool=config.pool,
            seed=config.seed,
            validate_every=config.validate_every,
            ring=config.ring,
            renew_every=config.renew_every,
            workers=config.workers,
            shares=config.shares.model_dump(),
            licence=config.licence,
            device=config.device,
            precision=config.precision,
            resume=resume,
            command=command,
            machine=machine,
        )

    @property
    def places(self) -> tuple[Path, ...]:
        """Files and folders of the volumes."""
        return (self.volumes,) if isinstance(self.volumes, Path) else tuple(self.volumes)

    @property
    def checkpoint(self) -> Path:
        """The file to resume from, beside the weights."""
        return self.output.with_suffix(".checkpoint.pt")

    def identity(self, sources: str) -> dict[str, str]:
        """Return what a checkpoint has to agree with, by name. Length, device and files may change."""
        values = {
            "network": asdict(self.shape),
            "held_out": sorted(self.held_out),
            "data": sources,
            "batch": self.batch,
            "rate": self.rate,
            "formulation": self.formulation,
            "pool": self.pool,
            "ring": self.ring,
            "renew_every": self.renew_every,
            "shares": self.shares,
            "seed": self.seed,
        }
        return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
