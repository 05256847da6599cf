"""The reference method, MicroDiffusion (Hui et al., CVPR 2024), in code of our own.

Trained anew for every volume, from that volume's own projections: an MLP that represents the volume
(`mlp_inr`), and a diffusion model (`unet`, `condition`, `ddpm`) that is pulled to it at every step. `method`
puts them together. Nothing here is live; it is the yardstick.
"""
