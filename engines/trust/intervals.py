"""Conformal intervals of a session: what its held-out projections say of the uncertainty.

A held-out projection is scored pixel by pixel: |A v - p| over the deviation that noise and uncertainty make.
The 90 % quantile of the scores so far is the factor by which deviations have to be multiplied for an interval
that holds 90 % of the pixels of the next held-out projection, whatever the distribution of the errors, as far
as that projection is like the earlier ones (split conformal prediction: Vovk et al. 2005; Lei et al. 2018).
The coverage is then measured on it, before it counts. It holds for projections: of a voxel's error along z,
a projection sees the part that does not cancel within a slab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from microdiffusion.engines.projections import along_z

COVERAGE = 0.9
"""Share of the pixels that an interval is to hold."""
_KEPT = 8  # held-out projections
_LEVELS = 50  # quantiles that are kept of each

Scores = tuple[tuple[float, ...], ...]
"""Quantiles of the scores of each of the latest held-out projections, ascending."""


def scored(
    volume: Tensor, deviation: Tensor, operator: Tensor, held: Tensor, variance: Tensor
) -> tuple[float, ...]:
    """Return the quantiles of the scores of held-out projections (H, Y, X); `operator` (H, Z)."""
    spread = (along_z(operator, deviation.square()) + variance).sqrt()
    scores = ((along_z(operator, volume) - held).abs() / spread).flatten()
    some = scores[:: max(1, scores.numel() // 100_000)]
    places = (torch.arange(_LEVELS, device=some.device, dtype=some.dtype) + 0.5) / _LEVELS
    found: list[float] = torch.quantile(some, places).tolist()
    return tuple(found)


def factor(known: Scores) -> float:
    """Return the factor of an interval that holds `COVERAGE`; NaN where nothing was held out yet."""
    every = sorted(score for scores in known for score in scores)
    if not every:
        return math.nan
    # Of a finite number of projections, one more than there are: the quantile errs on the safe side.
    place = min(len(every) - 1, math.ceil(COVERAGE * (len(every) + 1)) - 1)
    return every[place]


def coverage(scores: Sequence[float], width: float) -> float:
    """Return the share of a projection's pixels within an interval of this factor; NaN without one."""
    if math.isnan(width):
        return math.nan
    return sum(score <= width for score in scores) / len(scores)


def remembered(known: Scores, scores: tuple[float, ...]) -> Scores:
    """Return the scores of the latest held-out projections."""
    return (*known, scores)[-_KEPT:]
