"""Self-test of the network on the same task one octave coarser, where the answer is known.

Neighbouring projections are averaged in pairs, as a beam of twice the length at twice the step would see
them. On a grid of slices twice as thick this is a sweep with nearly the same slab length and step in slices
as the real one, so the network faces the same task. But its answer can be checked against the projections
before they were averaged, over the whole volume and without an extra frame. The measure is the network's mean
squared error relative to the closed form's.

Valid as far as a specimen looks alike at both scales; it reliably finds a network that does worse than the
closed form on a structure it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from microdiffusion.engines.diffusion import NetworkInputs, SamplerSettings, SliceConditions, VolumeDenoiser
from microdiffusion.engines.projections import (
    DataConsistency,
    along_z,
    matched_smoothness,
    quieten,
    tensor_of,
    tikhonov_matrix,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microdiffusion.engines.diffusion import Runtime

_FEWEST = 4  # projections: two pairs


@dataclass(frozen=True, slots=True, eq=False)
class CoarseTest:
    """The coarse task of one sweep geometry.

    Attributes
    ----------
    coarse, fine : (P, Z // 2) and (2 P, Z // 2) float64
        Operators on the coarse grid: of the pairs, and of the projections themselves.
    conditions : SliceConditions
        Of the coarse task.
    """

    coarse: NDArray[np.float64]
    fine: NDArray[np.float64]
    conditions: SliceConditions

    @classmethod
    def of(
        cls, operator: NDArray[np.float64], centres: NDArray[np.float64], length: float
    ) -> CoarseTest | None:
        """Derive it from operator (M, Z), slab centres (M,), ascending, and slab length, in slices.

        Returns None where there are too few projections.
        """
        count, slices = len(operator) // 2 * 2, operator.shape[1] // 2
        if count < _FEWEST:
            return None
        thicken = np.repeat(np.eye(slices), 2, axis=0)
        thicken = np.vstack([thicken, np.repeat(thicken[-1:], operator.shape[1] - 2 * slices, axis=0)])
        fine = operator[:count] @ thicken
        coarse = 0.5 * (fine[0::2] + fine[1::2])
        middle = 0.5 * (centres[0:count:2] + centres[1:count:2])
        # A pair's support, in the new slices; the first one's centre is half an old slice deeper.
        reach = 0.5 * (length + float(np.median(np.diff(centres))))
        return cls(coarse, fine, SliceConditions.of(coarse, 0.5 * (middle - 0.5), reach))

    def __call__(
        self,
        runtime: Runtime,
        images: Tensor,
        variance: Tensor,
        floor: float,
        settings: SamplerSettings,
        deviation: Callable[[NDArray[np.float64], Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return the network's mean squared error relative to the closed form's, ().

        `images`, `variance` (M, Y, X) and `floor` are normalised; `deviation` tells how surely a sweep tells
        each voxel, from its operator, images and variance. Synchronises with the host at the beginning,
        for the closed form's smoothness and the deviation.
        """
        count = len(self.fine)
        fine_images = images[:count]
        pairs = 0.5 * (fine_images[0::2] + fine_images[1::2])
        noise = 0.25 * (variance[0:count:2] + variance[1:count:2])
        smoothness = matched_smoothness(self.coarse, pairs, noise)
        closed = along_z(
            tensor_of(tikhonov_matrix(self.coarse, smoothness), images.device), quieten(pairs, noise)
        )
        closed = closed.clamp_min(floor)
        denoise = VolumeDenoiser(runtime, self.conditions, settings)
        pull = DataConsistency(tensor_of(self.coarse, images.device))
        sure = deviation(self.coarse, pairs - floor, noise)
        raw = denoise(closed, NetworkInputs(closed, sure, pairs, noise.mean().sqrt()), 1.0)
        answer = pull(raw - floor, pairs - floor, noise) + floor
        fine = tensor_of(self.fine, images.device)

        def error(volume: Tensor) -> Tensor:
            return (along_z(fine, volume) - fine_images).square().mean()

        return error(answer) / error(closed).clamp_min(1e-12)
