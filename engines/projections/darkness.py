"""Darkness: voxels whose slab was measured and found empty are set to the level of no light.

Light is never negative, so where a projection is dark, every voxel of its slab is dark: the strongest
statement that a projection can make about depth. A network or a fit leaves a haze of a fraction of the noise
in such places. A pixel counts as dark where neither it nor the mean over 3, 7 and 15 pixels around it stands
out from the noise, so that neither a faint point nor a faint haze is lost: less than a quarter of the noise
over 15 x 15 pixels is given up. Where the level of no light is not known (an undeclared pedestal), nothing
looks dark and nothing is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdiffusion.engines.projections.filters import local_max, window_sum

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALES = (1, 3, 7, 15)
# Standard deviations of the noise: below the first a pixel is dark, beyond the second it is not. Of the many
# pixels of an image, single ones reach 4 by chance, and the noise is estimated a little low.
_LIMITS = {1: (4.0, 5.0), 3: (3.5, 4.5), 7: (3.0, 4.0), 15: (3.0, 4.0)}
_WRONG_LEVEL = -3.0  # median over 15 x 15 pixels: so far below no light, the level is wrong


Supports = tuple[tuple[int, int, int], ...]
"""Slices that each slab saw: (slab, first slice, end), one entry for each run of neighbouring slices."""


def supports(operator: NDArray[np.float64]) -> Supports:
    """Return the slices that each slab of the operator (M, Z) saw."""
    seen = np.pad(operator > 1e-3 * operator.max(), ((0, 0), (1, 1)))
    slabs, edges = np.nonzero(seen[:, 1:] != seen[:, :-1])
    runs = zip(slabs[::2], edges[::2], edges[1::2], strict=True)
    return tuple((int(slab), int(first), int(end)) for slab, first, end in runs)


def slab_light(above: Tensor, variance: Tensor) -> Tensor:
    """Return the share of light (M, Y, X) that each pixel of a projection leaves its slab, 0 to 1.

    `above` (M, Y, X) are the projections above the level of no light, `variance` (M, Y, X) their noise
    variance. Does not synchronise with the host.
    """
    lit = torch.zeros_like(above)
    for scale in _SCALES:
        figure = _significance(above, variance, scale)
        low, high = _LIMITS[scale]
        lit = torch.maximum(lit, ((figure - low) / (high - low)).clamp(0.0, 1.0))
    # The median is far below the level of no light: that is wrong, and everything keeps its light.
    wrong = 2 * (figure < _WRONG_LEVEL).sum() >= figure.numel()
    # Whatever stands out lights up its surroundings: the beam's spot and the edges of faint structures.
    return torch.maximum(local_max(lit), wrong.to(lit.dtype))


def light_share(seen: Supports, slices: int, light: Tensor) -> Tensor:
    """Return the share (Z, ...) of light that each voxel keeps, from that of each slab (M, ...).

    A voxel is dark where any slab that saw it was; slices that no slab saw keep what they have. `seen` is
    from `supports`, `slices` the volume's Z. All light is 1 of floats, the greatest of whole numbers.
    """
    everything = 1.0 if light.is_floating_point() else torch.iinfo(light.dtype).max
    share = light.new_full((slices, *light.shape[1:]), everything)
    for slab, first, end in seen:
        torch.minimum(share[first:end], light[slab], out=share[first:end])
    return share


def _significance(above: Tensor, variance: Tensor, scale: int) -> Tensor:
    """Return the mean over `scale` x `scale` pixels in units of its standard deviation, (M, Y, X)."""
    if scale == 1:
        return above / variance.sqrt()
    size = min(scale, *(n - (n + 1) % 2 for n in above.shape[1:]))  # odd, and no larger than the image
    half = size // 2

    def total(stack: Tensor) -> Tensor:
        return window_sum(F.pad(stack[None], (half, half, half, half), mode="reflect")[0], size)

    # A sum of pixels and its standard deviation; the mean's quotient is the same.
    return total(above) / total(variance).sqrt().clamp_min(1e-12 * size)
