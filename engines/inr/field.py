"""The implicit representation of a session: a field that is fitted to projections and kept between sweeps.

A tensorial field (a vector-matrix decomposition as in TensoRF, Chen et al. 2022):

    x(z, y, x) = floor + softplus_β( start(z, y, x) + Σ_r φ_r(z) · E_r(y, x) )

`φ` are the leading eigenfunctions of a Matérn kernel along z (Rasmussen & Williams 2006, section 4.2.1) whose
range is set by the *bandwidth along z* (cycles per slice), so a plain ridge on the planes `E` makes the field
before the softplus a Gaussian process with that kernel. The beam integrates along z only, so this kernel is
the prior that fills the operator's null space, and the softplus keeps the field above the background.
Softplus turns `start` into a closed-form answer: with it the field begins as good as that answer and departs
from it where non-negativity demands; without it the field begins dark.

The basis is fixed, so the planes are a small independent problem for each pixel (`solver.py`). A fit begins,
pixel by pixel, at the closed form or the last sweep's planes, whichever is nearer to the new projections. So
it is never worse than a cold one, whatever happened to the specimen. It stops by the discrepancy principle:
once the reprojection agrees with the projections to within their noise, more steps only fit noise. Not
thread-safe.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.inr.solver import Columns, Fitted

_DARKEST_START = 1e-3  # a start at zero would leave the softplus without a slope
_SIMPLIFIED_STEPS = 2  # steps with the linear problem's matrix before the Gauss-Newton steps
_STALLED = 0.98  # of the previous misfit: a Gauss-Newton step that gains less is the last
_LEFT_OUT = 0.02  # of the kernel's variance, by its lesser eigenfunctions
NOISE_SHARE = 0.5
"""Of the noise's power: at a misfit below it the steps fit noise."""


@dataclass(frozen=True, slots=True)
class InrFit:
    """The steps of a fit, and the reprojection's mean squared misfit in units of the noise."""

    steps: int
    chi_square: float


def default_bandwidth(length: float) -> float:
    """Return the bandwidth along z, cycles per slice, for slabs of `length` slices: 0.4 / length.

    A slab of length L does not pass 1 / L. Far above that the basis fills the operator's null space with
    inventions; overlapping slabs resolve more, but also let the noise through.
    """
    return min(0.45, 0.4 / max(length, 0.5))


@functools.lru_cache(maxsize=16)
def axial_basis(slices: int, bandwidth: float, rank: int | None = None) -> Tensor:
    """Return φ (Z, R) float32: φ φᵀ approximates a Matérn 3/2 kernel of unit variance.

    ``k(d) = (1 + κ d) exp(-κ d)`` with κ = 2π `bandwidth`: at `bandwidth` (cycles per slice) its spectrum has
    fallen to a quarter. R is `rank` at most; None: enough for 98 % of the variance, which grows with the
    depth. The tensor is shared: do not modify it.
    """
    place = torch.arange(slices, dtype=torch.float64)
    distance = 2 * np.pi * bandwidth * (place[:, None] - place).abs()
    values, vectors = torch.linalg.eigh((1 + distance) * torch.exp(-distance))
    values = values.clamp_min(0.0)
    if rank is None:
        left = values.cumsum(0) / values.sum()  # in ascending order
        rank = int((left > _LEFT_OUT).sum())
    basis: Tensor = (vectors * values.sqrt())[:, -rank:]
    return basis.float()


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


class SessionInr:
    """The field of one session; see `axial_basis` for bandwidth and rank.

    Attributes
    ----------
    planes : (R, Y, X) or None
        None until the first fit.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        bandwidth: float,
        rank: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shape = shape
        self.planes: Tensor | None = None
        self._basis = axial_basis(shape[0], bandwidth, rank).to(device or torch.device("cpu"))
        self._field: Tensor | None = None

    def volume(self, floor: float | Tensor) -> Tensor:
        """Return the last fit's field (Z, Y, X) above `floor`, a number or broadcast over pixels."""
        if self._field is None:
            raise RuntimeError("the field was not fitted yet")
        volume: Tensor = self._field.unflatten(1, self.shape[1:]) + floor
        return volume

    def release(self) -> None:
        """Drop the last fit's field: the next fit needs the planes only."""
        self._field = None

    @torch.no_grad()
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
        seconds: float = float("inf"),
    ) -> InrFit:
        """Fit to projections (M, Y, X) through the operator (M, Z).

        Takes at most `steps` steps, begun within `seconds`; fewer when the mean misfit is down to `target`
        (in units of the noise variance) or no longer falls. The field is a correction of `start` (Z, Y, X),
        in the units of the projections.
        """
        begun = time.perf_counter()
        above = (projections - floor).flatten(1)
        start_above = None if start is None else (start - floor).clamp_min(_DARKEST_START).flatten(1)
        columns = Columns(operator, self._basis, above, noise_variance.flatten(1), start_above)
        fitted = columns.closed_form()
        taken, last = 0, float("inf")
        misfit = float(fitted.chi.mean())
        if self.planes is not None and misfit > target:
            fitted = fitted.better(columns.evaluate(self.planes.flatten(1)))
            misfit = float(fitted.chi.mean())
        while misfit > target and taken < steps and time.perf_counter() - begun < seconds:
            for _ in range(self._unchecked(taken, steps)):
                if taken < _SIMPLIFIED_STEPS:
                    fitted = columns.simplified_newton_step(fitted)
                else:
                    fitted = columns.gauss_newton(fitted, columns.active(fitted, target))
                taken += 1
            last, misfit = misfit, float(fitted.chi.mean())
            if taken > _SIMPLIFIED_STEPS and misfit > _STALLED * last:
                break
        self._keep(columns, fitted)
        return InrFit(taken, misfit)

    def _unchecked(self, taken: int, steps: int) -> int:
        """Return the number of steps before the next look at the misfit, which waits for a GPU."""
        return 1 if self._basis.device.type == "cpu" else min(max(taken, _SIMPLIFIED_STEPS), steps - taken)

    def _keep(self, columns: Columns, fitted: Fitted) -> None:
        self.planes = fitted.planes.unflatten(1, self.shape[1:])
        field = fitted.field
        self._field = columns.evaluate(fitted.planes).field if field is None else field
