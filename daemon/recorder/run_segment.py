"""What the recorder needs of one file of a run, however it is stored, and the choice between the storages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from microdiffusion.daemon.recorder.segment import Segment
from microdiffusion.daemon.recorder.swmr_segment import SwmrSegment
from microdiffusion.errors import DiskError
from microdiffusion.runfile import RunLayout, RunPlan, is_swmr_file

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class RunSegment(Protocol):
    """A run file that is being written; see `segment.Segment` and `swmr_segment.SwmrSegment`."""

    path: Path
    layout: RunLayout

    def write(self, name: str, index: tuple[int, ...], value: ArrayLike) -> None:
        """Write what `index` selects of a dataset."""
        ...

    def write_bytes(self, name: str, index: tuple[int, ...], content: memoryview, start: int) -> None:
        """Write bytes of what `index` selects of a dataset."""
        ...

    def read(self, name: str, index: tuple[int, ...] = ()) -> NDArray[Any]:
        """Return what `index` selects of a dataset. Any thread."""
        ...

    def force(self) -> None:
        """Force what was written to the disk itself."""
        ...

    def park(self) -> None:
        """Let go of the file until it is needed again."""
        ...

    def close(self) -> None:
        """Close it as it is."""
        ...

    def trim(self, time_points: int, *, most_bytes: int) -> bool:
        """Take away unused time points where that is cheap, and close it."""
        ...

    def lengthen(self, time_points: int, *, most_bytes: int) -> bool:
        """Make room for more time points; whether there is."""
        ...


def create_segment(path: Path, plan: RunPlan) -> RunSegment:
    """Create a run file in the storage that its plan names; errors as in `Segment.create`."""
    return SwmrSegment.create(path, plan) if plan.storage == "swmr" else Segment.create(path, plan)


def open_segment(path: Path) -> RunSegment:
    """Open a run file that is there, to go on with it; errors as in `Segment.open`."""
    try:
        swmr = is_swmr_file(path)
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror or error}): check its rights.") from error
    return SwmrSegment.open(path) if swmr else Segment.open(path)
