"""Write a run in the format of another program, even while it is recorded.

mdd export runs/demo.h5 --to ome-zarr      napari, MoBIE, Fiji, OMERO
mdd export runs/demo.h5 --to ome-tiff --channel GFP
                                           Fiji, anything with Bio-Formats
mdd export runs/demo.h5 --to nrrd --time-points 10-19
                                           3D Slicer
mdd export runs/demo.h5 --to bdv           BigDataViewer, BigStitcher, Mastodon
mdd export runs/demo.h5 --to bdv --link    BigDataViewer on the run file itself
mdd export runs/demo.h5 --to ome-zarr --output s3://bucket/demo.ome.zarr --follow
                                           an object store, until the run ends
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    from microdiffusion.export import Exported


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from microdiffusion.export import FORMATS, VERSIONS

    options.add_run(parser)
    options.add(parser, "--to", "the format", required=True, choices=tuple(FORMATS))
    options.add(parser, "--output PATH", "file, folder or s3://BUCKET/NAME; default: beside RUN", _place)
    options.add(parser, "--time-points A-B", "from A to B inclusive; A alone; A- to the end", _range)
    options.add(parser, "--channel NAME", "this channel only (repeatable)", action="append", default=[])
    about = "this position only, by name or number (repeatable)"
    options.add(parser, "--position NAME", about, action="append", default=[])
    options.add(parser, "--level N", "level of the pyramid; 0 is the finest", options.seed, default=0)
    options.add(parser, "--compress", "smaller and slower")
    about = "version of OME-Zarr; default: 0.4, to an object store 0.5, which has shards"
    options.add(parser, "--ngff VERSION", about, choices=VERSIONS, default="")
    options.add(parser, "--follow", "to an object store: until the run is closed")
    options.add(parser, "--link", "bdv: a small file that refers to the run file, instead of a copy")


def run(args: Namespace) -> int:
    """Export and print what was written."""
    from microdiffusion.export import Scope, export_run

    if args.link:
        exported = _link(args)
    else:
        first, last = args.time_points or (None, None)
        scope = Scope(first, last, tuple(args.channel), tuple(args.position), args.level)
        with ProgressBar(f"{args.run.name} to {args.to}", "volumes", quiet=args.quiet) as progress:
            exported = export_run(
                args.run,
                args.to,
                args.output,
                scope=scope,
                compress=args.compress,
                ngff=args.ngff,
                follow=args.follow,
                progress=progress,
            )
    if args.json:
        say_json(exported)
    else:
        _say(exported)
    return 0


def _link(args: Namespace) -> Exported:
    from microdiffusion.export import link_run

    if args.to != "bdv":
        raise ConfigError(f"--link is for --to bdv: --to {args.to} is always a copy.")
    if isinstance(args.output, str):
        raise ConfigError("--link refers to a run file by its name, so it cannot be in an object store.")
    if args.time_points or args.channel or args.position or args.level or args.compress:
        raise ConfigError("--link refers to the whole run: leave out what selects a part, or make a copy.")
    return link_run(args.run, args.output)


def _place(text: str) -> Path | str:
    """Return a path, or the address in an object store as it is."""
    from microdiffusion.export import is_url

    return text if is_url(text) else options.file(text)


def _range(text: str) -> tuple[int | None, int | None]:
    """Return first and last time point of "3-7", "3-" or "3"."""
    first, dash, last = text.partition("-")
    refusal = argparse.ArgumentTypeError(f"expected time points as 3-7, 3- or 3, not {text}")
    try:
        low = int(first)
        high = int(last) if last else None
    except ValueError:
        raise refusal from None
    if low < 0 or (high is not None and high < low):
        raise refusal
    return low, high if dash else low


def _say(exported: Exported) -> None:
    say(f"wrote {exported.outputs[-1]}: {count_noun(exported.volumes, 'volume')}")
    gaps = Counter(f"{gap.status}: {gap.reason}" for gap in exported.gaps)
    for gap, number in gaps.most_common(10):
        say(f"  {number} {gap}")
    for note in exported.notes:
        say(f"  {note}")
