"""NRRD: one file for each volume, for 3D Slicer, ImageJ and others.

Owns the names and fields of the files; pynrrd writes them. A gap has no file; `index.json` lists the files,
and the gaps with their reasons. One volume is held at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microdiffusion.export.options import Exported, Progress, about, needs, volumes_and_gaps
from microdiffusion.export.source import Picture
from microdiffusion.files import staged


def write(pictures: Sequence[Picture], output: Path, *, compress: bool, progress: Progress) -> Exported:
    """Write a folder of NRRD files."""
    try:
        import nrrd
    except ImportError as error:
        raise needs("pynrrd", error) from error
    total, gaps = volumes_and_gaps(pictures)
    needed = 0 if compress else sum(picture.volume_bytes * int(picture.written.sum()) for picture in pictures)
    done = 0
    with staged(output, needed_bytes=needed) as (folder,):
        folder.mkdir()
        index = []
        for picture in pictures:
            files = {}
            for t, channel in picture.all_written():
                name = _file_name(picture, t, channel)
                header = _fields(picture, t, channel, compress=compress)
                # With index order "C" pynrrd takes arrays as (z, y, x).
                nrrd.write(
                    str(folder / name), picture.read(t, channel), header, compression_level=1, index_order="C"
                )
                files[name] = {"time_point": picture.time_points[t], "channel": picture.channels[channel]}
                done += 1
                progress(done, total)
            index.append(about(picture) | {"files": files})
        (folder / "index.json").write_text(
            json.dumps({"images": index}, indent=1, ensure_ascii=False), encoding="utf-8"
        )
    return Exported([output], total, gaps)


def _file_name(picture: Picture, t: int, channel: int) -> str:
    parts = [f"t{picture.time_points[t]:05d}"]
    if len(picture.run.header.positions) > 1:
        parts.append(f"p{picture.position:03d}")
    if len(picture.run.header.channels) > 1:
        number = picture.run.header.channels.index(picture.channels[channel])
        parts.append(f"c{number}_{re.sub(r'[^A-Za-z0-9-]', '_', picture.channels[channel])}")
    if picture.kind != "volume":
        parts.append(picture.kind)
    return "_".join(parts) + ".nrrd"


def _fields(picture: Picture, t: int, channel: int, *, compress: bool) -> dict[str, Any]:
    """Return the header. Axes in files are (x, y, z), and lengths are µm: NRRD keeps the unit's name."""
    z, y, x = picture.voxel_size_um()
    origin = picture.origin_um()
    return {
        "encoding": "gzip" if compress else "raw",
        "endian": "little",
        "space dimension": 3,
        "space units": ["um", "um", "um"],
        "space directions": [[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, z]],
        "space origin": list(reversed(origin)),
        "kinds": ["space", "space", "space"],
        "content": picture.kind,
        "mdd_run_id": picture.run.header.run_id,
        "mdd_position": _ascii(picture.name),
        "mdd_channel": _ascii(picture.channels[channel]),
        "mdd_time_point": str(picture.time_points[t]),
        "mdd_time_s": f"{picture.times_s[t, channel]:.6f}",
    }


def _ascii(text: str) -> str:
    """Return a text as NRRD's header can hold it; `index.json` has it as it is."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
