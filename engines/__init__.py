"""From projections to a volume: operator, INR, denoiser, sampler, reconstructor.

Public: what `__all__` lists; imported when it is first used, because it brings torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microdiffusion.engines.diffusion import Denoiser, register_denoiser, save_denoiser
    from microdiffusion.engines.pipeline import Reconstructor, lazy_projections, map_sweeps, open_engine

__all__ = [
    "Denoiser",
    "Reconstructor",
    "lazy_projections",
    "map_sweeps",
    "open_engine",
    "register_denoiser",
    "save_denoiser",
]

# torch's OpenMP threads spin while they wait for each other. Beside an acquisition and a recorder that
# also want a core, spinning made a reconstruction 6 to 15 times slower on 2 cores; sleeping costs next to
# nothing. OpenMP reads this when torch is imported, so it has to stand here, before any module below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name in __all__:
        from microdiffusion.engines import diffusion, pipeline

        return getattr(pipeline if hasattr(pipeline, name) else diffusion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
