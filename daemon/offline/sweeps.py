"""Sweeps in a file, a projection file or a run file, with their frames: what `mdd reconstruct` reads.

One thread. Nothing is changed; of a run that goes on, what is there when it is opened counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.runs import enough
from microdiffusion.files import ProjectionFile, open_projections
from microdiffusion.frames import Frame, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import Run, is_run_file, open_positions


class SweepKey(NamedTuple):
    """A sweep of a file."""

    sweep: int
    channel: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """The sweeps of a file.

    Attributes
    ----------
    header : RunHeader
    frames_per_sweep : int
        Most frames of a sweep.
    ledger : Ledger
        Where the frames went before they got here.
    keys : dict of SweepKey to bool
        Sweeps with any frame, session by session, in time; and whether they have enough for a volume.
    sweep, frames : callable
        Return a sweep, and its frames, held-out ones included.
    """

    header: RunHeader
    frames_per_sweep: int
    ledger: Ledger
    keys: dict[SweepKey, bool]
    sweep: Callable[[SweepKey], Sweep]
    frames: Callable[[SweepKey], Iterator[Frame]]


@contextlib.contextmanager
def open_recorded(path: Path) -> Iterator[Recorded]:
    """Open a projection file or a run file.

    Raises
    ------
    InputFileError, MissingFileError
        It is neither, damaged, or not there.
    """
    if not is_run_file(path):
        with open_projections(path) as projections:
            yield _of_projections(projections)
        return
    with open_positions(path) as runs:
        yield _of_run(runs)


def _of_projections(file: ProjectionFile) -> Recorded:
    def frames(key: SweepKey) -> Iterator[Frame]:
        for info, pixels in file.frames(key.sweep):
            yield Frame(info, pixels)

    count = len(file) * file.shape[1]
    return Recorded(
        file.header,
        file.shape[1],
        Ledger(announced=count, received=count, announced_known=1),
        {SweepKey(number): True for number in range(len(file))},
        lambda key: file.sweep(key.sweep),
        frames,
    )


def _of_run(positions: list[Run]) -> Recorded:
    """Return the sweeps of a run, which is opened for each position."""
    keys: dict[SweepKey, bool] = {}
    most = 0
    for position, run in enumerate(positions):
        # (T, C, M): small beside the pixels.
        seq = _values(run, "frames/seq", 3)
        there = (seq >= 0) & np.isfinite(_values(run, "frames/z_um", 3))
        seen = (there & (_values(run, "frames/held_out", 3) == 0)).sum(axis=2)
        came = there.sum(axis=2)
        missing = np.maximum(_values(run, "frames_expected", 2).astype(np.int64) - came, 0)
        for channel, sweep in np.argwhere(came.T > 0).tolist():
            place = (sweep, channel)
            keys[SweepKey(sweep, channel, position)] = enough(int(seen[place]), int(missing[place]))
        most = max(most, seq.shape[2])

    def sweep_of(key: SweepKey) -> Sweep:
        return positions[key.position].sweep(key.sweep, key.channel)

    def frames(key: SweepKey) -> Iterator[Frame]:
        yield from positions[key.position].frames(key.sweep, key.channel)

    return Recorded(positions[0].header, most, positions[0].ledger, keys, sweep_of, frames)


def _values(run: Run, name: str, dimensions: int) -> NDArray[Any]:
    values = run.values(name)
    return values if values.ndim == dimensions else values[:, None]
