"""The denoising network and the few-step sampler that it drives."""

from microdiffusion.engines.diffusion.conditioning import SliceConditions, window_indices
from microdiffusion.engines.diffusion.denoiser import (
    CONDITIONS,
    SLICES,
    WINDOW,
    DenoiserShape,
    SlabDenoiser,
    _Block,
    load_denoiser,
    save_denoiser,
)
from microdiffusion.engines.diffusion.runtime import Runtime
from microdiffusion.engines.diffusion.sampler import (
    BATCH_PIXELS,
    HALO,
    Denoise,
    SamplerSettings,
    Shown,
    bridge_noise,
    sample,
)

__all__ = [
    "BATCH_PIXELS",
    "CONDITIONS",
    "HALO",
    "SLICES",
    "WINDOW",
    "Denoise",
    "DenoiserShape",
    "Runtime",
    "SamplerSettings",
    "Shown",
    "SlabDenoiser",
    "SliceConditions",
    "_Block",
    "bridge_noise",
    "load_denoiser",
    "sample",
    "save_denoiser",
    "window_indices",
]
