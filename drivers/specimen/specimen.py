"""The virtual specimen: anatomy that glows, flickers, drifts and bleaches.

It owns the truth. `volume(t)` is the specimen on the run's voxel grid, `expected(stage, profile, t)` its
exact slab integral (``A @ volume`` for every slab inside the volume), which `CameraNoise.expose` turns into
an image. The unit is photons per pixel and projection: a voxel of value v, as thick as the slab, would give
v photons.

Constant parts (vessels, nuclei, neuropil) are one dense block; active parts (neurons) are a sparse list of
(voxel, compartment, brightness) sorted by depth, so a projection at a given time is a product over a few
slices and one weighted count. Both extend beyond the volume by a slab at either end and by the reach of the
drift sideways. Drift is a shift by a cubic B-spline, which is positive, preserves the sum and blurs equally
at every sub-voxel shift: it serves as the lateral point spread function.

Immutable after `__init__`, apart from a cache that tolerates races: any thread may call it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.drivers.specimen.anatomy import grow
from microdiffusion.drivers.specimen.raster import Grid
from microdiffusion.drivers.specimen.tissue import Activity, paint
from microdiffusion.optics import AxialProfile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.config import SpecimenConfig
    from microdiffusion.frames import StagePosition

DRIFT_REACH_UM = 4.0
"""Largest displacement of the specimen by drift, µm."""


class Specimen:
    """A living piece of tissue under the microscope.

    Parameters
    ----------
    config : SpecimenConfig
        Contents, brightness, activity.
    shape : (Z, Y, X)
        Voxels of the wanted volume; Y and X are the camera's rows and columns.
    voxel_size_um : (z, y, x)
        µm.
    z0_um : float
        Centre of the first slice, µm, in the coordinates of the stage.
    slab_um : float
        Length of the beam. The tissue extends that far above and below the volume, and the brightest pixels
        (the top 0.1 %) of such slabs show `config.photons` photons at rest.
    """

    def __init__(
        self,
        config: SpecimenConfig,
        *,
        shape: tuple[int, int, int],
        voxel_size_um: tuple[float, float, float],
        z0_um: float = 0.0,
        slab_um: float = 12.0,
    ) -> None:
        self.shape = shape
        self._config = config
        voxel = np.asarray(voxel_size_um, dtype=np.float64)
        self._voxel_um = voxel
        # Sideways: the drift, and the two voxels that the spline needs.
        reach = np.array([slab_um, DRIFT_REACH_UM, DRIFT_REACH_UM])
        self._margin = np.ceil(reach / voxel).astype(int) + np.array([1, 3, 3])
        padded = tuple(int(n) for n in np.asarray(shape) + 2 * self._margin)
        first = np.array([z0_um, 0.0, 0.0]) - self._margin * voxel
        self._grid = Grid((padded[0], padded[1], padded[2]), voxel, first)
        low, high = first - voxel / 2, first + (np.asarray(padded) - 0.5) * voxel
        anatomy = grow(
            config.seed, low, high, neurons=config.neurons, vessels=config.vessels, nuclei=config.nuclei
        )
        painted = paint(anatomy, self._grid, np.random.default_rng([config.seed, 100]))
        self._still = painted.still
        self._voxel, self._compartment, self._glow = painted.voxel, painted.compartment, painted.glow
        self._activity = Activity(config.seed, config.activity, painted.owner)
        self._compartments = painted.owner.size
        self._depth = np.searchsorted(self._voxel, np.arange(padded[0] + 1) * (padded[1] * padded[2]))
        heading = np.random.default_rng([config.seed, 101]).uniform(0.0, 2.0 * np.pi)
        self._drift_speed = config.drift_um_per_min / 60.0 * np.array([np.sin(heading), np.cos(heading)])
        self._scale = config.photons / self._brightest(slab_um)

    def _brightest(self, slab_um: float) -> float:
        """Return the brightest 0.1 % of pixels that slabs all through the volume show at rest."""
        gains = np.ones(self._compartments)
        depth = float(self._voxel_um[0]) * self.shape[0]
        z0 = self._grid.first_um[0] + (self._margin[0] - 0.5) * self._voxel_um[0]
        # The first slab begins with the volume, or lies about one that is thinner.
        centres = z0 + np.arange(0.5 * min(slab_um, depth), depth, slab_um)
        slabs = [self._slab(z, AxialProfile.box(slab_um), gains) for z in centres]
        return max(float(np.percentile(slabs, 99.9)), 1e-6)

    def volume(self, time_s: float) -> NDArray[np.float32]:
        """Return the truth at `time_s`: (Z, Y, X) float32, photons."""
        gains = self._activity.gains(time_s)
        deep = self._margin[0]
        low, high = self._depth[deep], self._depth[deep + self.shape[0]]
        block = self._still[deep : deep + self.shape[0]].copy()
        voxels = self._voxel[low:high] - deep * block[0].size
        glow = self._glow[low:high] * gains[self._compartment[low:high]]
        block += (
            np.bincount(voxels, weights=glow, minlength=block.size).reshape(block.shape).astype(np.float32)
        )
        return self._seen(block, time_s)

    def expected(self, stage: StagePosition, profile: AxialProfile, time_s: float) -> NDArray[np.float32]:
        """Return the projection at a stage position without noise: (Y, X) float32, photons."""
        slab = self._slab(stage.z_um, profile, self._activity.gains(time_s))
        return self._seen(slab.astype(np.float32), time_s)

    def drift_um(self, time_s: float) -> NDArray[np.float64]:
        """Return the displacement (y, x) µm: at first at the configured speed, then back and forth."""
        wander = np.sin(self._drift_speed * time_s / DRIFT_REACH_UM)
        return np.asarray(DRIFT_REACH_UM * wander, np.float64)

    def _slab(self, z_um: float, profile: AxialProfile, gains: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the light (padded Y, padded X) of a slab before drift, bleaching and scale.

        Beyond the ends of the tissue the last slices go on.
        """
        edges = self._grid.first_um[0] + (np.arange(self._grid.shape[0] + 1) - 0.5) * self._voxel_um[0]
        below = profile.cumulative(edges - z_um)
        below[0], below[-1] = 0.0, 1.0
        shares = np.diff(below)  # of each slice, their sum is 1
        lit = np.flatnonzero(shares)
        first, last = int(lit[0]), int(lit[-1]) + 1
        _, rows, columns = self._grid.shape
        still = shares[first:last].astype(np.float32) @ self._still[first:last].reshape(last - first, -1)
        low, high = self._depth[first], self._depth[last]
        voxels = self._voxel[low:high]
        light = self._glow[low:high] * gains[self._compartment[low:high]] * shares[voxels // (rows * columns)]
        active = np.bincount(voxels % (rows * columns), weights=light, minlength=rows * columns)
        return np.asarray((still + active).reshape(rows, columns), np.float64)

    def _seen(self, light: NDArray[np.float32], time_s: float) -> NDArray[np.float32]:
        """Return `light` (..., padded Y, padded X) drifted, bleached, in photons: (..., Y, X)."""
        start = self._margin[1:] - self.drift_um(time_s) / self._voxel_um[1:]
        light = _shift(light, -2, float(start[0]), self.shape[1])
        light = _shift(light, -1, float(start[1]), self.shape[2])
        kept = (1.0 - self._config.bleaching_per_min) ** (time_s / 60.0)
        return light * np.float32(self._scale * kept)


def _shift(values: NDArray[np.float32], axis: int, start: float, length: int) -> NDArray[np.float32]:
    """Return `length` samples along `axis` from the fractional index `start` on, by a cubic B-spline."""
    whole = int(np.floor(start))
    f = start - whole
    taps = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    values = np.moveaxis(values, axis, -1)
    result = sum(
        np.float32(tap / 6.0) * values[..., whole - 1 + k : whole - 1 + k + length]
        for k, tap in enumerate(taps)
    )
    return np.ascontiguousarray(np.moveaxis(np.asarray(result, np.float32), -1, axis))
