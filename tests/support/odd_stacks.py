"""Stacks as microscopes, copies and crashes leave them, and what is right about each.

`ODD_STACKS` maps a name to how it is made and what must follow: the voxels of `PIXELS` (with the edges of a
voxel), or a refusal whose sentence holds certain words. Made by the published libraries, then damaged.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile

PIXELS = np.random.default_rng(14).integers(90, 4000, (12, 16, 20)).astype(np.uint16)
Edges = tuple[float | None, float | None, float | None]
UNKNOWN: Edges = (None, None, None)


@dataclass(frozen=True)
class Odd:
    """A stack: `make` writes it into a folder; it is refused in these `words`, or else is `pixels`."""

    make: Callable[[Path], Path]
    words: str = ""
    pixels: np.ndarray = field(default_factory=lambda: PIXELS)
    edges: Edges = UNKNOWN


def tiff(name: str, pixels: np.ndarray = PIXELS, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        tifffile.imwrite(path, pixels, **({"photometric": "minisblack"} | options))
        return path

    return make


def changed(
    make: Callable[[Path], Path], change: Callable[[bytes], bytes], name: str = ""
) -> Callable[[Path], Path]:
    def damaged(folder: Path) -> Path:
        path = make(folder)
        path = path / name if name else path
        path.write_bytes(change(path.read_bytes()))
        return path

    return damaged


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def zeroed(share: float) -> Callable[[bytes], bytes]:
    return lambda data: cut(share)(data).ljust(len(data), b"\0")


def more_planes(data: bytes) -> bytes:
    """Let the OME header announce planes that were never taken: what an aborted acquisition leaves."""
    assert data.count(b'SizeZ="12"') == 1
    return data.replace(b'SizeZ="12"', b'SizeZ="19"').replace(b'PlaneCount="12"', b'PlaneCount="19"')


def page_by_page(folder: Path) -> Path:
    with tifffile.TiffWriter(folder / "pages.tif") as file:
        for plane in PIXELS:
            file.write(plane, contiguous=False, metadata=None)
    return folder / "pages.tif"


OTHER = PIXELS[::-1] // 2 + 7


def positions(*names: str | None, **options: Any) -> Callable[[Path], Path]:
    """Return what writes an OME-TIFF of several positions: `PIXELS`, then `OTHER`."""

    def make(folder: Path) -> Path:
        with tifffile.TiffWriter(folder / "two.ome.tif", ome=True) as file:
            for number, (name, pixels) in enumerate(zip(names, (PIXELS, OTHER), strict=True)):
                notes = {"axes": "ZYX", "PhysicalSizeX": 0.25 + number} | ({"Name": name} if name else {})
                file.write(pixels, metadata=notes, photometric="minisblack", **options)
        return folder / "two.ome.tif"

    return make


def second_file_of_two(folder: Path) -> Path:
    """The file of the second position of an OME-TIFF whose first position was not copied."""
    path = positions("Pos0", "Pos1")(folder)
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    made = tiff("second.ome.tif", OTHER, ome=True, metadata={"axes": "ZYX"})(folder)
    path.unlink()
    with tifffile.TiffFile(made) as file:
        uuid = re.search(r'UUID="(urn:uuid:[^"]+)"', file.ome_metadata)[1]
    own = f'<UUID FileName="second.ome.tif">{uuid}</UUID>'
    other = '<UUID FileName="first.ome.tif">urn:uuid:1</UUID>'
    text = re.sub(r' UUID="urn:uuid:[^"]+"', f' UUID="{uuid}"', text, count=1)
    for each in (other, own):
        text = re.sub(
            r"<TiffData[^>]*/>", f'<TiffData IFD="0" PlaneCount="12">{each}</TiffData>', text, count=1
        )
    tifffile.tiffcomment(made, text.encode())
    return made


def two_shapes(folder: Path) -> Path:
    with tifffile.TiffWriter(folder / "two.tif") as file:
        for pixels in (PIXELS, OTHER[:, :10]):
            for plane in pixels:
                file.write(plane, contiguous=False, metadata=None)
    return folder / "two.tif"


def one_file_of_two(folder: Path) -> Path:
    """An OME-TIFF of two files, of which the second was not copied."""
    path = tiff("one.ome.tif", PIXELS[:6], ome=True, metadata={"axes": "ZYX"})(folder)
    header = tifffile.TiffFile(path)
    with header:
        text = header.ome_metadata
    uuid = re.search(r'UUID="(urn:uuid:[^"]+)"', text)[1]
    other = uuid[:-4] + "ffff"
    blocks = "".join(
        f'<TiffData FirstZ="{first}" IFD="0" PlaneCount="6"><UUID FileName="{name}">{each}</UUID></TiffData>'
        for first, name, each in ((0, "one.ome.tif", uuid), (6, "other.ome.tif", other))
    )
    text = re.sub(r"<TiffData.*/>", blocks, text).replace('SizeZ="6"', 'SizeZ="12"')
    tifffile.tiffcomment(path, text.encode())
    return path


def binary_only(folder: Path) -> Path:
    """A file of an OME-TIFF whose header is in another."""
    path = tiff("b.ome.tif", PIXELS[:6], ome=True, metadata={"axes": "ZYX"})(folder)
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    only = '<BinaryOnly MetadataFile="master.ome.tif" UUID="urn:uuid:1"/></OME>'
    tifffile.tiffcomment(path, (text[: text.index("<Image")] + only).encode())
    return path


def ndtiff(
    numbers: list[int] = list(range(12)),  # noqa: B006 is not changed
    *,
    summary: dict[str, Any] | None = None,
    notes: Callable[[int], dict[str, Any]] = lambda z: {},
    index: bool = True,
    parts: tuple[dict[str, Any], ...] = ({},),
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import gc

        import ndstorage

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the library's writer leaves a file open
            dataset = ndstorage.NDTiffDataset(str(folder), name="v", writable=True)
            dataset.initialize(summary or {})
            for number, part in enumerate(parts):
                for z in numbers:
                    dataset.put_image(part | {"z": z}, (PIXELS, OTHER)[number % 2][z % 12], notes(z))
            dataset.finish()
            dataset.close()
            path = Path(dataset.path)
            del dataset
            gc.collect()
        if not index:
            (path / "NDTiff.index").unlink()
        return path

    return make


TILES: dict[str, Any] = {
    "summary": {"GridPixelOverlapX": 0, "GridPixelOverlapY": 0},
    "parts": ({"row": 0, "column": 0},),
}


def ndtiff_index_cut(entries: int, **options: Any) -> Callable[[Path], Path]:
    """A data set whose index ends after so many images, exactly between two entries."""

    def make(folder: Path) -> Path:
        path = ndtiff(**options)(folder)
        index = path / "NDTiff.index"
        data, end = index.read_bytes(), 0
        for _ in range(entries):
            for _ in range(2):  # its axes, the name of its file
                end += 4 + int.from_bytes(data[end : end + 4], "little")
            end += 32
        index.write_bytes(data[:end])
        return path

    return make


def pyramid(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Put a data set where one with several resolutions has it."""

    def moved(folder: Path) -> Path:
        path = make(folder)
        (folder / "pyramid").mkdir()
        path.rename(folder / "pyramid" / "Full resolution")
        return folder / "pyramid"

    return moved


def ndtiff_cut_twice(folder: Path) -> Path:
    """A data set of which index and pixels were cut after the same image: a copy made while it grew."""
    path = ndtiff_index_cut(7)(folder)
    (file,) = path.glob("*.tif")
    with tifffile.TiffFile(file) as pages:
        end = pages.pages[7].offset
    file.write_bytes(file.read_bytes()[:end])
    return path


def ndtiff_without_file(folder: Path) -> Path:
    path = ndtiff()(folder)
    (file,) = path.glob("*.tif")
    file.unlink()
    return path


def ndtiff_unlisted_file(folder: Path) -> Path:
    """A data set whose index does not name its second file at all."""
    path = ndtiff()(folder)
    (file,) = path.glob("*.tif")
    (path / "v_NDTiffStack_1.tif").write_bytes(file.read_bytes())
    return path


def with_dead_pixel(count: int) -> np.ndarray:
    """Return what a program leaves that stopped, of a camera with a pixel that is always dark."""
    pixels = stopped_after(count)
    pixels[:, 3, 4] = 0
    return pixels


def padded() -> np.ndarray:
    """Return what was registered: a row of zeros at an edge of each plane."""
    pixels = np.pad(np.tile(PIXELS, (1, 8, 1)), ((0, 0), (0, 1), (0, 0)))
    pixels[-1, -3:] = 0
    return pixels


def micro_manager(planes: int = 12, *, indexed: bool = True) -> Callable[[Path], Path]:
    """Return what writes a file as Micro-Manager does, to be of 12 slices, without OME's header."""
    summary = {"MicroManagerVersion": "2.0", "Slices": 12, "Frames": 1, "Channels": 1, "z-step_um": 2.0}

    def block(mark: int, text: bytes) -> bytes:
        return struct.pack("<II", mark, len(text)) + text + bytes(len(text) % 2)

    def make(folder: Path) -> Path:
        begin = block(2355492, json.dumps(summary).encode())
        images, entries = b"", []
        for z, plane in enumerate(PIXELS[:planes]):
            notes = json.dumps({"PixelSizeUm": 0.25, "ZPositionUm": 2.0 * z}).encode() + b"\0"
            notes += bytes(len(notes) % 2)
            at = 32 + len(begin) + len(images)
            entries.append(struct.pack("<5I", 0, z, 0, 0, at))
            at += 162  # after the directory, with room for resolutions
            values = {256: 20, 257: 16, 258: 16, 259: 1, 262: 1, 273: at, 278: 16, 279: plane.nbytes}
            tags = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
            tags.append(struct.pack("<HHII", 51123, 2, len(notes), at + plane.nbytes))
            follows = at + plane.nbytes + len(notes)
            link = follows if z < planes - 1 else 0
            images += struct.pack("<H", 9) + b"".join(tags) + struct.pack("<I", link) + bytes(48)
            images += plane.tobytes() + notes
        settings = block(347834724, b'{"Channels":[]}')
        comments = block(84720485, b'{"Summary":""}')
        at = 32 + len(begin) + len(images)
        places = (54773648, at + len(settings + comments), 483765892, at, 99384722, at + len(settings))
        if not indexed:  # it was killed before it wrote what comes last
            places, settings, entries = (54773648, 0, 483765892, 0, 99384722, 0), b"", []
        header = b"II*\0" + struct.pack("<7I", 32 + len(begin), *places)
        path = folder / "v_MMStack_Default.tif"
        path.write_bytes(
            header + begin + images + settings + comments + struct.pack("<II", 3453623, len(entries))
            + b"".join(entries)
        )  # fmt: skip
        return path

    return make


def hdf5_elsewhere(folder: Path) -> Path:
    with h5py.File(folder / "l.h5", "w") as file:
        file["volume"] = h5py.ExternalLink("pixels.h5", "/volume")
    return folder / "l.h5"


def cut_ndtiff(folder: Path) -> Path:
    path = ndtiff()(folder)
    (file,) = path.glob("*.tif")
    file.write_bytes(cut(0.5)(file.read_bytes()))
    return path


def hdf5(**options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "v.h5", "w") as file:
            file.create_dataset("volume", data=PIXELS, chunks=(1, 16, 20), **options)
        return folder / "v.h5"

    return make


def hdf5_begun(folder: Path) -> Path:
    with h5py.File(folder / "begun.h5", "w") as file:
        dataset = file.create_dataset("volume", PIXELS.shape, "u2", chunks=(1, 16, 20))
        dataset[:7] = PIXELS[:7]
    return folder / "begun.h5"


def hdf5_linked(folder: Path) -> Path:
    layout = h5py.VirtualLayout(PIXELS.shape, "u2")
    layout[:] = h5py.VirtualSource("pixels.h5", "volume", PIXELS.shape)
    with h5py.File(folder / "linked.h5", "w") as file:
        file.create_virtual_dataset("volume", layout)
    return folder / "linked.h5"


def hdf5_linked_to_none(folder: Path) -> Path:
    (folder / "pixels.h5").write_bytes(b"no HDF5 at all")
    return hdf5_linked(folder)


def run_with_header(header: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "run.h5", "w") as file:
            file["volume"] = PIXELS
            file["mdd/run_header"] = header
        return folder / "run.h5"

    return make


def run_with_gap(folder: Path) -> Path:
    with h5py.File(folder / "run.h5", "w") as file:
        file["volume"] = np.stack([PIXELS, np.zeros_like(PIXELS)])
        file["mdd/status"] = np.array([1, 0], np.uint8)
    return folder / "run.h5"


def hdf5_external(folder: Path) -> Path:
    """Pixels in a file of their own, which was cut."""
    with h5py.File(folder / "e.h5", "w") as file:
        file.create_dataset("volume", data=PIXELS, external=[(str(folder / "raw.bin"), 0, PIXELS.nbytes)])
    (folder / "raw.bin").write_bytes((folder / "raw.bin").read_bytes()[:3000])
    return folder / "e.h5"


def hdf5_virtual(name: str = "volume", written: int = 12, mapped: int = 12) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "pixels.h5", "w") as file:
            dataset = file.create_dataset(name, PIXELS.shape, "u2", chunks=(1, 16, 20))
            dataset[:written] = PIXELS[:written]
        layout = h5py.VirtualLayout(PIXELS.shape, "u2")
        layout[:mapped] = h5py.VirtualSource("pixels.h5", "volume", PIXELS.shape)[:mapped]
        with h5py.File(folder / "linked.h5", "w") as file:
            file.create_virtual_dataset("volume", layout)
        return folder / "linked.h5"

    return make


def without_bytes(make: Callable[[Path], Path], tag: str) -> Callable[[Path], Path]:
    """A page of which a strip or tile is said to have no bytes: reserved, and never written."""

    def damaged(folder: Path) -> Path:
        path = make(folder)
        with tifffile.TiffFile(path) as file:
            at = file.pages[5].tags[tag].valueoffset
        data = bytearray(path.read_bytes())
        data[at : at + 4] = bytes(4)
        path.write_bytes(data)
        return path

    return damaged


def stopped_after(count: int) -> np.ndarray:
    """Return what a program leaves that wrote into reserved room and stopped."""
    pixels = np.zeros_like(PIXELS)
    pixels.reshape(-1)[:count] = PIXELS.reshape(-1)[:count]
    return pixels


def with_zeros() -> np.ndarray:
    """Return what has planes and pixels without light: a mask, a phantom."""
    pixels = np.where(PIXELS > 2000, PIXELS, 0)
    pixels[9:] = 0
    return pixels


def voxel(*edges: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = hdf5()(folder)
        with h5py.File(path, "a") as file:
            file["volume"].attrs["voxel_size_um"] = edges
        return path

    return make


def npy(array: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "v.npy", array)
        return folder / "v.npy"

    return make


def empty(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).touch()
        return folder / name

    return make


def a_folder(folder: Path) -> Path:
    (folder / "stack.tif").mkdir()
    return folder / "stack.tif"


def with_nan() -> np.ndarray:
    pixels = PIXELS.astype(np.float32)
    pixels[3, 4, 5] = np.nan
    return pixels


TILED = {"tile": (32, 32), "metadata": None, "compression": "zlib"}
OME, IMAGEJ = {"ome": True, "metadata": {"axes": "ZYX"}}, {"imagej": True}


def imagej(**notes: Any) -> Callable[[Path], Path]:
    density = notes.pop("resolution", (4, 4))
    return tiff("ij.tif", imagej=True, resolution=density, metadata={"axes": "ZYX", **notes})


def own_names(z: int) -> dict[str, Any]:
    """Return the metadata of pycromanager's engine."""
    return {"PixelSize_um": 0.25, "ZPosition_um_Intended": 10.0 + 2.0 * z}


def core_names(z: int) -> dict[str, Any]:
    return {"PixelSizeUm": 0.25, "ZPositionUm": 50.0 - 2.0 * z}


ODD_STACKS: dict[str, Odd] = {
    # Shorter than it says
    "OME that announces more planes": Odd(
        changed(tiff("v.ome.tif", **OME), more_planes), "lacks 7 of its 19"
    ),
    "OME, one file of two": Odd(one_file_of_two, r"lacks 6 of its 12 planes .*other\.ome\.tif"),
    "OME whose header is elsewhere": Odd(binary_only, "one of several files"),
    "OME, cut": Odd(changed(tiff("v.ome.tif", **OME), cut(0.5)), "is not whole"),
    "pages, cut": Odd(changed(page_by_page, cut(0.6)), "is not whole"),
    "pages, zeroed end": Odd(changed(page_by_page, zeroed(0.6)), "is not whole"),
    "compressed, cut": Odd(changed(tiff("c.tif", compression="zlib"), cut(0.6)), "not whole|cannot be read"),
    "compressed without notes, cut": Odd(
        changed(tiff("c.tif", compression="zlib", metadata=None), cut(0.6)), "not whole|cannot be read"
    ),
    "compressed, flipped": Odd(
        changed(
            tiff("c.tif", compression="zlib", metadata=None),
            lambda data: data[:5000] + bytes(300) + data[5300:],
        ),
        "not whole|cannot be read",
    ),
    "ImageJ, cut": Odd(changed(tiff("ij.tif", **IMAGEJ), cut(0.5)), "is not whole"),
    "ImageJ, zeroed end": Odd(changed(tiff("ij.tif", **IMAGEJ), zeroed(0.5)), "cannot be read"),
    "NDTiff that skips a z": Odd(ndtiff([0, 1, 2, 3, 5, 6, 7]), "lacks all images of z = 4"),
    "NDTiff without its index": Odd(ndtiff(index=False), "NDTiff.index"),
    "NDTiff, cut": Odd(cut_ndtiff, "cannot be read"),
    "NDTiff, its index cut": Odd(ndtiff_index_cut(7), "v_NDTiffStack.tif holds more images than the index"),
    "NDTiff pyramid, its index cut": Odd(pyramid(ndtiff_index_cut(7, **TILES)), "holds more images than"),
    "NDTiff, index and pixels cut": Odd(ndtiff_cut_twice, "v_NDTiffStack.tif was not finished"),
    "NDTiff, its index empty": Odd(ndtiff_index_cut(0), "holds no image|more images than the index"),
    "NDTiff, a file that lacks": Odd(ndtiff_without_file, "lacks the file v_NDTiffStack.tif"),
    "NDTiff, a file that no index names": Odd(ndtiff_unlisted_file, "v_NDTiffStack_1.tif holds more images"),
    "NDTiff that announces more planes": Odd(
        ndtiff([0, 1, 2, 3], summary={"Slices": 12}), "lacks all images of z = 4, 5, 6, 7, 8, 9, 10, 11"
    ),
    "NDTiff that intends more planes": Odd(
        ndtiff([0, 1, 2, 3], summary={"IntendedDimensions": {"z": 6, "time": 9}}), "lacks all .* z = 4, 5:"
    ),
    "NDTiff without its first planes": Odd(
        ndtiff([1, 2, 3], summary={"Slices": 4}), "lacks all images of z = 0:"
    ),
    "HDF5, cut": Odd(changed(hdf5(), cut(0.7)), "cannot be read as HDF5"),
    "HDF5, begun": Odd(hdf5_begun, "not whole .*never written"),
    "HDF5, linked pixels absent": Odd(hdf5_linked, "not whole .*pixels.h5"),
    "run with a gap": Odd(run_with_gap, "lacks the volumes of 1 time point of 2"),
    "NPY, cut": Odd(changed(npy(PIXELS), cut(0.5)), "cannot be read as NPY"),
    "TIFF, a page without bytes": Odd(without_bytes(page_by_page, "StripOffsets"), "lacks 1 of its 12"),
    "TIFF, a tile without bytes": Odd(
        without_bytes(tiff("t.tif", np.tile(PIXELS, (1, 4, 4)), **TILED), "TileByteCounts"),
        "lacks 1 of its 12 planes .*plane 6",
    ),
    "TIFF, stopped": Odd(tiff("s.tif", stopped_after(7 * 320)), "plane 8 of 12 holds nothing but zeros"),
    "NPY, stopped in a plane": Odd(npy(stopped_after(7 * 320 + 50)), "plane 8 of 12 ends in zeros"),
    "TIFF of Micro-Manager, aborted": Odd(micro_manager(7), "is not whole"),
    "TIFF of Micro-Manager, killed": Odd(micro_manager(7, indexed=False), "is not whole"),
    "TIFF, stopped, a dead pixel": Odd(
        tiff("s.tif", with_dead_pixel(7 * 320)), "plane 8 of 12 holds nothing"
    ),
    "NPY, stopped in a plane, a dead pixel": Odd(npy(with_dead_pixel(7 * 320 + 50)), "plane 8 of 12 ends in"),
    "HDF5, the volume is in another file": Odd(hdf5_elsewhere, "pixels.h5 is not beside it"),
    "NPY, a time point lacks": Odd(
        npy(np.stack([PIXELS, 0 * PIXELS])), "time point 1: it holds nothing but zeros|time points"
    ),
    "HDF5, external pixels cut": Odd(hdf5_external, "not whole .*raw.bin is cut"),
    "HDF5, linked to what is none": Odd(hdf5_linked_to_none, "cannot be read"),
    "run with a damaged header": Odd(run_with_header(b"{"), "cannot be read"),
    "run with a header of another kind": Odd(run_with_header(b"[1]"), "cannot be read"),
    "HDF5, linked pixels not all written": Odd(hdf5_virtual(written=6), "not whole .*never written"),
    "HDF5, linked pixels by another name": Odd(hdf5_virtual("other"), "pixels.h5 has no dataset volume"),
    "HDF5, not all linked": Odd(hdf5_virtual(mapped=6), "in none of its files"),
    "empty TIFF": Odd(empty("e.tif"), "cannot be read as TIFF"),
    "empty HDF5": Odd(empty("e.h5"), "cannot be read as HDF5"),
    "empty NPY": Odd(empty("e.npy"), "cannot be read as NPY"),
    "folder": Odd(a_folder, "is a folder|holds no volume"),
    # Not one volume of numbers
    "OME, two positions": Odd(
        positions("Pos0", "Pos1"), r"holds 2 images or positions, .*Pos0, Pos1.* as in .*two.ome.tif#Pos0"
    ),
    "RGB": Odd(tiff("rgb.tif", PIXELS[..., None][..., [0, 0, 0]].astype("u1"), photometric="rgb"), "colours"),
    "NaN": Odd(npy(with_nan()), "not finite"),
    "bool": Odd(npy(PIXELS > 900), "should be numbers"),
    "complex": Odd(npy(PIXELS.astype(np.complex64)), "should be numbers"),
    "one image": Odd(tiff("one.tif", PIXELS[0]), "single image"),
    # Whole, with scales of all kinds
    "big-endian": Odd(tiff("be.tif", byteorder=">")),
    "big-endian NPY": Odd(npy(PIXELS.astype(">u2"))),
    "compressed": Odd(tiff("c.tif", compression="zlib")),
    "pages": Odd(page_by_page),
    "compressed HDF5": Odd(hdf5(compression="gzip")),
    "zeros here and there": Odd(npy(with_zeros()), pixels=with_zeros()),
    "linked HDF5": Odd(hdf5_virtual()),
    "registered": Odd(npy(padded()), pixels=padded()),
    "TIFF of Micro-Manager": Odd(micro_manager(), edges=(2.0, 0.25, 0.25)),
    "NDTiff pyramid": Odd(pyramid(ndtiff(**TILES))),
    "NDTiff as announced": Odd(ndtiff(summary={"Slices": 12, "IntendedDimensions": {"z": 12, "time": 5}})),
    "one slice": Odd(npy(PIXELS[:1]), pixels=PIXELS[:1]),
    "one pixel": Odd(npy(PIXELS[:, :1, :1]), pixels=PIXELS[:, :1, :1]),
    "one row": Odd(npy(PIXELS[:, :1]), pixels=PIXELS[:, :1]),
    "two columns": Odd(npy(PIXELS[..., :2]), pixels=PIXELS[..., :2]),
    "ImageJ, downwards": Odd(imagej(spacing=-2.0, unit="um"), edges=(2.0, 0.25, 0.25)),
    "ImageJ, in cm": Odd(imagej(spacing=2e-4, unit="cm", resolution=(40000, 40000)), edges=(2.0, 0.25, 0.25)),
    "ImageJ, in inches": Odd(
        imagej(spacing=1e-4, unit="inch", resolution=(10160, 10160)), edges=(2.54, 2.5, 2.5)
    ),
    "ImageJ, in micrometers": Odd(imagej(spacing=2.0, unit="micrometer"), edges=(2.0, 0.25, 0.25)),
    "OME, in angstroms": Odd(
        tiff(
            "v.ome.tif", ome=True, metadata={"axes": "ZYX", "PhysicalSizeZ": 5000, "PhysicalSizeZUnit": "Å"}
        ),
        edges=(0.5, None, None),
    ),
    "HDF5, voxels of its own": Odd(voxel(2, 0.5, 0.25), edges=(2.0, 0.5, 0.25)),
    "HDF5, endless voxels": Odd(voxel(np.inf, 1, 1), "three positive numbers"),
    "ImageJ, no spacing": Odd(imagej(unit="um"), edges=(None, 0.25, 0.25)),
    "ImageJ, pixels": Odd(imagej(spacing=2.0, unit="pixel")),
    "OME without z": Odd(
        tiff("v.ome.tif", ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}),
        edges=(None, 0.5, 0.25),
    ),
    "OME, its step in the planes' positions": Odd(
        tiff(
            "v.ome.tif",
            ome=True,
            metadata={"axes": "ZYX", "Plane": {"PositionZ": [9 - 1.5 * n for n in range(12)]}},
        ),
        edges=(1.5, None, None),
    ),
    "NDTiff of pycromanager": Odd(ndtiff(notes=own_names), edges=(2.0, 0.25, 0.25)),
    "NDTiff of Micro-Manager": Odd(ndtiff(notes=core_names), edges=(2.0, 0.25, 0.25)),
    "NDTiff with a summary": Odd(
        ndtiff(summary={"z-step_um": -2.0, "PixelSizeUm": 0.25}), edges=(2.0, 0.25, 0.25)
    ),
    "NDTiff at one depth": Odd(
        ndtiff(notes=lambda z: {"ZPositionUm": 27.0, "PixelSizeUm": 0.25}), edges=(None, 0.25, 0.25)
    ),
}

OF_SEVERAL: dict[str, tuple[Callable[[Path], Path], dict[str, np.ndarray]]] = {
    "OME, two positions": (positions("Pos0", "Pos1"), {"Pos0": PIXELS, "Pos1": OTHER}),
    "OME, compressed": (positions("A", "B", compression="zlib"), {"A": PIXELS, "B": OTHER}),
    "OME, no names": (positions(None, None), {"Image0": PIXELS, "Image1": OTHER}),
    "OME, one name": (positions("well", "well"), {"0": PIXELS, "1": OTHER}),
    "OME, numbers as names": (positions("2", "1"), {"1": OTHER, "2": PIXELS}),
    "OME, paths as names": (positions("A/1", "A/2"), {"A/1": PIXELS, "A/2": OTHER}),
    "OME, odd names": (positions("./a#b//c", "Za\u0308hler 'µ'"), {"./a#b//c": PIXELS, "Zähler 'µ'": OTHER}),
    "OME, names not to be typed": (positions("a\u202eb", "c"), {"0": PIXELS, "1": OTHER}),
    "OME, one of two files": (second_file_of_two, {"": OTHER}),
    "OME, two channels": (
        tiff("c.ome.tif", np.stack([PIXELS, OTHER]), ome=True, metadata={"axes": "CZYX"}),
        {"C0": PIXELS, "C1": OTHER},
    ),
    "ImageJ, two channels": (
        tiff("c.tif", np.stack([PIXELS, OTHER], 1), imagej=True, metadata={"axes": "ZCYX"}),
        {"C0": PIXELS, "C1": OTHER},
    ),
    "pages of two sizes": (two_shapes, {"0": PIXELS, "1": OTHER[:, :10]}),
    "NDTiff, two positions": (ndtiff(parts=({"position": 0}, {"position": 2})), {"0": PIXELS, "2": OTHER}),
    "NDTiff, named positions": (
        ndtiff(parts=({"position": "A/1", "time": 0}, {"position": "A/2", "time": 0})),
        {"A/1": PIXELS, "A/2": OTHER},
    ),
    "NDTiff, channels and positions": (
        ndtiff(parts=tuple({"channel": c, "position": p} for p in (0, 1) for c in ("GFP", "RFP"))),
        {"GFP,1": PIXELS, "RFP,0": OTHER},
    ),
}
"""Files of several volumes: how they are made, and some of their parts."""
