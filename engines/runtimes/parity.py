"""The parity check: a runtime computes what torch computes in float32, or it does not serve.

Seeded inputs, the reference on the CPU. Half precision is compared on the correction: the prior, which every
runtime adds back, would hide an error of half of it. Bfloat16 has eight bits for a correction that is itself
small; it is held to the slices that are served, and loosely to the correction, so that a wrong graph shows.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch

from microdiffusion.engines.diffusion import CONDITIONS, WINDOW, Denoiser, Runtime, middle_slices
from microdiffusion.errors import EngineError

logger = logging.getLogger("microdiffusion.engines")

# Half precision costs some 1e-3; a miscompiled graph is off by far more.
PARITY_LIMIT = 1e-2
_COARSE_LIMIT = 0.05  # of the correction in bfloat16
_PARITY_EDGE = 512  # pixels; the comparison runs on the CPU


@dataclass(frozen=True, slots=True)
class Parity:
    """Difference of a runtime from torch in float32, relative (L2 norm): in the correction, in the slices."""

    correction: float
    slices: float


def parity_error(runtime: Runtime, model: Denoiser, batch: int, edge: int) -> Parity:
    """Return how far a runtime is from torch in float32 on the CPU; the model is left as it is."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(batch, WINDOW, edge, edge, generator=generator)
    state = prior + 0.05 * torch.randn(prior.shape, generator=generator)
    deviation = 10 ** (2 * torch.rand(prior.shape, generator=generator) - 3)
    conditions = 2 * torch.rand(batch, CONDITIONS, generator=generator) - 1
    inputs = (state, prior, deviation, prior.roll(1, dims=1), conditions)
    twin = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        wanted = twin.correction(*inputs)
        clean = runtime(*(tensor.to(runtime.device) for tensor in inputs)).cpu()
    middle = middle_slices(prior)
    difference = (clean - middle - wanted).norm()
    # A network whose head is zero corrects nothing.
    whole = (middle + wanted).norm().clamp_min(1e-6)
    return Parity(float(difference / wanted.norm().clamp_min(1e-6)), float(difference / whole))


def check_parity(runtime: Runtime, model: Denoiser, batch: int, edge: int, *, coarse: bool = False) -> Parity:
    """Check that a runtime computes what torch computes; return how far it is from it.

    With `coarse` (bfloat16) the slices, not the correction, are held to `PARITY_LIMIT`.

    Raises
    ------
    EngineError
        It computes something else.
    """
    found = parity_error(runtime, model, batch, min(edge, _PARITY_EDGE))
    error = found.slices if coarse else found.correction
    if not (error < PARITY_LIMIT and found.correction < _COARSE_LIMIT):  # NaN has to fail
        raise EngineError(
            f"{runtime.name} differs from torch by {found.correction:.1e} in the correction and by "
            f"{found.slices:.1e} in the slices, more than {PARITY_LIMIT:.0e}: it is not used."
        )
    logger.info("%s differs from torch by %.1e (relative, correction)", runtime.name, found.correction)
    return found
