"""How projections become a volume: operator, INR, denoiser, sampler, reconstructor."""
