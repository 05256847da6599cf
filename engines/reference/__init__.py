"""The reference method, MicroDiffusion (Hui et al., CVPR 2024), reimplemented.

Trained from scratch for every volume, from that volume's projections alone: an MLP that represents the volume
(`mlp_inr`), and a diffusion model (`unet`, `condition`, `ddpm`) that is pulled to it at every step. `method`
puts them together. Nothing here is live; it is the yardstick.
"""

from microdiffusion.engines.reference.condition import POSITION, PROJECTION
from microdiffusion.engines.reference.ddpm import steps_needed
from microdiffusion.engines.reference.method import ReferenceMethod, padded_edge
from microdiffusion.engines.reference.mlp_inr import FourierMlp, fit_field
from microdiffusion.engines.reference.unet import UNet

__all__ = [
    "POSITION",
    "PROJECTION",
    "FourierMlp",
    "ReferenceMethod",
    "UNet",
    "fit_field",
    "padded_edge",
    "steps_needed",
]
