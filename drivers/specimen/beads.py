"""Virtual targets for measuring a beam: sub-slab beads in a gel, or a thin fluorescent layer.

`expected` is that of `specimen.Specimen`, so they can replace it in front of the demo's camera. A bead at
depth z0 is as bright as the beam is there: at stage position z it shows ``A w(z0 - z)``, as in the projection
operator. Nothing drifts; everything bleaches as configured. Immutable after `__init__`: any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.drivers.specimen.specimen import Specimen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.config import SpecimenConfig
    from microdiffusion.frames import StagePosition
    from microdiffusion.header import RunHeader
    from microdiffusion.optics import AxialProfile

PIXELS_PER_BEAD = 500
"""Pixels of the image for each bead."""
SPOT_PX = 1.4
"""Standard deviation of a bead's image, pixels."""
BACKGROUND = 0.05
"""Background light, as a share of `photons`."""


class CalibrationSpecimen:
    """Beads throughout the volume, or a layer in its middle that is dimmer at one end.

    Parameters
    ----------
    config : SpecimenConfig
        `kind`, `seed`, `photons` (of a bead's brightest pixel, or of the layer) and `bleaching_per_min`.
    shape : (Z, Y, X)
    voxel_z_um, z0_um : float
        µm.
    """

    def __init__(
        self, config: SpecimenConfig, *, shape: tuple[int, int, int], voxel_z_um: float, z0_um: float
    ) -> None:
        self._config = config
        slices, height, width = shape
        low, depth = z0_um - 0.5 * voxel_z_um, slices * voxel_z_um
        if config.kind == "layer":
            self._depth_um, self._glow = np.array([low + 0.5 * depth]), np.array([config.photons])
            self._rows, self._columns = np.linspace(0.8, 1.0, height)[None], np.ones((1, width))
            return
        rng = np.random.default_rng([config.seed, 110])
        count = max(height * width // PIXELS_PER_BEAD, 6)
        self._depth_um = low + rng.uniform(0.0, 1.0, count) * depth
        place = rng.uniform(0.0, 1.0, (count, 2)) * np.array([height, width])
        self._glow = config.photons * np.exp(0.25 * rng.standard_normal(count))
        self._rows, self._columns = (
            np.exp(-0.5 * ((np.arange(length)[None] - place[:, axis, None]) / SPOT_PX) ** 2)
            for axis, length in enumerate((height, width))
        )

    def expected(self, stage: StagePosition, profile: AxialProfile, time_s: float) -> NDArray[np.float32]:
        """Return the image at a stage position without noise: (Y, X) float32, photons."""
        kept = (1.0 - self._config.bleaching_per_min) ** (time_s / 60.0)
        glow = self._glow * _lit(profile, self._depth_um - stage.z_um)
        image = (self._rows * glow[:, None]).T @ self._columns + BACKGROUND * self._config.photons
        return np.asarray(image * kept, np.float32)


def specimen_of_run(
    config: SpecimenConfig, header: RunHeader, *, position: int = 0
) -> Specimen | CalibrationSpecimen:
    """Return the specimen that the run of this header sees at a position; each position has its own."""
    config = config.model_copy(update={"seed": config.seed + position})
    if config.kind == "tissue":
        return Specimen(
            config,
            shape=header.shape,
            voxel_size_um=header.voxel_size_um,
            z0_um=header.z0_um,
            slab_um=header.profile.length_um,
        )
    return CalibrationSpecimen(
        config, shape=header.shape, voxel_z_um=header.voxel_size_um[0], z0_um=header.z0_um
    )


def _lit(profile: AxialProfile, offset_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the beam's intensity at offsets from its middle, relative to its brightest."""
    half = 0.05 * min(profile.spacing_um, profile.length_um)
    share = profile.cumulative(offset_um + half) - profile.cumulative(offset_um - half)
    brightest = profile.weights.max() * 2.0 * half / profile.spacing_um
    return np.asarray(share / brightest, np.float64)
