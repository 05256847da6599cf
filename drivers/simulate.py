"""Projections of a volume, as a Bessel microscope would have recorded them.

Turns a volume file into a projection file (`mdd simulate`). The truth is kept in the file, in the units of
the projections, so that reconstructions can be scored. Time points are processed one at a time, so memory
is bounded by one volume and its projections. Pure numpy, any thread; seeded: the same arguments give the same
file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import ConfigError, InputFileError
from microdiffusion.files import VolumeFile, open_volume, write_projections
from microdiffusion.frames import StagePositions
from microdiffusion.header import CameraNoise
from microdiffusion.optics import AxialProfile, projection_operator, sweep_offset, sweep_positions
from microdiffusion.text import strip_control


def project_volume(
    volume: NDArray[Any],
    stage: StagePositions,
    profile: AxialProfile,
    *,
    z0_um: float = 0.0,
    voxel_z_um: float = 1.0,
) -> NDArray[np.float32]:
    """Return the exact, noise-free projections (M, Y, X) float32 of a volume.

    Parameters
    ----------
    volume : (Z, Y, X)
    stage
        Positions of the M projections.
    profile
        The beam along z.
    z0_um, voxel_z_um
        Centre of the first slice and distance of slices, µm.

    Raises
    ------
    GeometryError
        A slab lies outside of the volume.
    """
    operator = projection_operator(
        stage.z_um, profile, z0_um=z0_um, voxel_z_um=voxel_z_um, shape_z=volume.shape[0]
    )
    flat = np.asarray(volume, dtype=np.float32).reshape(volume.shape[0], -1)
    return (operator.astype(np.float32) @ flat).reshape(-1, *volume.shape[1:])


def plan_positions(
    sweeps: int,
    *,
    length_um: float,
    step_um: float,
    z0_um: float,
    voxel_z_um: float,
    shape_z: int,
    offsets: str = "fixed",
    hold_out: bool = False,
) -> list[StagePositions]:
    """Return the stage positions (M,) of each sweep.

    `offsets` says where each sweep starts (`sweep_offset`); its last slab is moved back to the end of the
    volume where it would overhang, so that all sweeps have the same number of slabs. With `hold_out` the last
    projection of a sweep is half-way between two neighbouring slabs, a different pair each time.

    Raises
    ------
    GeometryError
        Not even one slab fits into the volume.
    """
    base = sweep_positions(
        length_um=length_um, step_um=step_um, z0_um=z0_um, voxel_z_um=voxel_z_um, shape_z=shape_z
    )
    deepest = z0_um + (shape_z - 0.5) * voxel_z_um - 0.5 * length_um
    rows = []
    for sweep in range(sweeps):
        z_um = np.minimum(base + sweep_offset(sweep, offsets) * step_um, max(deepest, base[-1]))
        if hold_out:
            # A stride prime to the number of pairs would do as well; the golden ratio needs no search.
            pair = int((0.5 + sweep * 0.6180339887) % 1.0 * max(base.size - 1, 1))
            judge = z_um[0] if base.size == 1 else 0.5 * (z_um[pair] + z_um[pair + 1])
            z_um = np.append(z_um, judge)
        rows.append(StagePositions.along_z(z_um))
    return rows


def simulate(
    volume_path: str | Path,
    *,
    length_um: float,
    step_um: float,
    output: str | Path,
    voxel_size_um: tuple[float, float, float] | None = None,
    noise: float = 0.0,
    photons: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
    read_noise: float = 0.0,
    normalise: bool = False,
    seed: int = 0,
    offsets: str = "fixed",
    hold_out: bool = False,
    sweeps: int | None = None,
) -> Path:
    """Write the projection file of a volume and return its path.

    Parameters
    ----------
    volume_path
        HDF5 with a dataset `volume` (Z, Y, X) or (T, Z, Y, X), or TIFF.
    length_um, step_um
        Slab length (box profile) and distance of neighbouring slabs, µm.
    output
        The projection file; an existing one is replaced, or left untouched on failure.
    voxel_size_um : (z, y, x), optional
        µm; None: that of the file, or else 1 µm.
    noise
        Standard deviation of Gaussian noise, relative to the range of the first volume. Gives float32.
    photons
        Photons per pixel where the specimen is brightest (percentile 99.9 of the first volume): Poisson
        noise, then `gain` (counts per photon), `read_noise` (counts) and `offset` (counts). Gives uint16.
    normalise
        Scale percentiles 1 and 99.9 of the first volume to 0 and 1 and clip: the evaluation protocol.
    seed
        Of the noise.
    offsets, hold_out
        See `plan_positions`.
    sweeps
        Number of sweeps; None: one for each volume. Beyond the last volume, that volume is repeated: a
        specimen that does not move.

    Raises
    ------
    ConfigError
        A length, step or noise figure is impossible, or both kinds of noise are given.
    GeometryError, InputFileError, MissingFileError, DiskError
        Slabs do not fit; the volume is unusable; the output cannot be written.
    """
    _check(length_um=length_um, step_um=step_um, gain=gain)
    _check(or_zero=True, noise=noise, read_noise=read_noise)
    camera = None
    if photons is not None:
        _check(photons=photons)
        camera = CameraNoise(offset=offset, gain=gain, read_noise=read_noise)
        if noise:
            raise ConfigError("Give noise (Gaussian) or photons (camera), not both.")
    elif read_noise or offset or gain != 1.0:
        raise ConfigError("gain, offset and read_noise describe a camera and need photons: give photons too.")
    if sweeps is not None and sweeps < 1:
        raise ConfigError(f"sweeps should be 1 or more, not {sweeps}: correct it.")
    profile = AxialProfile.box(length_um)
    with open_volume(volume_path) as source:
        voxel = voxel_size_um or source.assumed_voxel_um()
        _check(voxel_z_um=voxel[0], voxel_y_um=voxel[1], voxel_x_um=voxel[2])
        planned = plan_positions(
            sweeps or len(source),
            length_um=length_um,
            step_um=step_um,
            z0_um=0.0,
            voxel_z_um=voxel[0],
            shape_z=source.shape[1],
            offsets=offsets,
            hold_out=hold_out,
        )
        scale = _Scale.of(source, normalise=normalise, photons=photons)
        sigma = np.float32(noise * np.ptp(scale.light(0))) if noise else None

        def projections() -> Iterator[NDArray[Any]]:
            rng = np.random.default_rng(seed)
            for sweep, stage in enumerate(planned):
                light = project_volume(scale.light(sweep), stage, profile, voxel_z_um=voxel[0])
                if camera is not None:
                    yield camera.expose(light, rng)
                elif sigma is not None:
                    yield light + sigma * rng.standard_normal(light.shape, dtype=np.float32)
                else:
                    yield light

        def truths() -> Iterator[NDArray[np.float32]]:
            for sweep in range(len(planned)):
                light = scale.light(sweep)
                yield light if camera is None else light * np.float32(gain) + np.float32(offset)

        write_projections(
            output,
            projections(),
            z_um=np.array([stage.z_um for stage in planned]) if len(planned) > 1 else planned[0].z_um,
            profile=profile,
            voxel_size_um=voxel,
            z0_um=0.0,
            shape_z=source.shape[1],
            time_s=np.arange(len(planned), dtype=np.float64),
            camera=camera,
            held_out=np.arange(len(planned[0])) == len(planned[0]) - 1 if hold_out else None,
            truth=truths(),
            attributes={"source": f"simulated from {strip_control(source.path.name)}, seed {seed}"},
        )
    return Path(output)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Conversion of a volume file's values to light, the same for all time points.

    The value `low` is no light; light is clipped to `limits`.
    """

    source: VolumeFile
    low: float
    factor: float
    limits: tuple[float, float]

    @classmethod
    def of(cls, source: VolumeFile, *, normalise: bool, photons: float | None) -> _Scale:
        """Return the scale that the first volume determines."""
        first = source.volume(0)
        scale = cls(source, 0.0, 1.0, (-math.inf, math.inf))
        if normalise:
            low, high = (float(value) for value in np.percentile(first, (1.0, 99.9)))
            if high <= low:
                raise InputFileError(
                    f"{source.path}: the volume is empty or constant (percentiles 1 and 99.9 are both "
                    f"{high:g}), so it cannot be normalised: give another."
                )
            scale = cls(source, low, 1.0 / (high - low), (0.0, 1.0))
        if photons is None:
            return scale
        light = scale.light(0)
        brightest = float(np.percentile(light, 99.9))
        if brightest <= 0:
            brightest = float(light.max())
        if brightest <= 0:
            raise InputFileError(f"{source.path}: the volume holds no light: give another.")
        more = photons / brightest
        return cls(source, scale.low, scale.factor * more, (0.0, scale.limits[1] * more))

    def light(self, sweep: int) -> NDArray[np.float32]:
        """Return the volume (Z, Y, X) of a sweep; beyond the last, the last."""
        volume = self.source.volume(min(sweep, len(self.source) - 1))
        scaled = (volume - np.float32(self.low)) * np.float32(self.factor)
        low, high = (np.float32(limit) for limit in self.limits)
        return np.asarray(np.clip(scaled, low, high), dtype=np.float32)


def _check(*, or_zero: bool = False, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
            wanted = "zero or a positive number" if or_zero else "a positive number"
            raise ConfigError(f"{name} should be {wanted}, not {value:g}: correct it.")
