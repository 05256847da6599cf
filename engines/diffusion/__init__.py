"""The denoising network and the few-step sampler around it."""

from microdiffusion.engines.diffusion.belonging import Belonging
from microdiffusion.engines.diffusion.conditioning import SliceConditions
from microdiffusion.engines.diffusion.denoiser import (
    CONDITIONS,
    SLICES,
    WINDOW,
    Correction,
    Denoiser,
    SlabUNet,
    middle_slices,
    register_denoiser,
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
from microdiffusion.engines.diffusion.weights import (
    load_denoiser,
    save_denoiser,
    shipped_weights,
    weights_notes,
    weights_path,
)

__all__ = [
    "BATCH_PIXELS",
    "CONDITIONS",
    "HALO",
    "SLICES",
    "WINDOW",
    "Belonging",
    "Correction",
    "Denoiser",
    "NetworkInputs",
    "Runtime",
    "SamplerSettings",
    "SlabUNet",
    "SliceConditions",
    "VolumeDenoiser",
    "bridge_noise",
    "load_denoiser",
    "middle_slices",
    "register_denoiser",
    "sample",
    "save_denoiser",
    "shipped_weights",
    "weights_notes",
    "weights_path",
    "window_indices",
]
