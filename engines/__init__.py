"""How projections become a volume: operator, INR, denoiser, sampler, reconstructor."""

import os

# torch's OpenMP threads spin while they wait for each other. Beside an acquisition and a recorder that
# also want a core, spinning made a reconstruction 6 to 15 times slower on 2 cores; sleeping costs next to
# nothing. OpenMP reads this when torch is imported, so it has to stand here, before any module below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
