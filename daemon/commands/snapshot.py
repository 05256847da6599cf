"""Copy a run into one file, even while it is being recorded.

The copy is complete, and is checked before it gets its name.

mdd snapshot runs/demo.h5 copies/demo_at_noon.h5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.runfile import Report


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_run(parser)
    options.add(parser, "OUT", "the copy, which must not exist", options.file)


def run(args: Namespace) -> int:
    """Copy and print what the copy holds."""
    from microdiffusion.runfile import snapshot_run

    with ProgressBar(f"copying {args.run.name}", "time points", quiet=args.quiet) as progress:
        report = snapshot_run(args.run, args.out, progress=progress)
    if args.json:
        say_json(report, sound=report.sound)
    else:
        say(f"wrote {args.out}: {described(report)}")
    return 0


def described(report: Report) -> str:
    """Return what a copy holds."""
    state = "a closed run" if report.closed else "a run that is open, or was cut off"
    held = f"{count_noun(report.volumes, 'volume')} and {count_noun(report.frames, 'frame')}"
    return f"{held} of {state}, checked"
