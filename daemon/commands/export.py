"""Write a run in the format of another program; the run may still be going on.

mdd export runs/demo.h5 --to ome-zarr                      (napari, MoBIE, Fiji, OMERO)
mdd export runs/demo.h5 --to ome-tiff --channel GFP        (Fiji, anything with Bio-Formats)
mdd export runs/demo.h5 --to nrrd --time-points 10-19      (3D Slicer)
mdd export runs/demo.h5 --to bdv                           (BigDataViewer, BigStitcher, Mastodon)
mdd export runs/demo.h5 --to bdv --link                    (BigDataViewer on the run file itself, no copy)
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.export import Exported


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from microdiffusion.export import FORMATS

    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument("--to", required=True, choices=tuple(FORMATS), help="the format")
    parser.add_argument(
        "--output", type=options.file, metavar="PATH", help="file or folder; none: beside RUN"
    )
    parser.add_argument(
        "--time-points", type=_range, metavar="A-B", help="from A to B, both included; A alone; A- to the end"
    )
    parser.add_argument(
        "--channel", action="append", default=[], metavar="NAME", help="several times: several"
    )
    parser.add_argument(
        "--position",
        action="append",
        default=[],
        metavar="NAME",
        help="name or number; several times: several",
    )
    parser.add_argument(
        "--level",
        type=options.seed,
        default=0,
        metavar="N",
        help="coarser level of the pyramid, 0: the finest",
    )
    parser.add_argument("--compress", action="store_true", help="smaller and slower")
    parser.add_argument(
        "--link", action="store_true", help="bdv: a small file onto the run file, instead of a copy"
    )
    parser.add_argument("--json", action="store_true", help="say what was written as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Export and say what was written."""
    from microdiffusion.daemon.cli import ProgressBar
    from microdiffusion.export import Scope, export_run

    if args.link:
        exported = _link(args)
    else:
        first, last = args.time_points or (None, None)
        scope = Scope(first, last, tuple(args.channel), tuple(args.position), args.level)
        with ProgressBar(f"{args.file.name} to {args.to}", quiet=args.quiet) as progress:
            exported = export_run(
                args.file, args.to, args.output, scope=scope, compress=args.compress, progress=progress
            )
    if args.json:
        _say_json(exported)
    else:
        _say(exported)
    return 0


def _link(args: Namespace) -> Exported:
    from microdiffusion.export import link_run

    if args.to != "bdv":
        raise ConfigError(f"--link is for --to bdv: --to {args.to} is always a copy.")
    if args.time_points or args.channel or args.position or args.level or args.compress:
        raise ConfigError("--link is onto the whole run: leave out what chooses a part, or make a copy.")
    return link_run(args.file, args.output)


def _range(text: str) -> tuple[int | None, int | None]:
    """Return first and last time point of "3-7", "3-" or "3"."""
    first, dash, last = text.partition("-")
    try:
        low = int(first)
        high = int(last) if last else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected time points as 3-7, 3- or 3, not {text}") from None
    if low < 0 or (high is not None and high < low):
        raise argparse.ArgumentTypeError(f"expected time points as 3-7, 3- or 3, not {text}")
    return low, high if dash else low


def _say(exported: Exported) -> None:
    say(f"wrote {exported.outputs[-1]}: {count_noun(exported.volumes, 'volume')}")
    reasons: dict[tuple[str, str], int] = {}
    for gap in exported.gaps:
        reasons[gap.status, gap.reason] = reasons.get((gap.status, gap.reason), 0) + 1
    for (status, reason), number in sorted(reasons.items(), key=lambda item: -item[1])[:10]:
        say(f"  {number} {status}: {reason}")
    for note in exported.notes:
        say(f"  {note}")


def _say_json(exported: Exported) -> None:
    import json
    from dataclasses import asdict

    value = asdict(exported) | {"outputs": [str(path) for path in exported.outputs]}
    say(json.dumps(value, indent=2, ensure_ascii=False))
