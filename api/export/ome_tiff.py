"""OME-TIFF: one file, an image for each position (and for the uncertainties), axes (T, C, Z, Y, X).

Owns the OME header; tifffile writes it and the pages. TIFF cannot leave anything out (its readers show
zeros), so the file holds the time points for which every exported channel has a volume; the annotation of
each image lists those, and the gaps. Each plane has its camera time. One volume is held at a time. Full
resolution only: OME's resolutions do not include z.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError
from microdiffusion.export.options import (
    Exported,
    Progress,
    about,
    as_text,
    channel_name,
    needs,
    volumes_and_gaps,
)
from microdiffusion.export.source import Picture
from microdiffusion.files import staged
from microdiffusion.text import count_noun

NAMESPACE = "microdiffusion-daemon/export"
_CLASSIC_BYTES = 4_000_000_000  # offsets of 32 bits end here; above, BigTIFF


def write(pictures: Sequence[Picture], output: Path, *, compress: bool, progress: Progress) -> Exported:
    """Write an OME-TIFF."""
    try:
        import tifffile
    except ImportError as error:
        raise needs("tifffile", error) from error
    _, gaps = volumes_and_gaps(pictures)
    chosen = {id(picture): np.flatnonzero(picture.written.all(axis=1)) for picture in pictures}
    total = sum(len(chosen[id(picture)]) * len(picture.channels) for picture in pictures)
    if not total:
        raise InputFileError(
            f"{pictures[0].run.path}: no time point has a volume of every channel: choose one with --channel."
        )
    done = 0
    size = sum(
        picture.volume_bytes * len(chosen[id(picture)]) * len(picture.channels) for picture in pictures
    )

    def planes(picture: Picture) -> Iterator[NDArray[Any]]:
        nonlocal done
        for t in chosen[id(picture)].tolist():
            for channel in range(len(picture.channels)):
                volume = picture.read(t, channel)
                done += 1  # not after the planes: the generator is not resumed after the last one
                progress(done, total)
                yield from volume

    with (
        staged(output, needed_bytes=0 if compress else size) as (path,),
        tifffile.TiffWriter(path, bigtiff=size > _CLASSIC_BYTES, ome=True) as file,
    ):
        for picture in pictures:
            kept = chosen[id(picture)]
            if not len(kept):
                continue
            file.write(
                planes(picture),
                shape=(len(kept), *picture.shape[1:]),
                dtype=picture.dtype,
                photometric="minisblack",
                compression="zlib" if compress else None,
                compressionargs={"level": 1} if compress else None,
                metadata=_metadata(picture, kept),
            )
    exported = Exported([output], total, gaps)
    alone = sum(
        int(picture.written.sum()) - len(chosen[id(picture)]) * len(picture.channels) for picture in pictures
    )
    if alone:
        exported.notes.append(
            f"{count_noun(alone, 'volume is', 'volumes are')} left out, as their time points lack another "
            "channel: --channel exports a channel with all that it has"
        )
    if len(pictures[0].levels) > 1:
        exported.notes.append("OME-TIFF holds the finest level only")
    return exported


def _metadata(picture: Picture, kept: NDArray[np.intp]) -> dict[str, Any]:
    z, y, x = picture.voxel_size_um()
    start = picture.origin_um()[0]
    lead = (len(kept), len(picture.channels), picture.levels[0].shape[0])
    times = np.broadcast_to(picture.times_s[kept][:, :, None], lead).reshape(-1)
    places = np.broadcast_to(start + z * np.arange(lead[2]), lead).reshape(-1)
    names = [channel_name(picture, channel) for channel in range(len(picture.channels))]
    told = about(picture)
    notes = {
        key: value if isinstance(value, str) else as_text(value)
        for key, value in told.items()
        if key != "times_s"
    }
    notes["time_points"] = as_text([picture.time_points[t] for t in kept.tolist()])
    name = picture.run.header.name
    if len(picture.run.header.positions) > 1:
        name += f", position {picture.name}"
    metadata: dict[str, Any] = {
        "axes": "TCZYX",
        "Name": name if picture.kind == "volume" else f"{name}, {picture.kind}",
        "PhysicalSizeX": x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": y,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": z,
        "PhysicalSizeZUnit": "µm",
        "Channel": {"Name": names},
        "Plane": {
            "DeltaT": [round(value, 6) for value in times.tolist()],
            "DeltaTUnit": ["s"] * times.size,
            "PositionZ": [round(value, 6) for value in places.tolist()],
            "PositionZUnit": ["µm"] * times.size,
        },
        "MapAnnotation": {"Namespace": NAMESPACE, "Value": notes},
    }
    if picture.interval_s > 0 and np.all(np.diff(kept) == 1):
        metadata |= {"TimeIncrement": round(picture.interval_s, 6), "TimeIncrementUnit": "s"}
    return metadata
