"""BigDataViewer: an XML and an HDF5 file in BigDataViewer's layout, as a copy or as a link onto the run file.

Owns the layout of that HDF5 file: `/t00000/s00/0/cells` (Z, Y, X) uint16 for time point, setup and level,
`/s00/resolutions` and `/s00/subdivisions` (L, 3) in x, y, z, and the attribute `dataType`, without which
values above 32767 would be read as negative. A setup is a channel of a position, then the uncertainties.

A copy holds what was written when it was made, in chunks; gaps have no cells and are MissingViews. A link is
a small file of virtual datasets onto the run's own (`bdv_link`). uint16 goes through as it is; float32 is
scaled to the range of the values, which the setup's attributes `mdd_scale` and `mdd_offset` undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from microdiffusion.export.bdv_xml import Setup, spim_data
from microdiffusion.export.options import Exported, Progress, about, as_text, channel_name, volumes_and_gaps
from microdiffusion.files import refuse_existing, staged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion.export.source import Picture

NAME = "bdv"
_CHUNK = (16, 64, 64)  # 128 KiB: what BigDataViewer asks for at a time
_MOST = 65535


def default_output(run: Path) -> Path:
    """Return the XML file where the export of a run goes; the HDF5 file has the same name."""
    return run.with_name(f"{run.stem}_bdv.xml")


def paths_of(output: Path) -> tuple[Path, Path]:
    """Return the HDF5 and XML files of an export."""
    stem = output.with_suffix("") if output.suffix.lower() in (".xml", ".h5") else output
    return stem.with_name(f"{stem.name}.h5"), stem.with_name(f"{stem.name}.xml")


def numbers_of(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return the setups' numbers, of each picture and channel: position after position for each channel.

    That is the order that other writers keep; the uncertainties come last.
    """
    order = sorted(
        (picture.kind != "volume", channel, place)
        for place, picture in enumerate(pictures)
        for channel in range(len(picture.channels))
    )
    found: list[list[int]] = [[] for _ in pictures]
    for number, (_, _, place) in enumerate(order):
        found[place].append(number)
    return found


def setups_of(pictures: Sequence[Picture]) -> list[Setup]:
    """Return the setups, by their numbers."""
    found: dict[int, Setup] = {}
    for picture, numbers in zip(pictures, numbers_of(pictures), strict=True):
        several = len(picture.run.header.positions) > 1
        for channel, number in enumerate(numbers):
            name = channel_name(picture, channel)
            shift = 0 if picture.kind == "volume" else len(picture.channels)
            found[number] = Setup(
                name=f"position {picture.name}, {name}" if several else name,
                channel=(channel + shift, name),
                tile=(picture.position, picture.name),
                shape=picture.levels[0].shape,
                voxel_size_um=picture.voxel_size_um(),
                origin_um=picture.origin_um(),
            )
    return [found[number] for number in sorted(found)]


def missing_views(pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    """Return (time point, setup) of each view that is not there."""
    return [
        (picture.time_points[t], numbers[channel])
        for picture, numbers in zip(pictures, numbers_of(pictures), strict=True)
        for t, channel in np.argwhere(~picture.written).tolist()
    ]


def write(pictures: Sequence[Picture], output: Path, *, compress: bool, progress: Progress) -> Exported:
    """Write a copy in BigDataViewer's layout.

    Raises
    ------
    InputFileError, NoRoomError, DiskError
        One of the two files exists, or cannot be written.
    """
    finals = paths_of(output)
    refuse_existing(*finals)
    total, gaps = volumes_and_gaps(pictures)
    exported = Exported(NAME, list(finals), total, gaps)
    done = 0
    needed = 0 if compress else sum(picture.bytes // picture.dtype.itemsize * 2 for picture in pictures)
    with staged(*finals, needed_bytes=needed) as (hdf5, xml):
        with h5py.File(hdf5, "x", libver=("earliest", "v110")) as file:
            for picture, numbers in zip(pictures, numbers_of(pictures), strict=True):
                scale = _scale(picture)
                _write_setups(file, picture, numbers, scale)
                told = as_text(about(picture)).encode()
                file.create_dataset(f"mdd/{picture.kind}_{picture.position}", data=np.bytes_(told))
                if scale is not None:
                    exported.notes.append(
                        f"{picture.kind}: BigDataViewer takes integers, so a value v of the run is stored as "
                        f"(v - {scale[1]:g}) / {scale[0]:g}"
                    )
                for t, channel in picture.all_written():
                    group = f"t{picture.time_points[t]:05d}/s{numbers[channel]:02d}"
                    for level, voxels in enumerate(picture.read_levels(t, channel)):
                        _cells(file, f"{group}/{level}/cells", voxels, scale, compress=compress)
                    done += 1
                    progress(done, total)
        text = spim_data(
            finals[0].name, setups_of(pictures), pictures[0].time_points, missing_views(pictures)
        )
        xml.write_bytes(text)
    return exported


def _write_setups(
    file: h5py.File, picture: Picture, numbers: Sequence[int], scale: tuple[float, float] | None
) -> None:
    """Write what BigDataViewer wants to know of a picture's setups."""
    resolutions = [[float(factor) for factor in reversed(level.factors)] for level in picture.levels]
    finest = resolutions[0]
    relative = [[factor / base for factor, base in zip(one, finest, strict=True)] for one in resolutions]
    chunks = [list(reversed(chunk_of(level.shape))) for level in picture.levels]
    for number in numbers:
        group = file.require_group(f"s{number:02d}")
        group.create_dataset("resolutions", data=np.array(relative, "<f8"))
        group.create_dataset("subdivisions", data=np.array(chunks, "<i4"))
        # Of fixed length: BigDataViewer's reader takes either.
        group.attrs.create("dataType", b"uint16", dtype="S6")
        if scale is not None:
            group.attrs["mdd_scale"], group.attrs["mdd_offset"] = scale


def chunk_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the block (z, y, x) in which BigDataViewer reads a level."""
    z, y, x = (min(most, length) for most, length in zip(_CHUNK, shape, strict=True))
    return z, y, x


def _cells(
    file: h5py.File, name: str, voxels: NDArray[Any], scale: tuple[float, float] | None, *, compress: bool
) -> None:
    if scale is not None:
        voxels = np.rint((voxels - scale[1]) / scale[0]).clip(0, _MOST).astype(np.uint16)
    depth, height, width = voxels.shape
    more: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compress else {}
    file.create_dataset(name, data=voxels, chunks=chunk_of((depth, height, width)), **more)


def _scale(picture: Picture) -> tuple[float, float] | None:
    """Return scale and offset that put a picture's values into 0 to 65535; None where they are uint16."""
    if picture.dtype.kind == "u":
        return None
    low, high = np.inf, -np.inf
    for t, channel in picture.all_written():
        voxels = picture.read(t, channel)
        low, high = min(low, float(voxels.min())), max(high, float(voxels.max()))
    if not high > low:
        return 1.0, low if np.isfinite(low) else 0.0
    return (high - low) / _MOST, low
