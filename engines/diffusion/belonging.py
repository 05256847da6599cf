"""The specimen that weights were adapted to, as their file says it.

Such weights are better than those that ship for one specimen under one optics, and worse for others, so
whoever serves them has to know: `pipeline` lets them compete with the shipped ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from microdiffusion.engines.diffusion.weights import weights_notes

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.header import RunHeader

_NOTE = "belongs_to"
_LIKE = 1.34  # most by which a length may differ


@dataclass(frozen=True, slots=True)
class Belonging:
    """A specimen and the optics it was seen with.

    Attributes
    ----------
    specimen : str
        Its name.
    fingerprint : str
        Checksum of the stack, or file, that the weights were adapted to.
    length_um, step_um, voxel_z_um : float
        Slab, distance of slabs, and slices, µm.
    """

    specimen: str
    fingerprint: str
    length_um: float
    step_um: float
    voxel_z_um: float

    @classmethod
    def of(cls, path: Path) -> Belonging | None:
        """Return what a weights file belongs to; None: to no specimen, or nobody can tell."""
        try:
            values: dict[str, Any] = json.loads(weights_notes(path)[_NOTE])
            return cls(
                str(values["specimen"]),
                str(values["fingerprint"]),
                *(float(values[name]) for name in ("length_um", "step_um", "voxel_z_um")),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def notes(self) -> dict[str, str]:
        """Return it as notes for `save_denoiser`."""
        return {_NOTE: json.dumps(asdict(self))}

    def other_optics(self, header: RunHeader) -> str:
        """Return in words how a run's optics differ; empty: hardly."""
        pairs = {
            "slabs": (self.length_um, header.profile.length_um),
            "slices": (self.voxel_z_um, header.voxel_size_um[0]),
        }
        return " and ".join(
            f"{what} of {mine:.3g} µm where the run's are {theirs:.3g} µm"
            for what, (mine, theirs) in pairs.items()
            if not 1 / _LIKE < mine / theirs < _LIKE
        )
