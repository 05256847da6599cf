"""The check that a runtime computes what torch computes in float32; each passes it before it serves.

Seeded inputs, the reference on the CPU. What is compared is the correction: the prior that every runtime adds
back would hide an error of half of it. Runs on the engine's thread.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.denoiser import CONDITIONS, WINDOW, SlabDenoiser
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.runtimes.runtime import Runtime

logger = logging.getLogger("microdiffusion.engines")

# Half precision costs some 1e-3; a miscompiled graph is off by far more.
PARITY_LIMIT = 1e-2
_PARITY_EDGE = 512  # pixels; the comparison runs on the CPU


def parity_error(runtime: Runtime, model: SlabDenoiser, batch: int, edge: int) -> float:
    """Return how far a runtime's correction is from torch's in float32 on the CPU, relative (L2 norm)."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(batch, WINDOW, edge, edge, generator=generator)
    state = prior + 0.05 * torch.randn(prior.shape, generator=generator)
    conditions = 2 * torch.rand(batch, CONDITIONS, generator=generator) - 1
    inputs = (state, prior, prior.roll(1, dims=1), conditions)
    twin = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        wanted = twin.correction(*inputs)
        clean = runtime(*(tensor.to(runtime.device) for tensor in inputs)).cpu()
        got = clean - SlabDenoiser.middle_slices(prior)
        # A network whose head is zero corrects nothing.
        return float((got - wanted).norm() / wanted.norm().clamp_min(1e-6))


def check_parity(runtime: Runtime, model: SlabDenoiser, batch: int, edge: int) -> None:
    """Check that a runtime computes what torch computes.

    Raises
    ------
    EngineError
        It does not.
    """
    error = parity_error(runtime, model, batch, min(edge, _PARITY_EDGE))
    if not error < PARITY_LIMIT:  # NaN has to fail
        raise EngineError(
            f"{runtime.name} differs from torch by {error:.1e}, more than {PARITY_LIMIT:.0e}: "
            "its engine is not used."
        )
    logger.info("%s differs from torch by %.1e (relative)", runtime.name, error)
