"""A dense recording of a still specimen as the truth, for sparse parts of it and for volumes of other runs.

The reference is non-negative total variation of all frames together (`baselines.tv`), which knows neither INR
nor network; every eighth frame is held out and chooses its weights. It has errors of its own: what the halves
of its frames disagree on is their least size. One score needs no reference at all: how an answer predicts the
frames that were held out; no sparse part has them.

A *spot* is a local maximum of what stands out of a volume (`objects.standing_out`) by `SPOT` of the range; it
is *shown* by another volume that has half of its contrast there (matched filter, within 3 voxels).

Frames (M, Y, X) in counts, one position and channel, along z only. One thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.engines.evaluation import baselines
from microdiffusion.engines.evaluation.objects import standing_out
from microdiffusion.engines.evaluation.protocol import PERCENTILES
from microdiffusion.errors import ConfigError, GeometryError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.metrics import axial_sharpness, psnr_per_slice, seen_slices, ssim_per_slice
from microdiffusion.optics import sweep_offset

SPOT = 0.15
"""Least height of a spot over what is around it, share of the range."""
DENSE = 1 / 3
"""Largest distance between neighbouring slabs of a dense recording, in slab lengths."""
_HELD_OUT_EVERY = 8
_RADIUS, _REACH = 3, 3  # voxels: what is larger is no spot; the ball that spots are compared in
_SHOWN = 0.5
_ITERATIONS = 400
_BRIGHT = 0.2  # of the range: the structure
_OUTSIDE = 1e-3  # of a slab, beyond the slices that count


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A dense recording, and the reference made of it.

    Attributes
    ----------
    header : RunHeader
        Its shape is that of the frames.
    stage, frames, variance : (M,), (M, Y, X), (M, Y, X)
        All of them, along z.
    volume : (Z, Y, X)
        The reference, counts.
    low, span : float
        Counts at 0 and per unit of the range: the reference's percentiles 1 and 99.9.
    judge : (M,) bool
        The frames that were held out.
    own_error : float
        Rms difference of the references of either half of the frames, over two, share of the range.
    apart : float
        Largest distance of neighbouring slabs, slices.
    whole : (Y, X)
        Pixels of the field, of which the frames are the middle.
    """

    header: RunHeader
    stage: StagePositions
    frames: NDArray[np.float32]
    variance: NDArray[np.float32]
    judge: NDArray[np.bool_]
    volume: NDArray[np.float32]
    low: float
    span: float
    own_error: float
    apart: float
    whole: tuple[int, int]

    @property
    def slab(self) -> float:
        """Length of a slab, slices."""
        return self.header.profile.length_um / self.header.voxel_size_um[0]

    def normalised(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Return counts as shares of the range."""
        return np.asarray((volume - self.low) / self.span, np.float32)


def dense_reference(
    header: RunHeader, sweeps: Sequence[Sweep], crop: tuple[int, int] | None = (128, 128)
) -> Dense:
    """Return the reference of all frames of some sweeps (held-out ones, too), of the middle of the field.

    Raises
    ------
    ConfigError
        Its slabs lie further apart than `DENSE` of their length.
    """
    stage = StagePositions(
        np.concatenate([each.values for s in sweeps for each in (s.stage, s.held_out_stage)])
    )
    frames = np.concatenate([each for sweep in sweeps for each in (sweep.projections, sweep.held_out)])
    order = stage.order()
    top, left, rows, columns = _middle(header.shape[1:], crop)
    frames = np.ascontiguousarray(frames[order, top : top + rows, left : left + columns], np.float32)
    stage = stage[order]
    whole = (header.shape[1], header.shape[2])
    header = header.model_copy(update={"shape": (header.shape[0], rows, columns)})
    depths = np.unique(header.centres_of(stage).round(3))
    apart = float(np.diff(depths).max()) if depths.size > 1 else np.inf
    slab = header.profile.length_um / header.voxel_size_um[0]
    if apart > DENSE * slab:
        raise ConfigError(
            f"The recording is not dense: its slabs of {slab:g} slices lie up to {apart:g} apart, and a "
            f"truth needs {DENSE * slab:.2g} or less. Record a sweep with a smaller sweep.step_um, or many "
            "sweeps of a specimen that keeps still."
        )
    judge = np.zeros(len(frames), np.bool_)
    judge[_HELD_OUT_EVERY // 2 :: _HELD_OUT_EVERY] = True
    volume = _reference(header, _sweep(stage, frames, judge))
    seen = seen_slices(header.operator_at(stage))
    low, high = (float(each) for each in np.percentile(volume[seen], PERCENTILES))
    span = max(high - low, 1e-6)
    first = np.cumsum(~judge) % 2 == 0
    halves = [
        _reference(header, _sweep(stage[part], frames[part], judge[part]))
        for part in (first | judge, ~first | judge)
    ]
    own = float(np.sqrt(np.mean((halves[0] - halves[1])[seen] ** 2))) / 2 / span
    problem = baselines.Problem.of(header, _sweep(stage, frames), torch.device("cpu"))
    return Dense(header, stage, frames, problem.variance.numpy(), judge, volume, low, span, own, apart, whole)


def sparse_sweeps(dense: Dense, step: float, most: int) -> list[tuple[Sweep, NDArray[np.int64]]]:
    """Return up to `most` sweeps at about `step` slices, golden offsets, of its frames; and which these are.

    No frame is in two of them, and none that was held out is in any.

    Raises
    ------
    GeometryError
        Fewer than two slabs fit.
    """
    depths = dense.header.centres_of(dense.stage)
    free = ~dense.judge
    made: list[tuple[Sweep, NDArray[np.int64]]] = []
    for number in range(most):
        wanted = np.arange(depths[0] + sweep_offset(number, "golden") * step, depths[-1] + 1e-6, step)
        chosen: list[int] = []
        for depth in wanted:
            # Of the frames that no other sweep has, the one that is nearest.
            off = np.where(free, np.abs(depths - depth), np.inf)
            nearest = int(off.argmin())
            if off[nearest] <= max(dense.apart, step / 4):
                free[nearest] = False
                chosen.append(nearest)
        if len(chosen) < max(2, 0.8 * len(wanted)):
            break
        places = np.array(sorted(chosen), np.int64)
        made.append((_sweep(dense.stage[places], dense.frames[places], number=number), places))
    if not made:
        raise GeometryError(
            f"No sweep of two slabs {step:g} slices apart is in the dense recording: use a smaller --steps."
        )
    return made


def compare(
    dense: Dense, volume: NDArray[Any], slices: NDArray[np.bool_] | None = None
) -> dict[str, float | int]:
    """Return the scores of a volume (Z, Y, X, counts) against a dense recording, over some slices (Z,).

    Returns
    -------
    dict
        `error` and `bright_error` (rms, share of the range, everywhere and where the reference is
        bright), `psnr_db`, `ssim`, `slope` (of brightness, least squares, bright voxels), `correlation`,
        `sharpness`, `spots`, `hidden`, `shown`, `invented` (counts: the reference's spots, those that the
        volume lacks; the volume's spots, those that the reference lacks), `prediction` and
        `reference_prediction` (rms misfit of the frames that were held out, in units of their noise; NaN
        where none lies within the slices).
    """
    operator = dense.header.operator_at(dense.stage)
    if slices is None:
        slices = seen_slices(operator)
    told, true = (dense.normalised(each)[slices] for each in (volume, dense.volume))
    bright = true > _BRIGHT
    apart = (told - true).astype(np.float64)
    a, b = (each[bright].astype(np.float64) for each in (told, true))
    result: dict[str, float | int] = {
        "error": float(np.sqrt(np.mean(apart**2))),
        "bright_error": float(np.sqrt(np.mean(apart[bright] ** 2))) if bright.any() else float("nan"),
        "psnr_db": float(psnr_per_slice(np.clip(told, 0, 1), np.clip(true, 0, 1)).mean()),
        "ssim": float(ssim_per_slice(np.clip(told, 0, 1), np.clip(true, 0, 1)).mean()),
        "slope": float(a @ b / (b @ b)) if bright.any() else float("nan"),
        "correlation": float(np.corrcoef(told.ravel(), true.ravel())[0, 1]) if told.std() > 0 else 0.0,
        "sharpness": axial_sharpness(told, true),
    }
    result["spots"], result["hidden"] = _missing(true, told)
    result["shown"], result["invented"] = _missing(told, true)
    others = dense.judge & (operator[:, ~slices].sum(1) < _OUTSIDE)
    for name, answer in (("prediction", volume), ("reference_prediction", dense.volume)):
        missed = np.tensordot(operator[others], answer, 1) - dense.frames[others]
        misfit = np.mean(missed**2 / dense.variance[others]) if others.any() else np.nan
        result[name] = float(np.sqrt(misfit))
    return result


def _missing(here: NDArray[np.float32], there: NDArray[np.float32]) -> tuple[int, int]:
    """Return how many spots a volume has, and how many of them another one does not show."""
    mine, theirs = (standing_out(each, _RADIUS) for each in (here, there))
    ball = np.asarray(sum(axis**2 for axis in np.ogrid[(slice(-_REACH, _REACH + 1),) * 3]) <= _REACH**2)
    found = missing = 0
    for place in _spots(mine):
        part = tuple(slice(at - _REACH, at + _REACH + 1) for at in place)
        light, seen = mine[part] * ball, theirs[part]
        found += 1
        missing += bool(np.vdot(light, seen) < _SHOWN * np.vdot(light, light))
    return found, missing


def _spots(standing: NDArray[np.float32]) -> Iterator[tuple[int, int, int]]:
    inside = np.zeros(standing.shape, np.bool_)
    inside[(slice(_REACH, -_REACH),) * 3] = True
    peaks = (ndimage.maximum_filter(standing, 2 * _REACH + 1) == standing) & inside & (standing > SPOT)
    for z, y, x in np.argwhere(peaks):
        yield int(z), int(y), int(x)


def _reference(header: RunHeader, sweep: Sweep) -> NDArray[np.float32]:
    """Return the total-variation answer to a sweep."""
    problem = baselines.Problem.of(header, sweep, torch.device("cpu"))
    with torch.no_grad():
        volume = baselines.tv(problem, iterations=_ITERATIONS)
    answer: NDArray[np.float32] = (volume + problem.offset).numpy()
    return answer


def _sweep(
    stage: StagePositions,
    frames: NDArray[np.float32],
    judge: NDArray[np.bool_] | None = None,
    number: int = 0,
) -> Sweep:
    held = np.zeros(len(frames), np.bool_) if judge is None else judge
    return Sweep(number, 0, 0, stage[~held], frames[~held], stage[held], frames[held])


def _middle(shape: tuple[int, ...], crop: tuple[int, int] | None) -> tuple[int, int, int, int]:
    rows, columns = (min(n, m) for n, m in zip(shape, crop or shape, strict=True))
    return (shape[0] - rows) // 2, (shape[1] - columns) // 2, rows, columns


def in_the_middle(dense: Dense, volume: NDArray[Any]) -> NDArray[np.float32]:
    """Return the part of a whole volume (Z, Y, X) that the reference covers."""
    top, left, rows, columns = _middle(volume.shape[1:], dense.header.shape[1:])
    return np.asarray(volume[:, top : top + rows, left : left + columns], np.float32)


def same_grid(dense: RunHeader, other: RunHeader) -> None:
    """Check that two runs have the same voxels.

    Raises
    ------
    ConfigError
        They differ in shape, voxel size or place.
    """
    for what, one, two in (
        ("shape", dense.shape, other.shape),
        ("voxel size", dense.voxel_size_um, other.voxel_size_um),
        ("first slice (µm)", (dense.z0_um,), (other.z0_um,)),
    ):
        if not np.allclose(one, two, rtol=1e-4, atol=1e-6):
            raise ConfigError(
                f"The two runs differ in {what}, {one} and {two}: record the dense one with the "
                "configuration of the other, changed in sweep.step_um alone."
            )
