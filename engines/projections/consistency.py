"""Data consistency: the pull of a volume towards the measured projections.

Pure functions of tensors, any device. Volumes and projections are (Z, Y, X) and (M, Y, X).
"""

from __future__ import annotations

import torch
from torch import Tensor

from microdiffusion.engines.projections.closed_form import along_z
from microdiffusion.engines.projections.filters import local_mean


def noise_shrinkage(misfit: Tensor, noise_variance: Tensor) -> Tensor:
    """Return the share (M, Y, X) of the misfit `p - A x` that is signal rather than noise.

    The local Wiener (James-Stein) factor ``max(0, 1 - σ² / <misfit²>)`` over 7x7 pixels: near 1 where
    the volume disagrees with a bright structure, near 0 where the misfit is as large as the noise.
    """
    power = local_mean(misfit.square(), 7)
    return (1.0 - local_mean(noise_variance, 7) / power.clamp_min(1e-12)).clamp_(0.0, 1.0)


class DataConsistency:
    """Pulls a volume towards the projections, as far as their noise allows, and keeps it non-negative.

    One multiplicative (MLEM) step towards ``A x + g (p - A x)`` with `g` from `noise_shrinkage`. Where
    windows do not overlap and noise is small, this is the exact rescaling ``x *= p / A x``; where they
    overlap it is the usual damped iteration; it is never exact to the noise. `operator` (M, Z) float32 is the
    axial projection.
    """

    def __init__(self, operator: Tensor) -> None:
        self.operator = operator
        light = operator.sum(dim=0)[:, None]
        seen = light > 1e-3
        # Slices that no slab saw keep what they have.
        self._back = torch.where(seen, operator.T / light.clamp_min(1e-3), 0.0)
        self._unseen = (~seen).to(operator.dtype)

    def __call__(
        self, volume: Tensor, projections: Tensor, noise_variance: Tensor, *, passes: int = 1
    ) -> Tensor:
        """Return the corrected volume (Z, Y, X) ≥ 0 of `projections` (M, Y, X) with their noise variance.

        All in the normalised units of the engine, background at zero.
        """
        volume = volume.clamp_min(0.0)
        # The ratio's floor: where both are near zero their quotient is noise, so it is pulled to 1.
        floor = noise_variance.mean().sqrt() * 0.5 + 1e-3
        for _ in range(passes):
            predicted = along_z(self.operator, volume)
            misfit = projections - predicted
            target = (predicted + noise_shrinkage(misfit, noise_variance) * misfit).clamp_min(0.0)
            ratio = torch.addmm(self._unseen, self._back, ((target + floor) / (predicted + floor)).flatten(1))
            volume = ratio.view_as(volume).mul_(volume)
        return volume
