"""OME-Zarr 0.4 (Zarr 2): a folder of chunks with its pyramid, axes (T, C, Z, Y, X).

Owns the metadata and the shape of the chunks; zarr writes them. Every viewer opens 0.4 today (decision 0019).
One position is the image itself; several are the images 0, 1 ... of one folder. Uncertainties are the image
`uncertainty` below the one that they belong to. An absent chunk is a gap: every chunk of a volume is stored,
even one of zeros, and none of a gap; readers show the fill value there (NaN for floating-point pixels, else
0), so the attribute `mdd` lists the gaps with their reasons. One volume is held at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.export.options import Exported, Progress, about, channel_name, needs, volumes_and_gaps
from microdiffusion.export.source import Picture
from microdiffusion.files import staged

VERSION = "0.4"
_CHUNK = (16, 256, 256)  # 2 MiB of uint16: a plane of 512 x 512 is four reads
_COLOURS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def write(pictures: Sequence[Picture], output: Path, *, compress: bool, progress: Progress) -> Exported:
    """Write an OME-Zarr folder."""
    try:
        import zarr
    except ImportError as error:
        raise needs("zarr", error) from error
    total, gaps = volumes_and_gaps(pictures)
    several = sum(picture.kind == "volume" for picture in pictures) > 1
    done = 0
    with staged(output) as (folder,):
        root = zarr.open_group(folder, mode="w", zarr_format=2)
        if several:
            root.attrs["bioformats2raw.layout"] = 3
        number = -1
        for picture in pictures:
            number += picture.kind == "volume"
            place = (str(number) if several else "") + ("/uncertainty" if picture.kind != "volume" else "")
            group = root.create_group(place.strip("/")) if place else root
            arrays = [
                _array(group, picture, level, compress=compress) for level in range(len(picture.levels))
            ]
            window = None
            for t, channel in picture.all_written():
                levels = picture.read_levels(t, channel)
                for array, voxels in zip(arrays, levels, strict=True):
                    array[t, channel] = voxels
                window = window or _window(levels[-1])  # small, and accurate enough
                done += 1
                progress(done, total)
            group.attrs.update(_attributes(picture, window or (0.0, 1.0)))
    return Exported([output], total, gaps)


def _array(group: Any, picture: Picture, level: int, *, compress: bool) -> Any:
    from numcodecs import Blosc

    shape = picture.levels[level].shape
    codec = Blosc("zstd", 5, Blosc.BITSHUFFLE) if compress else Blosc("lz4", 5, Blosc.BITSHUFFLE)
    return group.create_array(
        str(level),
        shape=(*picture.shape[:2], *shape),
        dtype=picture.dtype,
        chunks=(1, 1, *(min(most, length) for most, length in zip(_CHUNK, shape, strict=True))),
        compressors=codec,
        fill_value=np.nan if picture.dtype.kind == "f" else 0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        config={"write_empty_chunks": True},
    )


def _window(voxels: Any) -> tuple[float, float]:
    low, high = np.percentile(voxels, (0.5, 99.8))
    return float(low), float(max(high, low + 1e-6))


def _attributes(picture: Picture, window: tuple[float, float]) -> dict[str, Any]:
    start, end = window
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
    return {
        "multiscales": [
            {
                "version": VERSION,
                "name": name if picture.kind == "volume" else f"{name}, {picture.kind}",
                "type": "mean",
                "axes": [
                    {"name": "t", "type": "time", "unit": "second"},
                    {"name": "c", "type": "channel"},
                    *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"),
                ],
                "datasets": datasets,
            }
        ],
        "omero": {
            "version": VERSION,
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
        "mdd": about(picture),
    }
