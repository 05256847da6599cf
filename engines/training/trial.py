"""A trial of a network on a part of a specimen that it was not trained on, in a session, as served.

The part is seen as the session would see it: beam, step and noise are its own, the sweeps lie at golden
offsets. What is served at the first sweep, and from the fourth sweep on, is compared with the truth.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import Denoiser
from microdiffusion.engines.pipeline import Engine, Reconstructor
from microdiffusion.engines.runtimes import open_runtime
from microdiffusion.engines.training.degrade import Optics
from microdiffusion.errors import GeometryError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.metrics import psnr_per_slice, seen_slices
from microdiffusion.optics import sweep_offset, sweep_positions

SWEEPS, LATER = 8, 3
"""Sweeps of a trial, and the first of those (from 0) that count as later ones."""
_CROP = (64, 96, 96)
_MATTERS = 0.05  # dB
_HARM = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A part of a specimen (Z, Y, X) in [0, 1], its sweeps, and the slices (Z,) that any of them saw."""

    truth: NDArray[np.float32]
    header: RunHeader
    sweeps: tuple[Sweep, ...]
    seen: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Served:
    """PSNR of what is served, dB: in the first sweep, and the mean of the later ones."""

    first: float
    later: float


def make_trial(part: NDArray[np.float32], optics: Optics, *, sweeps: int = SWEEPS, seed: int = 0) -> Trial:
    """Return the trial of the middle of a part (Z, Y, X), in units of its light range.

    Raises
    ------
    GeometryError
        Fewer than two slabs fit into it.
    """
    start = [max(0, (n - most) // 2) for n, most in zip(part.shape, _CROP, strict=True)]
    middle = part[tuple(slice(s, s + most) for s, most in zip(start, _CROP, strict=True))]
    low, high = np.percentile(middle, [1.0, 99.9])
    truth = np.asarray(((middle - low) / max(high - low, 1e-6)).clip(0, 1), np.float32)
    gain = optics.shot if optics.calibrated and optics.shot > 0 else None
    header = RunHeader(
        run_id="0" * 32,
        name="trial",
        shape=truth.shape,
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=tuple(float(weight) for weight in optics.profile.weights),
        profile_spacing_um=optics.profile.spacing_um,
        dtype="float32",
        frames_per_sweep=len(truth) + 1,
        camera=CameraNoise(gain=gain, read_noise=optics.read**0.5 if gain else 0.0),
    )
    rng = np.random.default_rng(seed)
    taken, operators = [], []
    for number in range(sweeps):
        z_um = sweep_positions(
            length_um=optics.profile.length_um,
            step_um=optics.step,
            z0_um=0.0,
            voxel_z_um=1.0,
            shape_z=len(truth),
            offset_um=sweep_offset(number, "golden") * optics.step,
        )
        if len(z_um) < 2:
            raise GeometryError(
                f"Only {len(z_um)} slab of {optics.profile.length_um:.1f} slices fits into the stack's "
                f"{len(truth)} slices at a step of {optics.step:.1f}: give a deeper stack."
            )
        stage = StagePositions.along_z(z_um)
        operators.append(header.operator_at(stage))
        clean = np.tensordot(operators[-1], truth, axes=1)
        sigma = np.sqrt(np.maximum(optics.read + optics.shot * clean, 1e-10))
        images = np.asarray(clean + sigma * rng.standard_normal(clean.shape), np.float32)
        none = np.empty((0, *truth.shape[1:]), np.float32)
        taken.append(Sweep(number, 0, 0, stage, images, stage[:0], none))
    return Trial(truth, header, tuple(taken), seen_slices(np.concatenate(operators)))


def run_trial(trial: Trial, model: Denoiser, config: EngineConfig, device: torch.device) -> Served:
    """Return how good the network's session is, as it would be served."""
    # A copy: the runtime changes the network's precision and place.
    runtime = open_runtime(copy.deepcopy(model), device, config).runtime
    served = config.model_copy(update={"method": "mdd"})
    reconstructor = Reconstructor(trial.header, served, Engine(device, runtime.name, "", runtime))
    scores = trial_scores(trial, reconstructor)
    return Served(scores[0], float(np.mean(scores[LATER:])))


def trial_scores(trial: Trial, reconstructor: Reconstructor) -> list[float]:
    """Return the PSNR of each sweep's volume, dB."""
    scores = []
    for sweep in trial.sweeps:
        volume = np.clip(reconstructor.reconstruct(sweep).volume, 0, 1)
        scores.append(float(psnr_per_slice(volume[trial.seen], trial.truth[trial.seen]).mean()))
    return scores


@dataclass(frozen=True, slots=True)
class Worth:
    """Gain of adapting, on the part that was kept aside."""

    before: Served
    after: Served

    @property
    def gains(self) -> tuple[float, float]:
        """Gain in dB, in a first sweep and in later ones."""
        return self.after.first - self.before.first, self.after.later - self.before.later

    @property
    def gain(self) -> float:
        """Mean gain, dB."""
        return sum(self.gains) / 2

    @property
    def word(self) -> str:
        """Return "helps", "hurts" or "no change": neither sweep may lose what the other gains."""
        gains = self.gains
        if min(gains) < -_HARM:
            return "hurts"
        return "helps" if max(gains) > _MATTERS else "no change"

    @property
    def sentence(self) -> str:
        """The verdict for the user."""
        word = {"no change": "makes no difference"}.get(self.word, self.word)
        before, after = self.before, self.after
        return (
            f"adapting {word}: on the part kept aside {after.first - before.first:+.2f} dB in a first sweep "
            f"({before.first:.2f} before, {after.first:.2f} after) and {after.later - before.later:+.2f} dB "
            f"from the fourth sweep on ({before.later:.2f}, {after.later:.2f})"
        )
