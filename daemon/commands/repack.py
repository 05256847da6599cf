"""Compress a run into one file, or uncompress it.

With OUT a copy is made and the run is left as it is; of an open run, what it holds is copied, as by
`mdd snapshot`. With --in-place the copy replaces all files of a closed run. Every byte of a copy is checked
before it gets its name; an interruption such as Ctrl-C leaves the run as it was.

mdd repack runs/demo.h5 archive/demo.h5                      compressed by gzip: every HDF5 reads it
mdd repack runs/demo.h5 archive/demo.h5 --compression lz4    faster; readers need hdf5plugin
mdd repack runs/demo.h5 archive/demo.h5 --chunks 16,64,64    for views that cut through z
mdd repack runs/demo.h5 --in-place
mdd repack runs/demo.h5 --in-place --compression none        uncompressed again, to resume it
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument(
        "output", type=options.file, nargs="?", metavar="OUT", help="the copy, which must not exist"
    )
    parser.add_argument("--in-place", action="store_true", help="replace the run by the copy")
    parser.add_argument(
        "--compression",
        choices=("gzip", "lz4", "none"),
        default="gzip",
        help="of the images; a compressed run cannot be resumed (default: gzip)",
    )
    parser.add_argument(
        "--chunks",
        type=_chunks,
        metavar="Z,Y,X",
        help="shape of the images' chunks (default: whole planes, 1 MiB at most)",
    )
    parser.add_argument("--json", action="store_true", help="sizes and content of the copy as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Copy, and report what it saved."""
    from microdiffusion.daemon.cli import ProgressBar
    from microdiffusion.daemon.recorder import compress_in_place
    from microdiffusion.errors import UserError
    from microdiffusion.runfile import snapshot_run

    if (args.output is None) is not args.in_place:
        raise UserError("Give either OUT, the name of the copy, or --in-place.")
    output = args.file if args.in_place else args.output
    files = _files(args.file)
    before = sum(path.stat().st_size for path in files)
    with ProgressBar(f"repacking {args.file.name}", "time points", quiet=args.quiet) as progress:
        how = {"compression": args.compression, "chunks": args.chunks, "progress": progress}
        if args.in_place:
            report = compress_in_place(args.file, **how)
        else:
            report = snapshot_run(args.file, output, **how)
    after = output.stat().st_size
    if args.json:
        import json
        from dataclasses import asdict

        sizes = {"files_before": len(files), "bytes_before": before, "bytes_after": after}
        about = {"compression": args.compression, "ratio": before / after}
        say(json.dumps(asdict(report) | {"sound": report.sound} | about | sizes, indent=2))
    else:
        state = "a closed run" if report.closed else "a run that is open, or was cut off"
        held = f"{count_noun(report.volumes, 'volume')} and {count_noun(report.frames, 'frame')}"
        say(f"wrote {output}: {held} of {state}, checked")
        say(
            f"  {before / 1e6:.1f} MB in {count_noun(len(files), 'file')} became {after / 1e6:.1f} MB "
            f"(compression {args.compression}): {before / after:.2f} to 1"
        )
    return 0


def _files(run: Path) -> list[Path]:
    from microdiffusion.runfile import open_run

    with open_run(run) as opened:
        return list(opened.paths)


def _chunks(text: str) -> tuple[int, int, int]:
    try:
        z, y, x = (options.count(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected planes, rows and columns such as 16,64,64, not {text}"
        ) from None
    return z, y, x
