"""Recover a run after a crash: close it, with a status for every time point.

The run is then checked. Not needed before `mdd serve --resume`, and a repaired
run can still be resumed. A run that a daemon is writing is refused. Exit code
0: sound now, 3: not.

mdd repair runs/demo.h5
mdd repair runs/demo.h5 --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_run(parser)


def run(args: Namespace) -> int:
    """Repair the run and print what was found and done."""
    from microdiffusion.daemon.offline import repair_run

    with ProgressBar(f"reading {args.run.name}", "planes", quiet=args.quiet) as progress:
        report = repair_run(args.run, progress=progress)
    if args.json:
        say_json(report, sound=report.sound)
    else:
        say(f"{report.path}: {'sound' if report.sound else 'NOT sound'}")
        for sentence in report.done or ["nothing needed repair"]:
            say(f"  {sentence}")
        for fault in report.faults:
            say(f"  fault        {fault}")
    return 0 if report.sound else 3
