"""The denoiser's numeric conditions, the same for training and reconstruction.

They are the phase of each slice between its slabs (E_pos), its coverage by light, slab length, step, noise,
and the bridge's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microdiffusion.engines.diffusion.denoiser import CONDITIONS, WINDOW
from microdiffusion.engines.projections import nearest_slab

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOISE = 3 * WINDOW + 2  # index among the conditions
_AFTER_STEP = 5  # conditions from the step on, which ends with a window's scalars
_EVEN = 1e-3  # of a step: gaps that differ by less are alike


@dataclass(frozen=True, slots=True, eq=False)
class SliceConditions:
    """The conditions that depend on the sweep's geometry alone.

    Attributes
    ----------
    per_slice : (Z, 3) float32 tensor
        Sine and cosine of the phase between slab centres, and coverage by light (1: seen by one slab).
    nearest : (Z,) int64 tensor
        Index of the projection whose slab centre lies closest.
    length, step : float
        Slab length and median distance of slabs, slices.
    spacing : (Z,) float32 tensor or None
        Distance of the two slabs that each slice lies between, slices; None where all are `step`.
    """

    per_slice: Tensor
    nearest: Tensor
    length: float
    step: float
    spacing: Tensor | None = None

    @classmethod
    def of(
        cls, operator: NDArray[np.float64], centres: NDArray[np.float64], length: float
    ) -> SliceConditions:
        """Derive them from the operator (M, Z), the slab centres (M,) and slab length in slices."""
        slices = operator.shape[1]
        depths = np.unique(centres)  # two frames at one depth are no step
        step = float(np.median(np.diff(depths))) if depths.size > 1 else length
        nearest = nearest_slab(centres, slices)
        gaps = np.diff(depths)
        spacing = np.full(slices, step)
        uneven = gaps.size > 1 and float(np.ptp(gaps)) > _EVEN * step
        if uneven:  # the phase is one between two neighbours, however far apart those are
            spacing = gaps[(np.searchsorted(depths, np.arange(slices)) - 1).clip(0, gaps.size - 1)]
        phase = 2 * np.pi * (np.arange(slices) - centres[nearest]) / spacing
        coverage = np.clip(operator.sum(axis=0) * length, 0.0, 4.0)
        numbers = np.stack([np.sin(phase), np.cos(phase), coverage], axis=1).astype(np.float32)
        return cls(
            torch.from_numpy(numbers),
            torch.from_numpy(nearest.astype(np.int64)),
            length,
            step,
            torch.from_numpy(spacing.astype(np.float32)) if uneven else None,
        )

    def table(self, windows: Tensor, *, time: float, kappa: float, image: bool) -> Tensor:
        """Return (B, CONDITIONS) for windows (B, WINDOW) of slice numbers, on the CPU.

        `time` and `kappa` are the bridge's time and noise, `image` whether the image condition is on. The
        projections' noise, known for each sweep only, is added by `with_noise`.
        """
        count = windows.shape[0]
        scalars = torch.tensor(
            [np.log(self.length / 6), np.log(self.step / 6), 0.0, time, kappa * 10, image],
            dtype=torch.float32,
        )
        result = torch.cat([self.per_slice[windows].reshape(count, -1), scalars.expand(count, -1)], dim=1)
        if self.spacing is not None:
            result[:, -_AFTER_STEP] = (self.spacing[windows] / 6).log().mean(1)
        if result.shape[1] != CONDITIONS:
            raise ValueError(f"expected {CONDITIONS} conditions, made {result.shape[1]}")
        return result

    def vector(self, windows: Tensor, *, noise: float, time: float, kappa: float, image: bool) -> Tensor:
        """Return (B, CONDITIONS) as `table` does, with the projections' noise (rms, normalised)."""
        return with_noise(self.table(windows, time=time, kappa=kappa, image=image), torch.tensor(noise))


def with_noise(table: Tensor, noise: Tensor) -> Tensor:
    """Return conditions (B, CONDITIONS) with the noise (), rms, normalised; on any device."""
    result = table.clone()
    result[:, _NOISE] = noise.clamp_min(1e-4).log10() + 2
    return result
