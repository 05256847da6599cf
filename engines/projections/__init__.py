"""Closed forms on projections: linear and Tikhonov estimates, noise, merging, data consistency."""

from microdiffusion.engines.projections.closed_form import (
    along_z,
    interpolation_matrix,
    matched_smoothness,
    nearest_slab,
    tensor_of,
    tikhonov_matrix,
)
from microdiffusion.engines.projections.consistency import DataConsistency
from microdiffusion.engines.projections.darkness import Supports, light_share, slab_light, supports
from microdiffusion.engines.projections.filters import local_mean, window_sum
from microdiffusion.engines.projections.noise import estimate_sigma, noise_variance, quieten, white_share

__all__ = [
    "DataConsistency",
    "Supports",
    "along_z",
    "estimate_sigma",
    "interpolation_matrix",
    "light_share",
    "local_mean",
    "matched_smoothness",
    "nearest_slab",
    "noise_variance",
    "quieten",
    "slab_light",
    "supports",
    "tensor_of",
    "tikhonov_matrix",
    "white_share",
    "window_sum",
]
