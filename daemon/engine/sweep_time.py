"""Seconds that this engine takes for a sweep of a configuration: a second of measurement, before a run.

Sweeps of the plan, of a specimen of blobs, through a reconstructor of their own. Of a large image a part is
measured: what the network takes goes with the pixels of its tiles (which overlap), all else with those of the
image. Imports torch: for a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.simulate import project_volume
from microdiffusion.engines.diffusion import HALO
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.frames import StagePositions, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from microdiffusion.config import Config
    from microdiffusion.engines.pipeline import Engine
    from microdiffusion.header import RunHeader

_VOXELS = {"cpu": 48 * 128 * 128, "cuda": 64 * 512 * 512}
"""Most voxels that are measured."""
_LEAST_EDGE = 48  # of the part, pixels
_COLD, _LEAST, _MOST = 2, 3, 8
"""Sweeps that are not counted (kernels are chosen, a session begins), and that are."""


@dataclass(frozen=True, slots=True)
class SweepTime:
    """Seconds that the engine takes for a sweep, the (Y, X) pixels that were measured, and its name.

    `cpu_s` are the seconds of processor time, of all cores together, which other programs lengthen less.
    """

    seconds: float
    cpu_s: float
    measured: tuple[int, int]
    runtime: str


def measure_sweep(
    config: Config, image: tuple[int, int], engine: Engine | None = None, *, budget_s: float = 1.0
) -> SweepTime:
    """Return what a sweep of `config` takes with images of (Y, X) pixels; about `budget_s` are measured.

    An `engine` that is open already has a run before it: `budget_s` are all that is spent, or two sweeps.

    Raises
    ------
    MddError
        The engine cannot be opened, or the plan not carried out.
    """
    least, first = (_COLD + _LEAST, _COLD) if engine is None else (2, 0)
    engine = engine or open_engine(config.engine.model_copy(update={"compile": False}))
    plan = Plan(config)
    part = _part(image, _VOXELS.get(engine.device.type, _VOXELS["cpu"]) / config.volume.shape_z)
    header = plan.header(part, config.volume.pixel_um or 1.0, source="")
    reconstructor = Reconstructor(header, config.engine, engine)
    taken: list[tuple[float, float, float]] = []
    for sweep in islice(_sweeps(plan, header), _COLD + _MOST):
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        seconds = reconstructor.reconstruct(sweep).seconds
        total_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        taken.append((total_s, seconds.get("sampler", 0.0), cpu_s))
        if len(taken) >= least and sum(total for total, *_ in taken[first:]) > budget_s:
            break
    total_s, network_s, cpu_s = np.median(taken[min(_COLD, len(taken) - 1) :], axis=0).tolist()
    tile = config.engine.tile
    network = _network_pixels(image, tile) / _network_pixels(part, tile)
    rest = image[0] * image[1] / (part[0] * part[1])
    whole = (network_s * network + (total_s - network_s) * rest) / total_s
    return SweepTime(total_s * whole, cpu_s * whole, part, engine.name)


def _part(image: tuple[int, int], pixels: float) -> tuple[int, int]:
    """Return a part of an image of about so many pixels, as square as it can be."""
    edge = max(int(pixels**0.5), _LEAST_EDGE)
    rows, columns = (min(each, edge) for each in image)
    return min(image[0], max(rows, int(pixels / columns))), min(image[1], max(columns, int(pixels / rows)))


def _network_pixels(image: tuple[int, int], tile: int) -> int:
    """Return the pixels of all tiles of an image, those included that are computed twice."""
    rows, columns = (each + 2 * HALO * (-(-each // tile) - 1) for each in image)
    return rows * columns


def _sweeps(plan: Plan, header: RunHeader) -> Iterator[Sweep]:
    """Yield sweeps of a still specimen, as a daemon assembles them."""
    rng = np.random.default_rng(0)
    volume = _blobs(header.shape, rng)
    for number in count():
        slabs = sorted(plan.slabs(number), key=lambda slab: slab.stage.z_um)
        seen, stages = [], []
        for held_out in (False, True):
            stage = StagePositions.of(slab.stage for slab in slabs if slab.held_out is held_out)
            light = project_volume(
                volume, stage, header.profile, z0_um=header.z0_um, voxel_z_um=header.voxel_size_um[0]
            )
            seen.append(light + np.float32(5.0) * rng.standard_normal(light.shape, np.float32))
            stages.append(stage)
        yield Sweep(number, 0, 0, stages[0], seen[0], stages[1], seen[1])


def _blobs(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return blobs of a few pixels, up to 1000 counts bright, on a dim background."""
    volume = np.zeros(shape, np.float32)
    spots = max(volume.size // 2000, 1)
    volume[tuple(rng.integers(0, edge, spots) for edge in shape)] = rng.uniform(0.2, 1.0, spots)
    volume = ndimage.gaussian_filter(volume, (1.0, 1.5, 1.5))
    return np.asarray(50.0 + volume * (1000.0 / max(float(volume.max()), 1e-6)), np.float32)
