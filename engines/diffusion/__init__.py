"""The denoising network and the few-step sampler that it drives."""

from microdiffusion.engines.diffusion.conditioning import SliceConditions
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
from microdiffusion.engines.diffusion.sampler import SamplerSettings, bridge_noise, sample
from microdiffusion.engines.diffusion.tiling import (
    BATCH_PIXELS,
    HALO,
    NetworkInputs,
    VolumeDenoiser,
    window_indices,
)

__all__ = [
    "BATCH_PIXELS",
    "CONDITIONS",
    "HALO",
    "SLICES",
    "WINDOW",
    "DenoiserShape",
    "NetworkInputs",
    "Runtime",
    "SamplerSettings",
    "SlabDenoiser",
    "SliceConditions",
    "VolumeDenoiser",
    "_Block",
    "bridge_noise",
    "load_denoiser",
    "sample",
    "save_denoiser",
    "window_indices",
]
