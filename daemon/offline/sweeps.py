"""Sweeps that lie in a file: a projection file's, or those of a run file, with the frames that they are of.

What `mdd reconstruct` reads from. One thread; nothing is changed, and of a run that goes on what is there
when it is asked for is what counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from microdiffusion.daemon.runs import enough
from microdiffusion.files import open_projections
from microdiffusion.frames import Frame, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import open_hdf5, open_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.files import ProjectionFile
    from microdiffusion.header import RunHeader
    from microdiffusion.runfile import Run


class SweepKey(NamedTuple):
    """Which sweep."""

    sweep: int
    channel: int = 0
    position: int = 0


class Recorded(Protocol):
    """A file of sweeps."""

    @property
    def header(self) -> RunHeader:
        """Geometry, beam and camera."""
        ...

    @property
    def frames_per_sweep(self) -> int:
        """Most frames of a sweep."""
        ...

    def keys(self) -> list[SweepKey]:
        """Return the sweeps that have enough frames, session by session, in time."""
        ...

    def all_keys(self) -> list[SweepKey]:
        """Return those that have any."""
        ...

    def sweep(self, key: SweepKey) -> Sweep:
        """Return what is reconstructed from."""
        ...

    def frames(self, key: SweepKey) -> Iterator[Frame]:
        """Yield its frames, held-out ones included."""
        ...

    def ledger(self) -> Ledger:
        """Return where the frames went before they got here."""
        ...


def is_run_file(path: Path) -> bool:
    """Whether this is a run file; what cannot be opened is none, and is refused by whoever opens it."""
    try:
        with open_hdf5(path) as file:
            return "mdd_layout" in file.attrs
    except OSError:
        return False


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
            yield RecordedProjections(projections)
        return
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(open_run(path))
        others = [
            stack.enter_context(open_run(path, position=position))
            for position in range(1, len(first.header.positions))
        ]
        yield RecordedRun([first, *others])


class RecordedProjections:
    """A projection file: one session."""

    def __init__(self, projections: ProjectionFile) -> None:
        self._projections = projections

    @property
    def header(self) -> RunHeader:
        """See `Recorded`."""
        return self._projections.header

    @property
    def frames_per_sweep(self) -> int:
        """See `Recorded`."""
        return self._projections.shape[1]

    def keys(self) -> list[SweepKey]:
        """See `Recorded`."""
        return [SweepKey(number) for number in range(len(self._projections))]

    def all_keys(self) -> list[SweepKey]:
        """See `Recorded`."""
        return self.keys()

    def sweep(self, key: SweepKey) -> Sweep:
        """See `Recorded`."""
        return self._projections.sweep(key.sweep)

    def frames(self, key: SweepKey) -> Iterator[Frame]:
        """See `Recorded`."""
        for info, pixels in self._projections.frames(key.sweep):
            yield Frame(info, pixels)

    def ledger(self) -> Ledger:
        """See `Recorded`."""
        frames = len(self._projections) * self._projections.shape[1]
        return Ledger(announced=frames, received=frames, announced_known=1)


class RecordedRun:
    """A run file: every channel and position.

    Parameters
    ----------
    positions : list of Run
        The run, opened for each position.
    """

    def __init__(self, positions: list[Run]) -> None:
        self._positions = positions
        # (T, C, M) of each position: small beside the pixels.
        self._seq = [self._all(run, "frames/seq", 3) for run in positions]
        self._z_um = [self._all(run, "frames/z_um", 3) for run in positions]
        self._held_out = [self._all(run, "frames/held_out", 3) != 0 for run in positions]
        self._expected = [self._all(run, "frames_expected", 2) for run in positions]

    @staticmethod
    def _all(run: Run, name: str, dimensions: int) -> NDArray[Any]:
        values = run.values(name)
        return values if values.ndim == dimensions else values[:, None]

    @property
    def header(self) -> RunHeader:
        """See `Recorded`."""
        return self._positions[0].header

    @property
    def frames_per_sweep(self) -> int:
        """See `Recorded`."""
        return int(self._seq[0].shape[2])

    def all_keys(self) -> list[SweepKey]:
        """See `Recorded`."""
        found = []
        for position, seq in enumerate(self._seq):
            there = ((seq >= 0) & np.isfinite(self._z_um[position])).any(axis=2)
            found += [(position, channel, sweep) for sweep, channel in np.argwhere(there).tolist()]
        return [SweepKey(sweep, channel, position) for position, channel, sweep in sorted(found)]

    def keys(self) -> list[SweepKey]:
        """See `Recorded`."""
        return [key for key in self.all_keys() if self._enough(key)]

    def sweep(self, key: SweepKey) -> Sweep:
        """See `Recorded`."""
        return self._positions[key.position].sweep(key.sweep, key.channel)

    def frames(self, key: SweepKey) -> Iterator[Frame]:
        """See `Recorded`."""
        yield from self._positions[key.position].frames(key.sweep, key.channel)

    def ledger(self) -> Ledger:
        """See `Recorded`."""
        return self._positions[0].ledger

    def _enough(self, key: SweepKey) -> bool:
        place = (key.sweep, key.channel)
        seq, held_out = self._seq[key.position][place], self._held_out[key.position][place]
        there = (seq >= 0) & np.isfinite(self._z_um[key.position][place])
        seen = int((there & ~held_out).sum())
        missing = max(int(self._expected[key.position][place]) - int(there.sum()), 0)
        return enough(seen, missing)
