"""How far a measured profile may be from the true one: it is measured again with parts left out.

A delete-a-group jackknife (Shao & Tu, *The Jackknife and Bootstrap*, 1995, section 2.3), once over the beads
and once over the images: beads differ among themselves, and what is wrong with an image (where the stage
really was, how bright the laser) is wrong for all beads at once. Each time everything is aligned anew. The
photons' noise is in both, so the intervals are rather too wide than too narrow. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from microdiffusion.daemon.calibration.align import Aligned, align

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUPS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """The profile (K,) again, on the same knots, without one group of beads, and of images, after another.

    Attributes
    ----------
    without_beads, without_images : (G, K) float64
        Fewer than two say nothing, and one of them has two at least.
    """

    without_beads: NDArray[np.float64]
    without_images: NDArray[np.float64]

    def half_width(
        self, figures: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Return by how much figures (F,) of a profile (K,) may be off, 95 %."""
        parts = []
        for profiles in (self.without_beads, self.without_images):
            if len(profiles) > 1:
                found = np.stack([figures(profile) for profile in profiles])
                parts.append(((len(found) - 1) * found.var(axis=0), len(found) - 1))
        variance = np.sum([own for own, _ in parts], axis=0)
        # Welch and Satterthwaite: how well a sum of variances is known that are known to their own degrees.
        uncertain = np.sum([own**2 / degrees for own, degrees in parts], axis=0)
        degrees = np.maximum(variance**2 / np.maximum(uncertain, 1e-300), 1.0)
        return np.asarray(stats.t.ppf(0.975, degrees) * np.sqrt(variance))


def spread_of(
    aligned: Aligned, traces: NDArray[np.float64], noise: NDArray[np.float64], z_um: NDArray[np.float64]
) -> Spread | None:
    """Return how the profile of these traces (N, Z) changes without parts; None: it needs them all."""
    traces, noise = traces[aligned.used], noise[aligned.used]
    beads, images = np.arange(len(traces)), np.arange(len(z_um))
    without = (
        _without(aligned, beads, lambda kept: align(traces[kept], noise[kept], z_um)),
        _without(aligned, images, lambda kept: align(traces[:, kept], noise, z_um[kept])),
    )
    return Spread(*without) if max(map(len, without)) > 1 else None


def _without(
    aligned: Aligned, numbers: NDArray[np.int64], again: Callable[[NDArray[np.bool_]], Aligned | None]
) -> NDArray[np.float64]:
    groups = min(GROUPS, len(numbers))
    found = [again(numbers % groups != group) for group in range(groups)] if groups > 1 else []
    profiles = [one.curve.at(aligned.curve.u_um) for one in found if one is not None]
    return np.stack(profiles) if profiles else np.zeros((0, len(aligned.curve.u_um)))
