"""Non-linear least squares, one small problem per pixel column, solved for all of them at once.

The beam integrates along z only, so the pixels of a sweep are independent: M projections, R unknowns,

    chi(E) = mean_m (p_m - Σ_k A[m, k] softplus_β(start_k + Σ_r φ[k, r] E_r))² / σ_m²
    cost(E) = chi(E) + λ / M · |E|²

with one operator A and one axial basis φ for all. Three kinds of steps, the cheapest first:

- the closed form: softplus is inverted on the projections, and the remaining linear problem has one matrix
(R, M)
  for all pixels;
- a simplified Newton step: the same matrix on the residual;
- a Gauss-Newton step with Levenberg-Marquardt damping (Nocedal & Wright 2006, chapter 10), pixel by pixel in
the
  space of the projections: Woodbury's identity turns (JᵀWJ + ρ)⁻¹ into an M x M system.

A step is accepted only where it lowers the cost, so no pixel ever gets worse. Pixels are the last axis, P =
Y·X. Nothing here synchronises with the device but `active` on a CPU, where converged pixels are left alone;
on CUDA all take part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 20.0
"""β of the softplus: linear from about 0.1 of the projections' range upward."""
# λ of a field that starts dark, with values within the range of the projections, and of one that corrects a
# closed form, whose errors are some hundredths of that range.
_RIDGE_DARK = 10.0
_RIDGE_CORRECTION = 200.0
_DARKEST = 0.25  # of the noise's deviation: darker pixels of a projection are raised to it
_DAMPING = 0.1  # of the first Gauss-Newton step, in units of λ
_LIMITS = (1e-4, 1e4)  # of the damping, in units of λ
_CHUNK = {"cpu": 2048, "cuda": 1 << 16}  # pixels of a Gauss-Newton step at a time: matrices stay in cache


@dataclass(slots=True, eq=False)
class Fitted:
    """The state of the columns.

    Attributes
    ----------
    planes : (R, P)
        E.
    misfit : (M, P)
        Projections minus the field's prediction.
    chi, cost : (P,)
        Per pixel, see the module.
    field : (Z, P) or None
        Above the floor, where it was computed.
    """

    planes: Tensor
    misfit: Tensor
    chi: Tensor
    cost: Tensor
    field: Tensor | None = None

    def better(self, other: Fitted) -> Fitted:
        """Return the state with the lower cost, pixel by pixel."""
        take = other.cost < self.cost
        field = None
        if self.field is not None and other.field is not None:
            field = torch.where(take, other.field, self.field)
        return Fitted(
            torch.where(take, other.planes, self.planes),
            torch.where(take, other.misfit, self.misfit),
            torch.where(take, other.chi, self.chi),
            torch.where(take, other.cost, self.cost),
            field,
        )


class Columns:
    """The columns of one sweep.

    Parameters
    ----------
    operator : (M, Z)
    basis : (Z, R)
    above, variance : (M, P)
        Projections above the floor, and their noise variance.
    start : (Z, P), optional
        The positive field, above its floor, to be corrected; without it the field starts dark.
    """

    def __init__(
        self, operator: Tensor, basis: Tensor, above: Tensor, variance: Tensor, start: Tensor | None = None
    ) -> None:
        self._operator, self._basis = operator, basis
        self._above, self._weight, self._start = above, variance.reciprocal(), start
        self._start_before: Tensor | None = None
        self._ridge = _RIDGE_DARK if start is None else _RIDGE_CORRECTION
        self._noise = variance.mean(dim=1, keepdim=True).sqrt()
        linear = operator @ basis
        normal = linear @ linear.T
        normal.diagonal().add_(self._ridge * variance.mean())
        # The _ex forms skip the error check, which would wait for the device; the ridge excludes errors.
        self._inverse = linear.T @ torch.linalg.inv_ex(normal).inverse
        # Rows (m, r) of the Jacobian's factor: J = slopes @ this, (P, Z) @ (Z, M·R).
        self._products = (operator.T[:, :, None] * basis[:, None, :]).flatten(1)
        self._damping = torch.full_like(above[0], _DAMPING)

    def closed_form(self) -> Fitted:
        """Return the answer without a step: `start`, or a dark field's linear solution."""
        if self._start is not None:
            planes = self._above.new_zeros(self._basis.shape[1], self._above.shape[1])
            misfit = self._above - self._operator @ self._start
            chi = (misfit.square() * self._weight).mean(dim=0)
            return Fitted(planes, misfit, chi, chi.clone(), self._start)
        # Softplus and operator commute where a field hardly varies within a slab.
        positive = torch.maximum(self._above, _DARKEST * self._noise)
        return self.evaluate(self._inverse @ before_softplus(positive))

    def evaluate(self, planes: Tensor) -> Fitted:
        """Return the state with `planes` (R, P)."""
        return self._evaluate(planes, self._above, self._weight, self._before())

    def _before(self) -> Tensor | None:
        """Return the start before the softplus, computed when a step first needs it; often none does."""
        if self._start_before is None and self._start is not None:
            self._start_before = before_softplus(self._start)
        return self._start_before

    def simplified_newton_step(self, fitted: Fitted) -> Fitted:
        """Return the state after a step with the linear problem's matrix."""
        return fitted.better(self.evaluate(fitted.planes + self._inverse @ fitted.misfit))

    def active(self, fitted: Fitted, target: float) -> Tensor | None:
        """Return the pixels (N,) that still miss the target; None: all take part."""
        if fitted.chi.device.type != "cpu":
            return None
        return torch.nonzero(fitted.chi > target)[:, 0]

    def gauss_newton(self, fitted: Fitted, active: Tensor | None) -> Fitted:
        """Take a Gauss-Newton step of the active pixels, in place; return the state."""
        fitted.field = None
        pixels = fitted.chi.shape[0] if active is None else active.shape[0]
        size = _CHUNK.get(fitted.chi.device.type, 1 << 16)
        for begin in range(0, pixels, size):
            part = slice(begin, min(begin + size, pixels))
            self._newton(fitted, part if active is None else active[part])
        return fitted

    def _newton(self, fitted: Fitted, which: slice | Tensor) -> None:
        planes, misfit, weight = fitted.planes[:, which], fitted.misfit[:, which], self._weight[:, which]
        before_start = self._before()
        start = None if before_start is None else before_start[:, which]
        damping = self._damping[which]
        count = weight.shape[0]
        before = self._basis @ planes
        if start is not None:
            before += start
        slopes = torch.sigmoid(SHARPNESS * before)
        jacobian = (slopes.T @ self._products).unflatten(1, (count, -1))  # (N, M, R)
        ridge = self._ridge * (1 + damping)
        normal = jacobian @ jacobian.mT
        normal.diagonal(dim1=1, dim2=2).add_((ridge / weight).T)
        gradient = (jacobian.mT @ (weight * misfit).T[:, :, None])[:, :, 0] - self._ridge * planes.T
        solved = torch.cholesky_solve(jacobian @ gradient[:, :, None], torch.linalg.cholesky_ex(normal).L)
        change = (gradient - (jacobian.mT @ solved)[:, :, 0]) / ridge[:, None]
        tried = self._evaluate(planes + change.T, self._above[:, which], weight, start)
        take = tried.cost < fitted.cost[which]
        fitted.planes[:, which] = torch.where(take, tried.planes, planes)
        fitted.misfit[:, which] = torch.where(take, tried.misfit, misfit)
        fitted.chi[which] = torch.where(take, tried.chi, fitted.chi[which])
        fitted.cost[which] = torch.where(take, tried.cost, fitted.cost[which])
        self._damping[which] = torch.where(take, damping / 8, damping * 4).clamp(*_LIMITS)

    def _evaluate(self, planes: Tensor, above: Tensor, weight: Tensor, start: Tensor | None) -> Fitted:
        before = self._basis @ planes
        if start is not None:
            before += start
        field = F.softplus(before, beta=SHARPNESS)
        misfit = above - self._operator @ field
        chi = (misfit.square() * weight).mean(dim=0)
        cost = chi + self._ridge / above.shape[0] * planes.square().sum(dim=0)
        return Fitted(planes, misfit, chi, cost, field)


def before_softplus(field: Tensor) -> Tensor:
    """Return the inverse softplus of `field`, which has to be positive."""
    return field + torch.log(-torch.expm1(-SHARPNESS * field)) / SHARPNESS
