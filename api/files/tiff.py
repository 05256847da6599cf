"""TIFF stacks: OME's, ImageJ's, Micro-Manager's and plain ones.

Owns the meaning of the axes: a stack's planes are z unless the file says otherwise, and one channel and one
position are expected, or chosen, because a volume has neither. tifffile is imported when it is needed. Pure
functions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DependencyError, InputFileError
from microdiffusion.files.stacks import (
    PIXEL_KEYS,
    STEP_KEYS,
    UNKNOWN,
    Notes,
    choose_part,
    length_um,
    stated,
    step_um,
    unit_um,
)
from microdiffusion.files.whole import missing_of_tiff

_DAMAGE = re.compile(
    "invalid page|circular|missing|corrupt|failed to re|raised|not found|out of range|zeroed"
)
"""Words of tifffile's warnings of a file that it reads only in part."""


def read_tiff(path: Path, part: str) -> tuple[NDArray[Any], Notes]:
    """Return the pixels ([T,] Z, Y, X) of a file, or of the `part` of it that is named, and its notes."""
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(
            f"Reading {path.name} needs tifffile: install it with `pip install tifffile`, "
            "or convert it to HDF5."
        ) from error
    said = _Said()
    log = logging.getLogger("tifffile")
    log.addHandler(said)
    try:
        with tifffile.TiffFile(path) as file:
            header = (file.ome_metadata or "") if file.is_ome else ""
            if "NDTiffStack" in path.name or "<BinaryOnly" in header:
                raise InputFileError(
                    f"{path} is one of several files, and another says what its planes are: name the "
                    "folder with the NDTiff.index, or the OME-TIFF whose header lists all."
                )
            parts = list(_parts(file.series))
            if not parts:
                raise InputFileError(f"{path} holds no image: copy or save it again.")
            number = choose_part(path, [name for name, _, _ in parts], part)
            _, series, place = parts[number]
            _refuse_partial(path, file, series, header, said.texts)
            pixels, axes = np.asarray(series.asarray()), str(series.axes)
            pixels = pixels[tuple(place.get(axis, slice(None)) for axis in axes)]
            axes = "".join(axis for axis in axes if axis not in place)
            pixels = _in_order(path, pixels, axes)
            if header:
                ome = tifffile.xml2dict(header).get("OME", {})
                return pixels, _ome_notes(ome, series.name, number, len(parts), place, pixels.shape)
            notes = _imagej_notes(file.imagej_metadata or {}, series.keyframe.tags)
            own = (file.micromanager_metadata or {}).get("Summary") or {}
            if own:  # Micro-Manager's own notes
                own = own | (series.keyframe.tags.valueof("MicroManagerMetadata") or {})
                step, pixel = (length_um(stated(own, *keys), "um") for keys in (STEP_KEYS, PIXEL_KEYS))
                found = zip((step, pixel, pixel), notes.edges_um, strict=True)
                z, y, x = (edge or other for edge, other in found)
                notes = Notes((z, y, x))
            return pixels, notes
    except InputFileError:
        raise
    except Exception as error:  # each decoder has its own errors for damaged data
        raise InputFileError(
            f"{path} cannot be read as TIFF ({error}): copy it again, or save it uncompressed."
        ) from error
    finally:
        log.removeHandler(said)


def _parts(images: Any) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Yield the volumes of a file: a name, the image that it is in, its place along axes such as C and R."""
    for number, image in enumerate(images):
        named = [image.name or str(number)] if len(images) > 1 else []
        sizes = dict(zip(image.axes, image.shape, strict=True))
        axes = [axis for axis, size in sizes.items() if size > 1 and axis not in "TZYXSQI" and "Z" in sizes]
        for place in np.ndindex(*(sizes[axis] for axis in axes)):
            chosen = dict(zip(axes, place, strict=True))
            yield ",".join([*named, *(f"{axis}{at}" for axis, at in chosen.items())]), image, chosen


class _Said(logging.Handler):
    """The warnings that tifffile logs of a file: it fills gaps with zeros, and only says so here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _refuse_partial(path: Path, file: Any, series: Any, header: str, said: list[str]) -> None:
    """Refuse a stack of which planes or files are missing, which tifffile would read as zeros."""
    lacking = missing_of_tiff(series.pages)
    if lacking:
        named = set(re.findall(r'FileName="([^"]+)"', header))
        absent = sorted(name for name in named if not (path.parent / name).is_file())
        files = f"; these files are not beside it: {shorten(', '.join(absent), 200)}" if absent else ""
        raise InputFileError(
            f"{path} lacks {len(lacking)} of its {len(series.pages)} planes (the first is plane "
            f"{lacking[0]}){files}: copy all files of the stack, or record it again; what there is can be "
            "saved as a stack of its own."
        )
    # Of an OME file, planes that lack are known by now; what is said of files may be of other images.
    known = "OME series" if series.kind == "ome" else "\n"
    broken = next((text for text in said if _DAMAGE.search(text) and known not in text), None)
    count = sum(len(each.pages) for each in file.series)
    if broken is None and series.kind in ("generic", "uniform") and len(file.pages) > count:
        broken = f"page {count + 1} is empty or of another size"
    if broken is not None:
        raise InputFileError(
            f"{path} is not whole ({shorten(broken.partition('> ')[2] or broken, 200)}): copy it again with "
            "all its files, or save what there is as a stack of its own."
        )


def _in_order(path: Path, pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return the pixels with axes ([T,] Z, Y, X)."""
    keep = [number for number, name in enumerate(axes) if pixels.shape[number] > 1 or name in "ZYX"]
    pixels = pixels.reshape([pixels.shape[number] for number in keep])
    axes = "".join(axes[number] for number in keep)
    if any(name in axes for name in "CS"):
        raise InputFileError(
            f"{path} has the axes {axes} {pixels.shape}: a volume has one channel and no colours, "
            "so save each channel as a file of its own."
        )
    # Unnamed planes (Q, I) or, without any z, planes that ImageJ calls time: a plain stack.
    above = axes.removesuffix("YX")
    if "Z" not in axes and above:
        above = above[:-1] + "Z"
    if len(above) == 2 and above != "ZT":
        above = "TZ"
    if above in ("TZ", "ZT", "Z") and axes.endswith("YX"):
        return pixels.swapaxes(0, 1) if above == "ZT" else pixels
    if pixels.ndim < 3:
        raise InputFileError(
            f"{path} holds a single image {pixels.shape}: a volume needs several planes (Z, Y, X)."
        )
    raise InputFileError(
        f"{path} has the axes {axes} {pixels.shape}: a volume is (Z, Y, X) or (T, Z, Y, X); reshape it."
    )


def _ome_notes(
    ome: Any, name: str, number: int, parts: int, place: dict[str, int], shape: tuple[int, ...]
) -> Notes:
    """Return the notes of an OME header on an image of that name, or on one of as many as there are."""
    images = ome.get("Image", {})
    images = images if isinstance(images, list) else [images]
    if len(images) == parts:
        images = [images[number]]
    elif named := [image for image in images if str(image.get("Name")) == name]:
        images = named
    every = [image.get("Pixels", {}) for image in images]
    edges = {
        tuple(
            length_um(each.get(f"PhysicalSize{axis}"), each.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "ZYX"
        )
        for each in every
    }
    z, y, x = edges.pop() if len(edges) == 1 else UNKNOWN
    z_um = _ome_z_um(every[0], place.get("C", 0), int(np.prod(shape[:-2]))) if len(every) == 1 else None
    rights = ome.get("Rights", {})
    licence = str(rights.get("RightsHeld", "")) if isinstance(rights, dict) else ""
    return Notes((z or step_um(z_um), y, x), licence, z_um)


def _ome_z_um(pixels: Any, channel: int, count: int) -> NDArray[np.float64] | None:
    """Return the stage position of every plane, in the order of the planes, where a header has them."""
    planes = pixels.get("Plane", [])
    planes = planes if isinstance(planes, list) else [planes]
    planes = [plane for plane in planes if plane.get("TheC", 0) == channel]
    if len(planes) != count or not all("PositionZ" in plane for plane in planes):
        return None
    scale = unit_um(planes[0].get("PositionZUnit", "µm"))
    ordered = sorted(planes, key=lambda plane: (plane.get("TheT", 0), plane.get("TheZ", 0)))
    z_um = (scale or 1.0) * np.array([float(plane["PositionZ"]) for plane in ordered])
    return z_um if np.ptp(z_um) > 0 else None


def _imagej_notes(notes: dict[str, Any], tags: Any) -> Notes:
    """Return the edges of a voxel from ImageJ's notes and a page's tags."""
    # Without a unit the tags count only in cm: inches are what programs write that know no scale.
    unit = notes.get("unit") or ("cm" if tags.valueof("ResolutionUnit", 1) == 3 else "")
    lateral = []
    for name in ("YResolution", "XResolution"):
        top, bottom = tags.valueof(name, (0, 1))
        lateral.append(length_um(bottom / top if top else None, unit))
    return Notes((length_um(notes.get("spacing"), unit), lateral[0], lateral[1]))
