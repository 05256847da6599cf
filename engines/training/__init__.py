"""Training of the denoiser: data, phantoms, loop."""
