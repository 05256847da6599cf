"""Small specimens and what a Bessel microscope would have seen of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.drivers.simulate import plan_positions
from microdiffusion.files.projections import write_projections
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.optics import AxialProfile, projection_operator

SHAPE = (24, 32, 32)
VOXEL_UM = (2.0, 1.0, 1.0)
LENGTH_UM = STEP_UM = 12.0
CAMERA = CameraNoise(offset=100.0, gain=1.0, read_noise=2.0)


def specimen(seed: int = 0, shape: tuple[int, int, int] = SHAPE, drift: float = 0.0) -> NDArray[np.float32]:
    """Return a dozen blobs of some 100 photons, moved by `drift` pixels along x."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    volume = np.zeros(shape)
    for _ in range(12):
        centre = rng.uniform(0, shape) + np.array([0, 0, drift])
        width = rng.uniform((1.5, 1.0, 1.0), (3.0, 3.0, 3.0))
        volume += rng.uniform(100, 400) * np.exp(-0.5 * (((grid - centre) / width) ** 2).sum(axis=-1))
    return volume.astype(np.float32)


def header(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> RunHeader:
    values: dict[str, Any] = {
        "run_id": "0123456789abcdef" * 2,
        "shape": shape,
        "voxel_size_um": VOXEL_UM,
        "z0_um": 0.0,
        "profile_weights": (1.0,),
        "profile_spacing_um": LENGTH_UM,
        "camera": CAMERA,
    }
    return RunHeader(**(values | changes))


def positions(sweeps: int, slices: int = SHAPE[0], *, hold_out: bool = True) -> NDArray[np.float64]:
    """Return the slab centres (T, M) of sweeps whose offset alternates."""
    planned = plan_positions(
        sweeps,
        length_um=LENGTH_UM,
        step_um=STEP_UM,
        z0_um=0.0,
        voxel_z_um=VOXEL_UM[0],
        shape_z=slices,
        offsets="alternate",
        hold_out=hold_out,
    )
    return np.array([stage.z_um for stage in planned])


def look(volume: NDArray[np.float32], z_um: NDArray[np.float64], seed: int = 0) -> NDArray[np.uint16]:
    """Return noisy projections (M, Y, X) of a volume in photons."""
    operator = projection_operator(
        z_um, AxialProfile.box(LENGTH_UM), z0_um=0.0, voxel_z_um=VOXEL_UM[0], shape_z=volume.shape[0]
    )
    photons = np.random.default_rng([seed, 1]).poisson(np.tensordot(operator, volume, axes=1))
    noise = np.random.default_rng([seed, 2]).normal(CAMERA.offset, CAMERA.read_noise, photons.shape)
    return np.clip(np.rint(photons + noise), 0, 65535).astype(np.uint16)


def sweep_of(volume: NDArray[np.float32], number: int = 0, seed: int = 0) -> Sweep:
    """Return sweep `number` of a specimen, with one projection held out."""
    z_um = positions(number + 1, volume.shape[0])[number]
    pixels = look(volume, z_um, seed).astype(np.float32)
    return Sweep(
        sweep=number,
        channel=0,
        position=0,
        stage=StagePositions.along_z(z_um[:-1]),
        projections=pixels[:-1],
        held_out_stage=StagePositions.along_z(z_um[-1:]),
        held_out=pixels[-1:],
    )


def write_sample(path: Path, sweeps: int = 4) -> Path:
    """Write a projection file of a specimen that drifts."""
    z_um = positions(sweeps)
    held_out = np.zeros(z_um.shape[1], dtype=bool)
    held_out[-1] = True
    write_projections(
        path,
        [look(specimen(drift=0.3 * t), z_um[t], seed=t) for t in range(sweeps)],
        z_um=z_um,
        profile=AxialProfile.box(LENGTH_UM),
        voxel_size_um=VOXEL_UM,
        z0_um=0.0,
        shape_z=SHAPE[0],
        camera=CAMERA,
        held_out=held_out,
    )
    return path
