"""Close a run that a killed daemon left open: every time point that was begun gets a status.

The run is verified afterwards. Not needed before `mdd serve --resume`, and a repaired run can be resumed. A
file that a daemon is writing is refused. Exit code 0: sound; 3: not.

mdd repair runs/demo.h5
mdd repair runs/demo.h5 --json
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="what was found and done, as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Repair the run and say what was found and done."""
    from microdiffusion.daemon.cli import ProgressBar
    from microdiffusion.daemon.offline import repair_run

    with ProgressBar(f"reading {args.file.name}", "planes", quiet=args.quiet) as progress:
        report = repair_run(args.file, progress=progress)
    if args.json:
        import json
        from dataclasses import asdict

        say(json.dumps(asdict(report) | {"sound": report.sound}, indent=2))
    else:
        say(f"{report.path}: {'sound' if report.sound else 'NOT sound'}")
        for sentence in report.done or ["nothing needed repair"]:
            say(f"  {sentence}")
        for fault in report.faults:
            say(f"  wrong        {fault}")
    return 0 if report.sound else 3
