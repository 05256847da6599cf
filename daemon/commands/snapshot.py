"""Copy a run into one file, also while it goes on. The copy is whole, and checked before it gets its name.

mdd snapshot runs/demo.h5 copies/demo_at_noon.h5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument("output", type=options.file, metavar="OUT", help="the copy, which must not exist")
    parser.add_argument("--json", action="store_true", help="what the copy holds as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Copy and say what the copy holds."""
    from microdiffusion.daemon.cli import ProgressBar
    from microdiffusion.runfile import snapshot_run

    with ProgressBar(f"copying {args.file.name}", "time points", quiet=args.quiet) as progress:
        report = snapshot_run(args.file, args.output, progress=progress)
    if args.json:
        import json
        from dataclasses import asdict

        say(json.dumps(asdict(report) | {"sound": report.sound}, indent=2))
    else:
        state = "a run that is closed" if report.closed else "a run that went on, or was cut off"
        held = f"{count_noun(report.volumes, 'volume')} and {count_noun(report.frames, 'frame')}"
        say(f"wrote {args.output}: {held} of {state}, checked")
    return 0
