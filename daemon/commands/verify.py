"""Check a run file: every frame and volume by its checksum, and its ledger.

A run that is still being recorded, or was interrupted, is checked as far as it
goes. Exit code 0: sound, 3: not.

mdd verify runs/demo.h5
mdd verify runs/demo.h5 --json
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json
from microdiffusion.ledger import LEDGER_COLUMNS
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.runfile import Report


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_run(parser)


def run(args: Namespace) -> int:
    """Check the run and print what was found."""
    from microdiffusion.runfile import verify_run

    with ProgressBar(f"reading {args.run.name}", "planes", quiet=args.quiet) as progress:
        report = verify_run(args.run, progress=progress)
    if args.json:
        say_json(report, sound=report.sound)
    else:
        _say(report)
    return 0 if report.sound else 3


def _say(report: Report) -> None:
    verdict = "sound" if report.sound else "NOT sound"
    if not report.run_id:  # it cannot be read, so nothing is known of how it ended
        say(f"{report.path}: {verdict}")
    else:
        state = "closed" if report.closed else "not closed (still recorded, or interrupted)"
        say(f"{report.path}: {verdict}, {state}")
        held = f"{count_noun(report.frames, 'frame')} and {count_noun(report.volumes, 'volume')}"
        where = f"{count_noun(report.time_points, 'time point')} in {count_noun(report.files, 'file')}"
        say(f"  checked      {held} by their checksums, {where}")
    if report.ledger is not None:
        known = {name: getattr(report.ledger, name) for name in LEDGER_COLUMNS if name != "announced_known"}
        say(f"  ledger       {', '.join(f'{number} {name}' for name, number in known.items())}")
    for fault in report.faults:
        say(f"  fault        {fault}")
    if report.faults_in_all > len(report.faults):
        say(f"  fault        {report.faults_in_all - len(report.faults)} more")
