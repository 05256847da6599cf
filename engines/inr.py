"""The implicit neural representation of one session: fitted to projections, kept warm between sweeps.

A tensorial neural field (a vector-matrix decomposition as in TensoRF, Chen et al. 2022):

    x(z, y, x) = floor + softplus_β( start(z, y, x) + Σ_r φ_r(z) · E_r(y, x) )

`φ` is an MLP on Fourier features of z whose highest frequency is the *bandwidth along z* (cycles per
slice); `E` are learned planes, held below the *bandwidth across* (cycles per pixel) where one is set. The
beam integrates along z only, so the bandwidth along z is the prior that fills the operator's null space,
and the softplus keeps the field above the background. `start` is what softplus turns into a closed-form
answer, or nothing: with it the field begins as good as that answer and departs where non-negativity asks
for it; without it the field begins dark, which sparse specimens like. A step costs two small matrix
products per pixel instead of an MLP per voxel.

The fit stops by the discrepancy principle: when the reprojection agrees with the projections to within
their noise, more steps only fit noise. Not thread-safe: one session, one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdiffusion.engines.linear import along_z

_SHARPNESS = 20.0  # of the softplus: linear from about 0.1 of the projections' range upward
_DARKEST_START = 1e-3  # a start at zero would leave the softplus without a slope to climb
_FEATURES = 16
_HIDDEN = 64
_CHECK_EVERY = 2
_PATIENCE = 20  # checks without a lower misfit
NOISE_SHARE = 0.5
"""Of the noise's power: a misfit below it means that the steps fit noise."""
_SMOOTHNESS = 3e-3  # weight of the first difference along z: slices that no slab saw follow their neighbours


@dataclass(frozen=True, slots=True)
class InrFit:
    """How a fit went: steps taken, and the reprojection's mean squared misfit in units of the noise."""

    steps: int
    chi_square: float


def default_bandwidth(length: float, step: float) -> float:
    """Return the highest frequency along z, cycles per slice, that a sweep can tell: 0.4 / min(length, step).

    Slab length and step are in slices. A slab of length L does not pass 1 / L; a step s samples up to
    0.5 / s. Far above that the features fill the operator's null space with invention.
    """
    return min(0.45, 0.4 / max(min(length, step), 0.5))


def low_pass(images: Tensor, bandwidth: float) -> Tensor:
    """Return images (M, Y, X) below `bandwidth` (cycles per pixel), where a Gaussian's response is a half."""
    sigma = float(np.sqrt(np.log(2.0) / 2.0) / (np.pi * bandwidth))
    reach = max(1, round(3 * sigma))
    place = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (place / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(images[:, None], (reach, reach, reach, reach), mode="replicate")
    result: Tensor = F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])
    return result[:, 0]


class SessionInr(nn.Module):
    """The field of one session.

    Parameters
    ----------
    shape : (Z, Y, X)
    bandwidth : float
        Highest frequency along z, cycles per slice.
    bandwidth_xy : float, optional
        Highest frequency across, cycles per pixel; None: the camera's.
    rank : int
        Number of axial basis functions.
    seed : int
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        bandwidth: float,
        bandwidth_xy: float | None = None,
        rank: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        slices, rows, columns = shape
        self.bandwidth_xy = bandwidth_xy
        generator = torch.Generator().manual_seed(seed)
        self.planes = nn.Parameter(torch.zeros(rank, rows, columns))
        self.axial = nn.Sequential(
            nn.Linear(2 * _FEATURES, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, rank),
        )
        for layer in self.axial:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                with torch.no_grad():
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)
        phase = 2 * np.pi * torch.arange(slices)[:, None] * torch.linspace(0.0, bandwidth, _FEATURES)
        self.features: Tensor
        self.register_buffer("features", torch.cat([phase.sin(), phase.cos()], dim=1))
        self._start: Tensor | None = None

    def forward(self) -> Tensor:
        """Return the field at every slice (Z, Y, X), above its floor."""
        return self._field(self.axial(self.features), self._planes())

    @torch.no_grad()
    def volume(self, floor: float | Tensor) -> Tensor:
        """Return the field (Z, Y, X) with `floor` (a number, or broadcast over pixels) added."""
        result: Tensor = self() + floor
        return result

    def fit(
        self,
        operator: Tensor,
        projections: Tensor,
        noise_variance: Tensor,
        *,
        floor: float | Tensor,
        steps: int,
        target: float = NOISE_SHARE,
        start: Tensor | None = None,
        smoothness: float = _SMOOTHNESS,
    ) -> InrFit:
        """Fit to projections (M, Y, X) through the operator (M, Z), from the present weights.

        Adam on the noise-weighted squared misfit plus `smoothness` times the squared first differences
        along z, at most `steps` steps; fewer when the mean misfit is down to `target` (in units of the
        noise's variance) or no longer falls. `start` (Z, Y, X), in the units of the projections, is what
        the field is a correction of, from now on and until another fit; its own learned part stays.
        """
        # New with every sweep: moments that point where the last sweep's misfit fell cost a warm field more
        # steps than they save.
        optimiser = torch.optim.Adam(
            [{"params": [self.planes], "lr": 2e-2}, {"params": self.axial.parameters(), "lr": 2e-3}],
            betas=(0.9, 0.95),
        )
        self._start = None if start is None else _before_softplus(start - floor)
        above = projections - floor
        weight = 1.0 / noise_variance
        # Adam does not see the scale, but its epsilon does: bring the loss to the order of one.
        scale = float(noise_variance.mean())
        smoothness = smoothness / scale / len(projections) / projections[0].numel()
        taken, misfit, best, since = 0, float("inf"), float("inf"), 0
        with torch.enable_grad():
            for taken in range(steps + 1):
                # The operator is linear and rows sum to one, so the floor need not be projected.
                basis, planes = self.axial(self.features), self._planes()
                field = self._field(basis, planes)
                loss = ((along_z(operator, field) - above).square() * weight).mean()
                if taken % _CHECK_EVERY == 0 or taken == steps:
                    misfit = float(loss.detach())
                    # Adam overshoots on its way; only a misfit that stays where it is has converged.
                    best, since = (misfit, 0) if misfit < 0.99 * best else (best, since + 1)
                    if misfit <= target or taken == steps or since == _PATIENCE:
                        break
                optimiser.zero_grad(set_to_none=True)
                if self._start is None:
                    # |D φ E|² by way of the small matrix (Dφ)ᵀ(Dφ): the volume need not be differenced.
                    slope = basis.diff(dim=0)
                    rough = (planes * along_z(slope.T @ slope, planes)).sum()
                else:
                    rough = field.diff(dim=0).square().sum()
                ((loss + smoothness * rough) * scale).backward()
                optimiser.step()
        return InrFit(taken, misfit)

    def _planes(self) -> Tensor:
        return self.planes if self.bandwidth_xy is None else low_pass(self.planes, self.bandwidth_xy)

    def _field(self, basis: Tensor, planes: Tensor) -> Tensor:
        before = along_z(basis, planes)
        return F.softplus(before if self._start is None else before + self._start, beta=_SHARPNESS)


def _before_softplus(field: Tensor) -> Tensor:
    """Return what the softplus turns into `field`, which has to be positive and is made so."""
    field = field.clamp_min(_DARKEST_START)
    return field + torch.log(-torch.expm1(-_SHARPNESS * field)) / _SHARPNESS
