"""Where there is no light: voxels whose slab was measured and found empty are set to the level of no light.

Light is never negative, so a projection that is dark somewhere says that every voxel of its slab is dark
there: the strongest statement that a projection can make about depth. A network or a fit leaves a haze of a
fraction of the noise in such places. A place counts as dark where neither the pixel nor the mean over 3, 7
and 15 pixels around it stands out from the noise, so that neither a faint point nor a faint haze is lost:
what is given up is less than a quarter of the noise over 15 x 15 pixels. Where the level of no light is not
known (an undeclared pedestal), nothing looks dark and nothing is done.

Pure functions of tensors, any device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SCALES = (1, 3, 7, 15)
# Standard deviations of the noise: below the first a place is dark, beyond the second it is not. Of the
# many pixels of an image, single ones reach 4 by chance, and the noise is estimated a little low.
_LIMITS = {1: (4.0, 5.0), 3: (3.5, 4.5), 7: (3.0, 4.0), 15: (3.0, 4.0)}
_WRONG_LEVEL = -3.0  # median over 15 x 15 pixels: so far below no light, the level is wrong


def light_share(operator: Tensor, above: Tensor, variance: Tensor) -> Tensor | None:
    """Return the share (Z, Y, X) of light to keep, 0 to 1; None where nothing is dark.

    Parameters
    ----------
    operator : (M, Z)
    above : (M, Y, X)
        Projections above the level of no light.
    variance : (M, Y, X)
        Their noise variance.
    """
    lit = torch.zeros_like(above)
    for scale in _SCALES:
        figure = _significance(above, variance, scale)
        if scale == _SCALES[-1] and float(figure.median()) < _WRONG_LEVEL:
            return None
        low, high = _LIMITS[scale]
        lit = torch.maximum(lit, ((figure - low) / (high - low)).clamp(0.0, 1.0))
    if float(lit.min()) >= 1.0:
        return None
    # What stands out lights up its surroundings: the beam's spot and the edges of faint structures.
    lit = F.max_pool2d(lit[None], 3, stride=1, padding=1)[0]
    seen = operator > 1e-3 * operator.max()
    # A voxel is dark where any slab that saw it was; slices that no slab saw keep what they have.
    share = torch.ones(operator.shape[1], *above.shape[1:], device=above.device, dtype=above.dtype)
    for number in range(len(above)):
        slices = seen[number]
        share[slices] = torch.minimum(share[slices], lit[number])
    return share


def _significance(above: Tensor, variance: Tensor, scale: int) -> Tensor:
    """Return the mean over `scale` x `scale` pixels in units of its own standard deviation (M, Y, X)."""
    if scale == 1:
        return above / variance.sqrt()
    size = min(scale, *(n - (n + 1) % 2 for n in above.shape[1:]))  # odd, and no larger than the image
    half = size // 2
    stack = F.pad(torch.stack([above, variance]), (half, half, half, half), mode="reflect")
    mean, noise = F.avg_pool2d(stack, size, stride=1).unbind(0)
    return mean / (noise / size**2).sqrt().clamp_min(1e-12)
