"""A specimen that sweeps look at from golden offsets, and sessions that learn it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.session_store import SessionStore
from microdiffusion.frames import Reconstruction, StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.metrics import psnr_per_slice
from microdiffusion.optics import sweep_offset, sweep_positions

SIDE, LENGTH, STEP, NOISE = 32, 6.0, 8.0, 0.01
SHAPE = (SIDE, SIDE, SIDE)
Volume = NDArray[np.float32]
HEADER = RunHeader(
    run_id="0" * 32,
    shape=SHAPE,
    voxel_size_um=(1.0, 1.0, 1.0),
    z0_um=0.0,
    profile_weights=(1.0,),
    profile_spacing_um=LENGTH,
    dtype="float32",
)


def specimen(seed: int = 0) -> Volume:
    """Return some thirty blobs of different sizes."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(SIDE),) * 3, indexing="ij"), axis=-1)
    volume = np.zeros(SHAPE)
    for _ in range(30):
        centre, width = rng.uniform(0, SIDE, 3), rng.uniform(1.2, 3.0)
        volume += rng.uniform(0.2, 1.0) * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * width**2))
    return np.asarray(volume / np.percentile(volume, 99.9), dtype=np.float32)


def spot(centre: tuple[int, int, int], width: float = 2.5) -> Volume:
    grid = np.stack(np.meshgrid(*(np.arange(SIDE),) * 3, indexing="ij"), axis=-1)
    return np.exp(-((grid - np.array(centre)) ** 2).sum(-1) / (2 * width**2)).astype(np.float32)


def sweep_of(truth: Volume, number: int, scale: float = 1.0) -> Sweep:
    offset = sweep_offset(number, "golden") * STEP
    stage = StagePositions.along_z(
        sweep_positions(
            length_um=LENGTH, step_um=STEP, z0_um=0.0, voxel_z_um=1.0, shape_z=SIDE, offset_um=offset
        )
    )
    light = np.tensordot(HEADER.operator_at(stage), truth, 1)
    noise = NOISE * np.random.default_rng(number).standard_normal(light.shape)
    pixels = (scale * (light + noise)).astype(np.float32)
    return Sweep(number, 0, 0, stage, pixels, stage[:0], pixels[:0])


def session(memory: str, sessions: SessionStore | None = None) -> Reconstructor:
    config = EngineConfig.model_validate({"method": "inr", "memory": memory, "device": "cpu", "threads": 1})
    return Reconstructor(HEADER, config, sessions=sessions)


def run(truth: Callable[[int], Volume], sweeps: int, memory: str = "session") -> list[Reconstruction]:
    reconstructor = session(memory)
    return [reconstructor.reconstruct(sweep_of(truth(number), number)) for number in range(sweeps)]


def psnr(result: Reconstruction, truth: Volume, scale: float = 1.0) -> float:
    return float(np.mean(psnr_per_slice(result.volume / scale, truth)))
