"""OME-Zarr, axes (T, C, Z, Y, X), with its pyramid: 0.4 (Zarr 2), or 0.5 (Zarr 3, chunks in shards).

Owns the metadata and the shapes of chunks and shards; zarr writes them. Every viewer opens 0.4 today
(decision 0019); 0.5 has a few large objects for each volume instead of hundreds, which object stores want
(`object_store`). One position is the image itself; several are the images 0, 1 ... of one folder.
Uncertainties are the image `uncertainty` below the one that they belong to. An absent chunk is a gap: every
chunk of a volume is stored, even one of zeros, and none of a gap; readers show the fill value there (NaN for
floating-point pixels, else 0), so the attribute `mdd` lists the gaps with their reasons. One volume is held
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.export.options import Exported, Progress, about, channel_name, needs, volumes_and_gaps
from microdiffusion.export.source import Picture
from microdiffusion.files import staged

VERSIONS = ("0.4", "0.5")
_CHUNK = (16, 256, 256)  # 2 MiB of uint16: a plane of 512 x 512 is four reads
_SHARD_BYTES = 64 << 20  # most of a shard before it is compressed: one request, and the memory for it
_COLOURS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def write(
    pictures: Sequence[Picture], output: Path, *, compress: bool, progress: Progress, ngff: str = "0.4"
) -> Exported:
    """Write an OME-Zarr folder of a version of the format (NGFF)."""
    zarr = import_zarr()
    total, gaps = volumes_and_gaps(pictures)
    done = 0
    with staged(output) as (folder,):
        root = zarr.open_group(folder, mode="w", zarr_format=zarr_format(ngff))
        root.attrs.update(root_attributes(pictures, ngff))
        for picture, place in zip(pictures, places_of(pictures), strict=True):
            group = root.create_group(place) if place else root
            arrays = [
                create_level(group, picture, level, ngff, compress=compress)
                for level in range(len(picture.levels))
            ]
            window = None
            for t, channel in picture.all_written():
                levels = picture.read_levels(t, channel)
                for array, voxels in zip(arrays, levels, strict=True):
                    array[t, channel] = voxels
                window = window or window_of(levels[-1])  # small, and accurate enough
                done += 1
                progress(done, total)
            group.attrs.update(image_attributes(picture, window, ngff))
    return Exported([output], total, gaps)


def import_zarr() -> Any:
    """Return the library, or raise a DependencyError with the install line."""
    try:
        import zarr
    except ImportError as error:
        raise needs("zarr", error) from error
    return zarr


def zarr_format(ngff: str) -> int:
    """Return the version of Zarr below a version of OME-Zarr."""
    return 2 if ngff == "0.4" else 3


def places_of(pictures: Sequence[Picture]) -> list[str]:
    """Return the group of each picture, below the root; "": the root itself."""
    several = sum(picture.kind == "volume" for picture in pictures) > 1
    places = []
    number = -1
    for picture in pictures:
        number += picture.kind == "volume"
        parts = [str(number)] * several + ["uncertainty"] * (picture.kind != "volume")
        places.append("/".join(parts))
    return places


def root_attributes(pictures: Sequence[Picture], ngff: str) -> dict[str, Any]:
    """Return the attributes of a folder of several images; nothing where the root is the image."""
    if places_of(pictures)[0] == "":
        return {}
    layout = {"bioformats2raw.layout": 3}
    return layout if ngff == "0.4" else {"ome": {"version": ngff} | layout}


def create_level(group: Any, picture: Picture, level: int, ngff: str, *, compress: bool) -> Any:
    """Create the array (T, C, z, y, x) of a level of a picture."""
    shape = picture.levels[level].shape
    common = {
        "shape": (*picture.shape[:2], *shape),
        "dtype": picture.dtype,
        "chunks": (1, 1, *chunk_of(shape)),
        "fill_value": np.nan if picture.dtype.kind == "f" else 0,
        "config": {"write_empty_chunks": True},
    }
    compressor = blosc(compress=compress)
    if ngff == "0.4":
        keys = {"name": "v2", "separator": "/"}
        return group.create_array(str(level), compressors=compressor, chunk_key_encoding=keys, **common)
    from zarr.codecs import BloscCodec

    return group.create_array(
        str(level),
        shards=(1, 1, *shard_of(shape, picture.dtype.itemsize)),
        compressors=BloscCodec(cname=compressor.cname, clevel=compressor.clevel, shuffle="bitshuffle"),
        dimension_names=list("tczyx"),
        **common,
    )


def blosc(*, compress: bool) -> Any:
    """Return the compressor of all chunks, one of numcodecs'."""
    from numcodecs import Blosc

    return Blosc("zstd" if compress else "lz4", 5, Blosc.BITSHUFFLE)


def chunk_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (z, y, x) of a volume's chunks, each of which is read and compressed alone."""
    z, y, x = (min(most, length) for most, length in zip(_CHUNK, shape, strict=True))
    return z, y, x


def shard_of(shape: tuple[int, int, int], item_bytes: int) -> tuple[int, int, int]:
    """Return the shape (z, y, x) of a volume's shards, each of which is one object: whole chunks."""
    chunk = chunk_of(shape)
    counts = [-(-length // edge) for length, edge in zip(shape, chunk, strict=True)]
    for axis in range(3):  # the whole volume if there is room; else fewer planes, rows, columns
        while counts[axis] > 1 and prod(counts) * prod(chunk) * item_bytes > _SHARD_BYTES:
            counts[axis] = -(-counts[axis] // 2)
    z, y, x = (count * edge for count, edge in zip(counts, chunk, strict=True))
    return z, y, x


def window_of(voxels: Any) -> tuple[float, float]:
    """Return the values between which viewers spread a volume."""
    low, high = np.percentile(voxels, (0.5, 99.8))
    return float(low), float(max(high, low + 1e-6))


def image_attributes(picture: Picture, window: tuple[float, float] | None, ngff: str) -> dict[str, Any]:
    """Return the attributes of an image: axes, scales, channels, and what the run says of itself."""
    start, end = window or (0.0, 1.0)
    most = 65535.0 if picture.dtype.kind == "u" else end
    datasets = []
    for level in range(len(picture.levels)):
        scale = [picture.interval_s or 1.0, 1.0, *picture.voxel_size_um(level)]
        shift = [0.0, 0.0, *picture.origin_um(level)]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": scale},
                    {"type": "translation", "translation": shift},
                ],
            }
        )
    name = picture.run.header.name
    name += f", position {picture.name}" if len(picture.run.header.positions) > 1 else ""
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"),
    ]
    own = {} if ngff != "0.4" else {"version": ngff}
    title = name if picture.kind == "volume" else f"{name}, {picture.kind}"
    ome = {
        "multiscales": [{**own, "name": title, "type": "mean", "axes": axes, "datasets": datasets}],
        "omero": {
            **own,
            "name": name,
            "channels": [
                {
                    "label": channel_name(picture, channel),
                    "color": _COLOURS[channel % len(_COLOURS)]
                    if len(picture.channels) == 1
                    else _COLOURS[1 + channel % (len(_COLOURS) - 1)],
                    "active": True,
                    "window": {"min": 0.0, "max": most, "start": start, "end": end},
                }
                for channel in range(len(picture.channels))
            ],
            "rdefs": {"model": "greyscale" if len(picture.channels) == 1 else "color"},
        },
    }
    return (ome if ngff == "0.4" else {"ome": {"version": ngff} | ome}) | {"mdd": about(picture)}
