"""Copy a run into one compressed file, or decompress it again.

With OUT the run itself is left as it is; of a run that is still recorded, what
it holds now is copied, as by `mdd snapshot`. With --in-place the copy replaces
a closed run, with all of its files. Every byte of a copy is checked before it
gets its name; if anything stops the work before, Ctrl-C too, the run is as it
was.

mdd repack runs/demo.h5 archive/demo.h5      gzip: every HDF5 reads it
mdd repack runs/demo.h5 archive/demo.h5 --compression lz4
                                             faster; readers need hdf5plugin
mdd repack runs/demo.h5 archive/demo.h5 --chunks 16,64,64
                                             for views that cut through z
mdd repack runs/demo.h5 --in-place
mdd repack runs/demo.h5 --in-place --compression none
                                             undo it, to resume the run
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json
from microdiffusion.daemon.commands.snapshot import described
from microdiffusion.errors import UserError
from microdiffusion.text import count_noun


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_run(parser)
    options.add(parser, "OUT", "the copy, which must not exist", options.file, nargs="?")
    options.add(parser, "--in-place", "replace the run by the copy")
    about = "of the images; a compressed run cannot be resumed"
    options.add(parser, "--compression", about, choices=("gzip", "lz4", "none"), default="gzip")
    about = "shape of the images' chunks; default: whole planes, up to 1 MiB"
    options.add(parser, "--chunks Z,Y,X", about, options.shape)


def run(args: Namespace) -> int:
    """Copy, and print what it saved."""
    from microdiffusion.daemon.recorder import compress_in_place
    from microdiffusion.runfile import open_run, snapshot_run

    if (args.out is None) is not args.in_place:
        raise UserError("Give either OUT, the name of the copy, or --in-place.")
    output = args.run if args.in_place else args.out
    with open_run(args.run, missing="refuse") as opened:
        count, before = len(opened.paths), opened.nbytes
    with ProgressBar(f"repacking {args.run.name}", "time points", quiet=args.quiet) as progress:
        how: dict[str, Any] = {"compression": args.compression, "chunks": args.chunks, "progress": progress}
        report = (
            compress_in_place(args.run, **how) if args.in_place else snapshot_run(args.run, output, **how)
        )
    after = output.stat().st_size
    if args.json:
        sizes = {"files_before": count, "bytes_before": before, "bytes_after": after}
        ratio = {"compression": args.compression, "ratio": before / after}
        say_json(report, sound=report.sound, **ratio, **sizes)
    else:
        say(f"wrote {output}: {described(report)}")
        say(
            f"  {before / 1e6:.1f} MB in {count_noun(count, 'file')} became {after / 1e6:.1f} MB "
            f"(compression {args.compression}): {before / after:.2f} to 1"
        )
    return 0
