"""Check a run file: does its ledger add up, is every frame and volume what was written.

A run that still goes on, or was cut off, is checked as far as it goes. Exit code 0: sound; 3: not.

mdd verify runs/demo.h5
mdd verify runs/demo.h5 --json
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.runfile import Report


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Check the run and say what was found."""
    from microdiffusion.daemon.cli import ProgressBar
    from microdiffusion.runfile import verify_run

    with ProgressBar(f"reading {args.file.name}", "planes", quiet=args.quiet) as progress:
        report = verify_run(args.file, progress=progress)
    if args.json:
        _say_json(report)
    else:
        _say(report)
    return 0 if report.sound else 3


def _say(report: Report) -> None:
    from microdiffusion.ledger import LEDGER_COLUMNS

    state = (
        "closed" if report.closed else "not closed: the run goes on or was cut off; checked as far as it goes"
    )
    verdict = "sound" if report.sound else "NOT sound"
    # What cannot be read says nothing about how it ended.
    say(f"{report.path}: {verdict}, {state}" if report.run_id else f"{report.path}: {verdict}")
    if report.run_id:
        held = f"{count_noun(report.frames, 'frame')} and {count_noun(report.volumes, 'volume')}"
        say(
            f"  checked      {held} by their checksums, "
            f"{count_noun(report.time_points, 'time point')} in {count_noun(report.files, 'file')}"
        )
    if report.ledger is not None:
        known = {name: getattr(report.ledger, name) for name in LEDGER_COLUMNS if name != "announced_known"}
        say(f"  ledger       {', '.join(f'{number} {name}' for name, number in known.items())}")
    for fault in report.faults:
        say(f"  wrong        {fault}")
    if report.faults_in_all > len(report.faults):
        say(f"  wrong        {report.faults_in_all - len(report.faults)} things more")


def _say_json(report: Report) -> None:
    import json
    from dataclasses import asdict

    say(json.dumps(asdict(report) | {"sound": report.sound}, indent=2))
