"""Link that opens a run in BigDataViewer without a copy: an XML and a small HDF5 file of virtual datasets.

Owns `run_bdv.xml` and `run_bdv.h5` beside a run file. The HDF5 file has BigDataViewer's layout (`bdv`), and
each of its `cells` is a virtual dataset onto one volume, or one level of its pyramid, in the run's own files,
which HDF5 finds by their names in the same folder. So BigDataViewer reads what the run file holds at that
moment.

During a run the link covers all of the room in the run's files; volumes that are not there yet show as zeros,
as in the run file itself. At the end of the run the link is made again, and gaps become MissingViews, which
BigDataViewer does not open. Functions hold no state; any thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.export.bdv import numbers_of, paths_of, setups_of, spim_data, write_setup
from microdiffusion.export.options import Exported
from microdiffusion.export.source import Picture, Scope
from microdiffusion.files import refuse_existing, staged
from microdiffusion.runfile import (
    Factors,
    Run,
    Status,
    level_shape,
    open_hdf5,
    open_positions,
    position_prefix,
    segment_path,
)

MARK = "mdd_link"
"""Attribute of the HDF5 file: the run_id of the linked run."""
_READABLE = frozenset({"gzip", "shuffle", "fletcher32", "lzf"})


@dataclass(frozen=True, slots=True)
class _LinkedFile:
    """One of the run's files: its name as seen from the link, its first time point, and how many it has."""

    name: str
    first: int
    count: int


def link_run(run: Path, output: Path | None = None) -> Exported:
    """Make a link to a run, also during the run.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such run, BigDataViewer cannot read it in place, or one of the two files exists.
    DiskError
        The files cannot be written.
    """
    finals = paths_of(output or run.with_name(f"{run.stem}_bdv.xml"))
    refuse_existing(*finals)
    with open_positions(run) as positions, staged(*finals) as (hdf5, xml):
        volumes, lost = _write(positions, finals, hdf5, xml)
    exported = Exported(list(finals), volumes)
    exported.notes.append(
        f"a link: keep {finals[0].name} and {finals[1].name} with the run file; "
        + (f"{lost} views are missing" if lost else "no view is missing")
    )
    return exported


def renew_link(run: Path) -> bool:
    """Make the link beside a run again, of what the run holds now; False where there is none to this run.

    Raises
    ------
    InputFileError
        The run cannot be read.
    DiskError
        The files cannot be exchanged.
    """
    finals = paths_of(run.with_name(f"{run.stem}_bdv.xml"))
    with open_positions(run) as positions:
        if not finals[1].is_file() or _run_of(finals[0]) != positions[0].header.run_id:
            return False
        try:
            with tempfile.TemporaryDirectory(prefix=f".{finals[0].name}.part-", dir=run.parent) as folder:
                hdf5, xml = (Path(folder) / final.name for final in finals)
                _write(positions, finals, hdf5, xml)
                os.replace(hdf5, finals[0])
                os.replace(xml, finals[1])
        except OSError as error:
            raise DiskError(
                f"{finals[1]} cannot be renewed ({error.strerror or error}): close BigDataViewer, remove "
                f"{finals[0].name} and {finals[1].name}, and make them by `mdd export --to bdv --link`."
            ) from error
    return True


def _run_of(hdf5: Path) -> str:
    """Return the run_id of a link; empty where the file is no link."""
    try:
        with h5py.File(hdf5, "r") as file:
            mark = file.attrs.get(MARK, b"")
    except OSError:
        return ""
    return mark.decode() if isinstance(mark, bytes) else str(mark)


def _write(positions: list[Run], finals: tuple[Path, Path], hdf5: Path, xml: Path) -> tuple[int, int]:
    """Write both files; return the numbers of volumes that are there, and of missing views."""
    run = positions[0]
    parts = list(_parts(run, finals[0].parent))
    header, closed = run.header, run.closed
    shapes = [(factors, level_shape(header.shape, factors)) for factors in run.pyramid_factors]
    status = [one.status.reshape(-1, len(header.channels)) for one in positions]
    room = parts[-1].first + parts[-1].count
    if closed:
        room = max(1, *(one.used for one in positions))
    pictures = [Picture(one, "volume", Scope(), range(room)) for one in positions]
    # During the run, a volume that is absent may still come.
    missing = [
        (t, numbers[channel])
        for one, numbers in zip(status, numbers_of(pictures), strict=True)
        for t, channel in np.argwhere(one[:room] != Status.WRITTEN).tolist()
        if closed or one[t, channel] != Status.EMPTY
    ]
    setups = setups_of(pictures)
    with h5py.File(hdf5, "x", libver=("v110", "v110")) as file:
        file.attrs[MARK] = np.bytes_(header.run_id.encode())
        for number in range(len(setups)):
            write_setup(file, number, shapes)
        gone = set(missing)
        for part in parts:
            _write_cells(file, run, part, shapes, gone, room)
    xml.write_bytes(spim_data(finals[0].name, setups, range(room), missing))
    return sum(int(np.count_nonzero(picture.written)) for picture in pictures), len(missing)


def _parts(run: Run, folder: Path) -> Iterator[_LinkedFile]:
    """Yield the run's files; refuse those that BigDataViewer cannot read in place."""
    for number in range(1_000_000):
        path = segment_path(run.path, number)
        if not path.is_file():
            return
        with open_hdf5(path) as file:
            volume = file["volume"]
            if volume.dtype != np.uint16:
                raise InputFileError(
                    f"{path} holds {volume.dtype}, and BigDataViewer takes uint16: "
                    "make a copy, without --link."
                )
            filters = set(getattr(volume, "_filters", {}))
            if filters - _READABLE:
                raise InputFileError(
                    f"{path} is compressed in a way that BigDataViewer does not know "
                    f"({', '.join(sorted(filters))}): make a copy, without --link."
                )
            first, count = int(file.attrs["first_time_point"]), int(volume.shape[0])
        try:
            name = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
        except ValueError:  # another drive
            name = path.resolve().as_posix()
        yield _LinkedFile(name, first, count)


def _write_cells(
    file: h5py.File,
    run: Run,
    part: _LinkedFile,
    shapes: list[tuple[Factors, tuple[int, int, int]]],
    gone: set[tuple[int, int]],
    room: int,
) -> None:
    header = run.header
    channels = len(header.channels)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    for position in range(len(header.positions)):
        prefix = position_prefix(position)
        for level, (_, shape) in enumerate(shapes):
            lead = (part.count,) if channels == 1 else (part.count, channels)
            name = (prefix + (f"pyramid/{level}" if level else "volume")).encode()
            source = h5py.h5s.create_simple((*lead, *shape))
            target = h5py.h5s.create_simple(shape)
            for t in range(min(part.count, room - part.first)):
                for channel in range(channels):
                    number = channel * len(header.positions) + position
                    if (part.first + t, number) in gone:
                        continue
                    place = (t,) if channels == 1 else (t, channel)
                    source.select_hyperslab((*place, 0, 0, 0), (*(1 for _ in place), *shape))
                    # h5py's VirtualLayout takes several times as long, and there are thousands of these.
                    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                    creation.set_virtual(target, os.fsencode(part.name.replace("%", "%%")), name, source)
                    cells = f"t{part.first + t:05d}/s{number:02d}/{level}/cells".encode()
                    h5py.h5d.create(file.id, cells, h5py.h5t.STD_U16LE, target, creation, lcpl=links)
