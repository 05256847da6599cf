"""A session's projections as training data: those that are fitted to, those that judge, and the verdict.

Reads a projection file or a run file and splits its projections: the held-out ones judge. If none was held
out, one projection of each sweep is left out of everything else, which is a harder question (the gap that it
leaves has to be bridged), but the same one before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.engines.projections import noise_variance
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.files import open_projections
from microdiffusion.frames import Sweep
from microdiffusion.header import RunHeader
from microdiffusion.runfile import Status, is_run_file, open_run

BLOCK = 16
"""Edge of the blocks that are compared, pixels: errors of neighbouring pixels are not independent."""
_LEAST = 4
_SURE = 2.0  # standard errors
_MATTERS = 0.005  # share of the error


@dataclass(frozen=True, slots=True)
class AdaptSession:
    """Sweeps of one session, each with projections that judge.

    `left_out` says that the judges were taken from the sweeps' own projections.
    """

    header: RunHeader
    sweeps: tuple[Sweep, ...]
    left_out: bool

    @property
    def fingerprint(self) -> str:
        """Checksum of the projections."""
        digest = hashlib.sha256()
        for sweep in self.sweeps:
            digest.update(np.ascontiguousarray(sweep.projections).tobytes())
        return digest.hexdigest()[:16]

    def for_fitting(self) -> list[Sweep]:
        """Return the sweeps without their judges."""
        none = np.empty((0, *self.header.shape[1:]), np.float32)
        return [replace(sweep, held_out_stage=sweep.stage[:0], held_out=none) for sweep in self.sweeps]


def read_session(path: Path, *, most: int) -> AdaptSession:
    """Return at most `most` sweeps of a run or projection file, evenly over time.

    Raises
    ------
    MissingFileError, InputFileError
        The file cannot be used, or has too few projections to leave one out.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no run or projection file {path}: check its name.")
    header, sweeps = (_of_run if is_run_file(path) else _of_projections)(path, most)
    if not sweeps:
        raise InputFileError(f"{path} holds no complete sweep to adapt to: record some first.")
    with_judges = tuple(sweep for sweep in sweeps if len(sweep.held_out_stage))
    if with_judges:
        return AdaptSession(header, with_judges, left_out=False)
    sweeps = [_leave_one_out(path, sweep, number) for number, sweep in enumerate(sweeps)]
    return AdaptSession(header, tuple(sweeps), left_out=True)


def _spread(count: int, most: int, has_judges: Callable[[int], bool]) -> list[int]:
    """Return numbers of sweeps, evenly, of those that have judges if there are any."""
    chosen = [number for number in range(count) if has_judges(number)] or list(range(count))
    places = np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int))
    return [chosen[place] for place in places]


def _of_projections(path: Path, most: int) -> tuple[RunHeader, list[Sweep]]:
    with open_projections(path) as file:
        return file.header, [file.sweep(number) for number in _spread(len(file), most, lambda number: True)]


def _of_run(path: Path, most: int) -> tuple[RunHeader, list[Sweep]]:
    with open_run(path, missing="refuse") as run:
        if len(run.header.channels) > 1:
            raise InputFileError(f"{path} has several channels, which differ: adapt to one channel's run.")
        sweeps = [run.sweep(int(number)) for number in np.flatnonzero(run.status == Status.WRITTEN)]
        complete = [sweep for sweep in sweeps if not sweep.missing]
        numbers = _spread(len(complete), most, lambda number: bool(len(complete[number].held_out_stage)))
        return run.header, [complete[number] for number in numbers]


def _leave_one_out(path: Path, sweep: Sweep, number: int) -> Sweep:
    count = len(sweep.stage)
    if count < _LEAST:
        raise InputFileError(
            f"{path} has sweeps of {count} projections and none held out: adapting needs held-out "
            f"projections, or at least {_LEAST} in a sweep."
        )
    out = 1 + (count // 2 - 1 + number) % (count - 2)
    return replace(
        sweep,
        stage=sweep.stage[np.arange(count) != out],
        projections=np.delete(sweep.projections, out, axis=0),
        held_out_stage=sweep.stage[out : out + 1],
        held_out=sweep.projections[out : out + 1],
    )


def judge_errors(header: RunHeader, sweep: Sweep, volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean squared error of the judges, in noise variances, of each block of BLOCK² pixels."""
    predicted = np.tensordot(header.operator_at(sweep.held_out_stage), volume, axes=1)
    variance = noise_variance(torch.from_numpy(sweep.held_out), header.camera).numpy()
    squares = np.square(predicted - sweep.held_out) / variance
    rows, columns = (max(1, n // BLOCK) for n in squares.shape[1:])
    parts = [np.array_split(band, columns, axis=2) for band in np.array_split(squares, rows, axis=1)]
    return np.concatenate([part.mean(axis=(1, 2)) for band in parts for part in band])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of old and new weights on the judges.

    Attributes
    ----------
    before, after : float
        Root mean square error on the judges, in units of their noise.
    sure : float
        The change in standard errors over blocks; negative is better.
    word : str
        "helps", "hurts" or "no change".
    """

    before: float
    after: float
    sure: float
    word: str

    @property
    def sentence(self) -> str:
        """The verdict for the user."""
        change = 100 * (self.after / self.before - 1)
        return (
            f"adapting {self.word if self.word != 'no change' else 'makes no significant difference'}: "
            f"error on the judging projections {self.before:.3f} before, {self.after:.3f} after "
            f"({change:+.1f} %, {abs(self.sure):.1f} standard errors)"
        )


def verdict(before: Sequence[NDArray[np.float64]], after: Sequence[NDArray[np.float64]]) -> Verdict:
    """Compare block errors (one array a sweep) before and after."""
    old, new = np.concatenate(before), np.concatenate(after)
    change = new - old
    error = float(change.std(ddof=1) / np.sqrt(change.size)) if change.size > 1 else float("inf")
    sure = float(change.mean()) / max(error, 1e-12)
    rms = float(np.sqrt(old.mean())), float(np.sqrt(new.mean()))
    matters = abs(rms[1] / rms[0] - 1) > _MATTERS and abs(sure) > _SURE
    word = "no change" if not matters else "helps" if sure < 0 else "hurts"
    return Verdict(*rms, sure, word)
