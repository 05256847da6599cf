"""The protocol: how a recorded volume becomes a truth and a sweep that is to be reconstructed.

Fixed here, so that scores of different methods, days and machines compare: the middle of the volume, scaled
by its percentiles 1 and 99.9 to [0, 1] and clipped; a box beam; slabs inside the volume; white
noise or photons; one further projection half a step off the others. That one is held out: it judges every
method, and `Protocol.held_out` says whether the methods may look at it too, as they may in an acquisition
that takes such frames. Scores are taken over the slices between the first and the last that a slab saw,
estimates clipped to [0, 1], at a data range of 1.

Noise is drawn from the seed and the volume's shape alone: neither other volumes nor the methods change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import GeometryError, InputFileError
from microdiffusion.files import open_volume
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.metrics import ImageScores, held_out_error, score, seen_slices
from microdiffusion.optics import sweep_positions

PERCENTILES = (1.0, 99.9)
CROP = (130, 128, 128)


@dataclass(frozen=True, slots=True)
class Protocol:
    """The conditions, in slices and in units of the normalised volume.

    Attributes
    ----------
    length, step, offset : float
        Slab length, distance of slabs, and offset of the first slab from the volume's top, slices.
    noise : float
        Standard deviation of the white noise. Not used with `photons`.
    photons : float or None
        Photons per pixel where a projection is 1. The camera's gain is then known to the methods, as it is
        in a calibrated set-up; white noise they have to estimate.
    crop : (Z, Y, X) or None
        At most so many voxels, from the middle; None: the whole volume.
    held_out : bool
        Whether the methods see the held-out projection.
    """

    length: float = 6.0
    step: float = 6.0
    offset: float = 0.0
    noise: float = 0.01
    photons: float | None = None
    crop: tuple[int, int, int] | None = CROP
    held_out: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A truth, a microscope's measurement of it, and the scores of an answer.

    Attributes
    ----------
    truth : (Z, Y, X) float32
    header, sweep
        Input of a method.
    operator : (M, Z) float64
        Of the sweep's slabs.
    judge_operator : (1, Z) float64
    judge, judge_noise : (1, Y, X) float32
        The held-out projection and the true standard deviation of its noise.
    seen : (Z,) bool
        The slices that are scored.
    """

    truth: NDArray[np.float32]
    header: RunHeader
    sweep: Sweep
    operator: NDArray[np.float64]
    judge_operator: NDArray[np.float64]
    judge: NDArray[np.float32]
    judge_noise: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def scores(self, estimate: NDArray[np.float32]) -> ImageScores:
        """Return the scores of an answer (Z, Y, X)."""
        return score(np.clip(estimate, 0.0, 1.0), self.truth, slices=self.seen)

    def held_out_error(self, estimate: NDArray[np.float32]) -> float:
        """Return the answer's error on the held-out projection, in units of its noise."""
        return held_out_error(estimate, self.judge_operator, self.judge, self.judge_noise)


def read_truth(path: Path, crop: tuple[int, int, int] | None = CROP) -> NDArray[np.float32]:
    """Return the truth (Z, Y, X) that a volume file gives; see `open_volume` and `normalise`.

    Raises
    ------
    MissingFileError, InputFileError, DependencyError
        The file is absent or damaged, holds no volume or more than one, or needs a library.
    """
    with open_volume(path) as file:
        if len(file) > 1:
            raise InputFileError(
                f"{path} holds {len(file)} time points, but a truth is one volume: extract one of them."
            )
        return normalise(file.volume(0), crop)


def normalise(volume: NDArray[np.float32], crop: tuple[int, int, int] | None = CROP) -> NDArray[np.float32]:
    """Return the middle of a volume (Z, Y, X), scaled by percentiles and clipped to [0, 1].

    Raises
    ------
    InputFileError
        The volume is constant, or smaller than the 7 x 7 pixels that SSIM needs.
    """
    limits = crop or volume.shape
    start = [max(0, (n - m) // 2) for n, m in zip(volume.shape, limits, strict=True)]
    part = volume[tuple(slice(s, s + m) for s, m in zip(start, limits, strict=True))]
    if min(part.shape[1:]) < 7:
        raise InputFileError(f"A volume needs at least 7 x 7 pixels, not {part.shape}: use a larger one.")
    low, high = np.percentile(part, PERCENTILES)
    if not (np.isfinite(high - low) and high > low):
        raise InputFileError(
            "A volume needs finite values that differ, but its percentiles 1 and 99.9 are "
            f"{low:g} and {high:g}: it is empty, constant or damaged."
        )
    return np.asarray(np.clip((part - low) / (high - low), 0, 1), dtype=np.float32)


def make_case(truth: NDArray[np.float32], protocol: Protocol, seed: int = 0) -> Case:
    """Return the case of a truth (Z, Y, X) in [0, 1].

    Raises
    ------
    GeometryError
        Fewer than two slabs fit into the volume.
    """
    z_um = slab_centres(protocol, truth.shape[0])
    header = make_header(truth.shape, protocol, z_um.size + 1)
    middle = z_um.size // 2
    stage = StagePositions.along_z(z_um)
    judge_stage = StagePositions.along_z(z_um[middle - 1 : middle + 1].mean(keepdims=True))
    rng = np.random.default_rng(seed)
    operator, judge_operator = header.operator_at(stage), header.operator_at(judge_stage)
    measured, _ = expose(truth, operator, protocol, rng)
    judge, judge_noise = expose(truth, judge_operator, protocol, rng)
    shown = len(judge_stage) if protocol.held_out else 0
    sweep = Sweep(0, 0, 0, stage, measured, judge_stage[:shown], judge[:shown])
    return Case(truth, header, sweep, operator, judge_operator, judge, judge_noise, seen_slices(operator))


def slab_centres(protocol: Protocol, slices: int) -> NDArray[np.float64]:
    """Return the centres (M,) of a sweep's slabs in a volume of so many slices.

    Raises
    ------
    GeometryError
        Fewer than two slabs fit into it.
    """
    z_um = sweep_positions(
        length_um=protocol.length,
        step_um=protocol.step,
        z0_um=0.0,
        voxel_z_um=1.0,
        shape_z=slices,
        offset_um=protocol.offset,
    )
    if z_um.size < 2:
        raise GeometryError(
            f"Only {z_um.size} slab of {protocol.length:g} slices fits into a volume of {slices} at a step "
            f"of {protocol.step:g}: use a thicker volume or a shorter step."
        )
    return z_um


def make_header(shape: tuple[int, ...], protocol: Protocol, frames_per_sweep: int) -> RunHeader:
    """Return the header of a run on a volume (Z, Y, X)."""
    slices, rows, columns = shape
    return RunHeader(
        run_id="0" * 32,
        name="evaluation",
        shape=(slices, rows, columns),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=protocol.length,
        dtype="float32",
        frames_per_sweep=frames_per_sweep,
        camera=CameraNoise(gain=1.0 / protocol.photons) if protocol.photons else CameraNoise(),
    )


def expose(
    truth: NDArray[np.float32], operator: NDArray[np.float64], protocol: Protocol, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return noisy projections (M, Y, X) and the standard deviation of their noise."""
    clean = np.tensordot(operator, truth, axes=1)
    if protocol.photons is not None:
        measured = rng.poisson(protocol.photons * clean) / protocol.photons
        # One photon's worth at least, so that a dark pixel can be judged at all.
        sigma = np.sqrt(np.maximum(clean, 1.0 / protocol.photons) / protocol.photons)
    else:
        measured = clean + protocol.noise * rng.standard_normal(clean.shape)
        sigma = np.full(clean.shape, max(protocol.noise, 1e-4))
    return measured.astype(np.float32), sigma.astype(np.float32)
