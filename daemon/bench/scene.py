"""The input: sweeps of the virtual specimen, made before any clock runs.

The demo's optics, camera and plan: slabs of 6 slices side by side, each sweep elsewhere within a step, one
projection held out in every fourth sweep, a specimen that flickers, drifts and bleaches. Tissue is grown for
128 x 128 pixels at most and mirrored beyond, so every size sees the same density of structure (and a field
of 512 x 512 need not be grown for a minute). A few sweeps are kept and repeated under new numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from microdiffusion.config import Config
from microdiffusion.daemon.bench.settings import Size
from microdiffusion.daemon.runs import Assembler
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.specimen import Specimen
from microdiffusion.errors import RunError
from microdiffusion.frames import Frame, Sweep
from microdiffusion.header import RunHeader

PERIOD = 8
"""Sweeps that are made; a multiple of the demo's held-out four."""
_GROWN = 128  # pixels along an edge


@dataclass(frozen=True, slots=True)
class Scene:
    """A run's header and its frames: sweep after sweep, and again from the first."""

    header: RunHeader
    made: tuple[tuple[Frame, ...], ...]

    @property
    def projections(self) -> int:
        """Projections of a sweep that are reconstructed from."""
        return sum(not frame.info.held_out for frame in self.made[0])

    def frames(self, number: int) -> list[Frame]:
        """Return the frames of sweep `number` (0, 1, ...)."""
        first = sum(len(self.made[n % len(self.made)]) for n in range(number))
        return [
            Frame(replace(frame.info, seq=first + at, sweep=number), frame.pixels)
            for at, frame in enumerate(self.made[number % len(self.made)])
        ]

    def sweep(self, number: int, made: int | None = None) -> Sweep:
        """Return sweep `number` as the daemon assembles it; `made`: of the frames of that sweep instead."""
        frames = self.frames(number if made is None else made)
        for frame in frames:
            frame.info = replace(frame.info, sweep=number)
        return assemble(Assembler(timeout_s=60.0), frames)


def assemble(assembler: Assembler, frames: list[Frame]) -> Sweep:
    """Return the sweep that these frames make up; its number need not follow on the one before.

    Raises
    ------
    RunError
        They make up none.
    """
    over = [item for frame in frames for item in assembler.add(frame)] + assembler.finish()
    whole = [item for item in over if isinstance(item, Sweep) and item.sweep == frames[0].info.sweep]
    if len(whole) != 1:
        raise RunError(f"{len(frames)} frames made no sweep: please report this.")
    return whole[0]


def make_scene(config: Config, size: Size, *, seed: int, sweeps: int = PERIOD) -> Scene:
    """Return the sweeps of a volume of `size` (Z, Y, X), seen as `config` (the demo's) says."""
    slices, rows, columns = size
    config = config.model_copy(update={"volume": config.volume.model_copy(update={"shape_z": slices})})
    plan = Plan(config)
    header = plan.header((rows, columns), config.volume.pixel_um or 1.0, source="mdd bench")
    specimen = Specimen(
        config.specimen.model_copy(update={"seed": seed}),
        shape=(slices, min(rows, _GROWN), min(columns, _GROWN)),
        voxel_size_um=header.voxel_size_um,
        z0_um=header.z0_um,
        slab_um=header.profile.length_um,
    )
    rng = np.random.default_rng([seed, 104])
    made = []
    for planned in islice(plan.sweeps(), sweeps):
        start_s = planned.number * max(config.acquisition.sweep_interval_s, 1.0)
        frames = []
        for index, shot in enumerate(planned.shots):
            time_s = start_s + 0.05 * index
            light = specimen.expected(shot.info.stage, header.profile, time_s)
            short = [(0, n - m) for n, m in zip((rows, columns), light.shape, strict=True)]
            pixels = header.camera.expose(np.pad(light, short, mode="symmetric"), rng)
            frames.append(Frame(replace(shot.info, camera_time_s=time_s), pixels))
        made.append(tuple(frames))
    return Scene(header, tuple(made))
