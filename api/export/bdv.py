"""BigDataViewer: an XML and an HDF5 file in BigDataViewer's layout, as a copy or as a link onto the run file.

Owns the layout of that HDF5 file: `/t00000/s00/0/cells` (Z, Y, X) uint16 for time point, setup and level,
`/s00/resolutions` and `/s00/subdivisions` (L, 3) in x, y, z, and the attribute `dataType`, without which
values above 32767 would be read as negative. A setup is a channel of a position, then the uncertainties.

A copy holds the volumes that were written when it was made, in chunks; gaps have no cells and are
MissingViews. A link is a small file of virtual datasets onto the run's own (`bdv_link`). uint16 is copied as
it is; float32 is scaled to the range of the values, which the setup's attributes `mdd_scale` and `mdd_offset`
undo.

The XML (SpimData 0.2) names the HDF5 file, the setups with their voxel size, channel and tile, the time
points, the views that are missing, and the transform of each view to µm.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # only written
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.export.options import Exported, Progress, about, as_text, channel_name, volumes_and_gaps
from microdiffusion.export.source import Picture
from microdiffusion.files import refuse_existing, staged
from microdiffusion.runfile import Factors

_CHUNK = (16, 64, 64)  # 128 KiB: what BigDataViewer reads at a time
_MOST = 65535


def paths_of(output: Path) -> tuple[Path, Path]:
    """Return the HDF5 and XML files of an export."""
    stem = output.with_suffix("") if output.suffix.lower() in (".xml", ".h5") else output
    return stem.with_name(f"{stem.name}.h5"), stem.with_name(f"{stem.name}.xml")


def numbers_of(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return the setup numbers of each picture and channel: channel by channel, position by position.

    Other writers keep the same order; the uncertainties come last.
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
    """Return the setups in the order of their numbers."""
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
    """Write a copy in BigDataViewer's layout."""
    finals = paths_of(output)
    refuse_existing(*finals)
    total, gaps = volumes_and_gaps(pictures)
    exported = Exported(list(finals), total, gaps)
    done = 0
    needed = 0 if compress else sum(picture.bytes // picture.dtype.itemsize * 2 for picture in pictures)
    with staged(*finals, needed_bytes=needed) as (hdf5, xml):
        with h5py.File(hdf5, "x", libver=("earliest", "v110")) as file:
            for picture, numbers in zip(pictures, numbers_of(pictures), strict=True):
                scale = _scale(picture)
                for number in numbers:
                    levels = [(level.factors, level.shape) for level in picture.levels]
                    write_setup(file, number, levels, scale)
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


def write_setup(
    file: h5py.File,
    number: int,
    levels: Sequence[tuple[Factors, tuple[int, int, int]]],
    scale: tuple[float, float] | None = None,
) -> None:
    """Write the metadata of a setup, whose levels have these factors and shapes (z, y, x)."""
    finest = levels[0][0]
    relative = [[own / base for own, base in zip(one, finest, strict=True)][::-1] for one, _ in levels]
    group = file.require_group(f"s{number:02d}")
    group.create_dataset("resolutions", data=np.array(relative, "<f8"))
    group.create_dataset("subdivisions", data=np.array([chunk_of(shape)[::-1] for _, shape in levels], "<i4"))
    # Of fixed length, which BigDataViewer's reader accepts.
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
    """Return scale and offset that map a picture's values to 0 ... 65535; None where they are uint16."""
    if picture.dtype.kind == "u":
        return None
    low, high = np.inf, -np.inf
    for t, channel in picture.all_written():
        voxels = picture.read(t, channel)
        low, high = min(low, float(voxels.min())), max(high, float(voxels.max()))
    if not high > low:
        return 1.0, low if np.isfinite(low) else 0.0
    return (high - low) / _MOST, low


@dataclass(frozen=True, slots=True)
class Setup:
    """A view setup: one channel of one position, over all time points.

    Attributes
    ----------
    name : str
    channel, tile : (number, name)
        What BigDataViewer groups by.
    shape : (Z, Y, X)
        Of the finest level.
    voxel_size_um, origin_um : (z, y, x)
        µm; the origin is the centre of the first voxel.
    """

    name: str
    channel: tuple[int, str]
    tile: tuple[int, str]
    shape: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    origin_um: tuple[float, float, float]


def spim_data(
    hdf5: str, setups: Sequence[Setup], time_points: range, missing: Iterable[tuple[int, int]]
) -> bytes:
    """Return the XML.

    Parameters
    ----------
    hdf5
        The HDF5 file's name, in the same folder.
    setups
        Setup s is number s.
    time_points
        Their numbers are those of the groups in the HDF5 file.
    missing
        (time point, setup) of the views that are not there.
    """
    root = ET.Element("SpimData", version="0.2")
    _text(root, "BasePath", ".", type="relative")
    sequence = ET.SubElement(root, "SequenceDescription")
    loader = ET.SubElement(sequence, "ImageLoader", format="bdv.hdf5")
    _text(loader, "hdf5", hdf5, type="relative")
    _setups(ET.SubElement(sequence, "ViewSetups"), setups)
    times = ET.SubElement(sequence, "Timepoints", type="range")
    _text(times, "first", time_points.start)
    _text(times, "last", time_points.stop - 1)
    views = set(missing)
    if views:
        about = ET.SubElement(sequence, "MissingViews")
        for time_point, number in sorted(views):
            ET.SubElement(about, "MissingView", timepoint=str(time_point), setup=str(number))
    registrations = ET.SubElement(root, "ViewRegistrations")
    for time_point in time_points:
        for number, setup in enumerate(setups):
            if (time_point, number) in views:
                continue
            one = ET.SubElement(
                registrations, "ViewRegistration", timepoint=str(time_point), setup=str(number)
            )
            transform = ET.SubElement(one, "ViewTransform", type="affine")
            _text(transform, "Name", "voxels to µm")
            _text(transform, "affine", _affine(setup))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _setups(parent: ET.Element, setups: Sequence[Setup]) -> None:
    for number, setup in enumerate(setups):
        one = ET.SubElement(parent, "ViewSetup")
        _text(one, "id", number)
        _text(one, "name", setup.name)
        _text(one, "size", " ".join(str(length) for length in reversed(setup.shape)))
        voxel = ET.SubElement(one, "voxelSize")
        _text(voxel, "unit", "µm")
        _text(voxel, "size", " ".join(repr(float(edge)) for edge in reversed(setup.voxel_size_um)))
        attributes = ET.SubElement(one, "attributes")
        for name, value in (
            ("illumination", 0),
            ("channel", setup.channel[0]),
            ("tile", setup.tile[0]),
            ("angle", 0),
        ):
            _text(attributes, name, value)
    kinds = {
        "Illumination": {0: "0"},
        "Channel": dict(setup.channel for setup in setups),
        "Tile": dict(setup.tile for setup in setups),
        "Angle": {0: "0"},
    }
    for kind, values in kinds.items():
        group = ET.SubElement(parent, "Attributes", name=kind.lower())
        for number, name in sorted(values.items()):
            one = ET.SubElement(group, kind)
            _text(one, "id", number)
            _text(one, "name", name)


def _affine(setup: Setup) -> str:
    """Return the affine transform from voxels to µm, rows in x, y, z; voxel centres are at integers."""
    z, y, x = setup.voxel_size_um
    at_z, at_y, at_x = setup.origin_um
    rows = (x, 0.0, 0.0, at_x, 0.0, y, 0.0, at_y, 0.0, 0.0, z, at_z)
    return " ".join(repr(float(value)) for value in rows)


def _text(parent: ET.Element, tag: str, value: object, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = str(value)
