"""The optics of one session as the training's cubes see them: in slices, and in units of the light range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from microdiffusion.engines.projections import estimate_sigma
from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.degrade import Optics
from microdiffusion.errors import GeometryError
from microdiffusion.frames import Sweep
from microdiffusion.header import RunHeader
from microdiffusion.optics import AxialProfile

PLANNED_NOISE = 0.01
"""Noise of projections that nobody has recorded yet, share of their range."""


@dataclass(frozen=True, slots=True)
class SessionOptics:
    """Optics in the units of the cubes, and what turns counts into these: light = (counts - dark) / scale."""

    optics: Optics
    dark: float
    scale: float

    @classmethod
    def of(cls, header: RunHeader, sweeps: Sequence[Sweep]) -> SessionOptics:
        """Return the optics of sweeps of a run.

        Raises
        ------
        GeometryError
            A slab does not fit into the training's cubes.
        """
        counts = np.stack([np.percentile(sweep.projections, [1.0, 99.9]) for sweep in sweeps]).mean(0)
        dark = min(header.camera.offset, float(counts[0]))
        scale = max(float(counts[1]) - dark, 1e-6)
        camera, sweep = header.camera, sweeps[0]
        if camera.gain is None:
            sigma = max(estimate_sigma(torch.from_numpy(sweep.projections)), camera.read_noise)
            read, shot = sigma**2, 0.0
        else:
            # Counts: variance = read² + gain (p - offset); cubes: light = (p - dark) / scale.
            read = camera.read_noise**2 + camera.gain * max(0.0, dark - camera.offset)
            shot = camera.gain * scale
        step_um = sweep.stage.step_um if len(sweep.stage) > 1 else header.profile.length_um
        profile, step = _in_slices(header.profile, step_um, header.voxel_size_um[0])
        noise = read / scale**2, shot / scale**2
        return cls(Optics(profile, step, *noise, calibrated=camera.gain is not None), dark, scale)


def planned_optics(profile: AxialProfile, step_um: float, voxel_z_um: float) -> Optics:
    """Return the optics of sweeps that are planned, with noise of `PLANNED_NOISE` that is not declared.

    Raises
    ------
    GeometryError
        A slab does not fit into the training's cubes.
    """
    return Optics(*_in_slices(profile, step_um, voxel_z_um), PLANNED_NOISE**2, 0.0, calibrated=False)


def _in_slices(profile: AxialProfile, step_um: float, voxel_z_um: float) -> tuple[AxialProfile, float]:
    sampled = AxialProfile.sampled(profile.weights, profile.spacing_um / voxel_z_um)
    length, step = sampled.length_um, step_um / voxel_z_um
    if length + step > SIZE:
        raise GeometryError(
            f"A slab of {length:.0f} slices at a step of {step:.0f} does not fit into cubes of {SIZE} "
            "slices: adapt with thicker slices."
        )
    return sampled, step
