"""How bright the preview is drawn: the window of counts and the bend between them. Pure functions.

A preview is of 8 bits and says which counts its black and white stand for (`Preview.low`, `high`), so another
window is a matter of arithmetic, at the price of steps where it is much narrower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from microdiffusion.daemon.status import GAMMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.daemon.status import Images, Preview

Contrast = Literal["auto", "held", "percentile"]
CONTRASTS: tuple[Contrast, ...] = ("auto", "held", "percentile")

STEP = 1.25
MOST_STEPS = 6
PERCENTILES = (60.0, 99.9)


def windowed(
    preview: Preview, images: Images, contrast: Contrast, gamma_step: int, held: tuple[float, float] | None
) -> Images:
    """Return images of a preview as they are to be drawn.

    Parameters
    ----------
    contrast
        auto: each volume's own window; held: the window `held`, so that brightness can be compared over time;
        percentile: from the 60th percentile of the images on, which takes away haze.
    gamma_step
        Above 0 lifts what is dim, below 0 presses it down.
    held : (low, high)
        Counts.
    """
    if contrast == "auto" and not gamma_step:
        return images
    span = max(preview.high - preview.low, 1e-6)
    low, high = preview.low, preview.high
    if contrast == "held" and held is not None:
        low, high = held
    elif contrast == "percentile":
        values = np.concatenate([image.ravel() for image in images])
        low, high = (
            preview.low + span * (float(value) / 255.0) ** (1.0 / GAMMA)
            for value in np.percentile(values, PERCENTILES)
        )
    # 256 possible values: a table, not a picture's worth of powers.
    counts = preview.low + span * (np.arange(256) / 255.0) ** (1.0 / GAMMA)
    share = np.clip((counts - low) / max(high - low, 1e-6), 0.0, 1.0)
    table: NDArray[np.uint8] = (255.0 * share ** (GAMMA / STEP**gamma_step) + 0.5).astype(np.uint8)
    xy, xz, yz = images
    return table[xy], table[xz], table[yz]
