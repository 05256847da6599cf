"""The XML that BigDataViewer opens: SpimData 0.2 with an HDF5 image loader.

Owns the text: setups (a channel of a position), places in µm, time points, and the views that are missing.
BigDataViewer never opens a missing view, so a gap stays a gap. Pure; any thread.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setup:
    """A view setup: an image that is there at every time point.

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
    """Return the way from voxels to µm, row by row in x, y, z; voxels have their centres at whole numbers."""
    z, y, x = setup.voxel_size_um
    at_z, at_y, at_x = setup.origin_um
    rows = (x, 0.0, 0.0, at_x, 0.0, y, 0.0, at_y, 0.0, 0.0, z, at_z)
    return " ".join(repr(float(value)) for value in rows)


def _text(parent: ET.Element, tag: str, value: object, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = str(value)
