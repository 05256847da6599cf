"""List every run below a folder, and its state.

mdd list runs
mdd list /data --state damaged --state interrupted
mdd list /data --json > runs.json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from microdiffusion.daemon.cli import ProgressBar, options, say, say_json
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.runfile import RunEntry

_TITLES = ("started", "state", "time points", "size", "voxels", "served", "run")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from microdiffusion.runfile import RunState

    about = "where to look, at any depth (default: here)"
    options.add(parser, "FOLDER", about, options.file, nargs="?", default=Path())
    states = get_args(RunState)
    about = f"these only: {', '.join(states)} (repeatable)"
    options.add(parser, "--state STATE", about, action="append", default=[], choices=states)
    options.add(parser, "--json", "print JSON")
    options.add(parser, "--quiet", "no progress bar")


def run(args: Namespace) -> int:
    """Look, and print a line for each run."""
    from microdiffusion.runfile import list_runs

    with ProgressBar(f"looking at {args.folder}", "files", quiet=args.quiet) as progress:
        found = list_runs(args.folder, progress=progress)
    runs = [each for each in found if not args.state or each.state in args.state]
    if args.json:
        say_json({"folder": str(args.folder), "runs": [asdict(each) for each in runs]})
        return 0
    for line in _table([_TITLES, *(_row(each, args.folder) for each in runs)] if runs else []):
        say(line)
    for each in runs:
        if each.problem:
            say(f"{each.state}: {each.path}: {each.problem}")
    say(_total(args.folder, runs))
    return 0


def _row(each: RunEntry, folder: Path) -> tuple[str, ...]:
    from microdiffusion.daemon.status import size

    try:
        started = f"{datetime.fromisoformat(each.created_utc).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # no date, or one that this system cannot handle
        started = "-"
    sessions = max(len(each.channels), 1) * max(len(each.positions), 1)
    points = f"{each.written}/{(each.sweeps or each.time_points) * sessions}" if each.shape else "-"
    voxels = "x".join(str(length) for length in each.shape) if each.shape else "-"
    path = Path(each.path)
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    if each.name and each.name not in path.stem:
        name += f"  ({each.name})"
    return (started, each.state, points, size(each.bytes), voxels, each.served or "-", name)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as aligned lines; the last column is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]])


def _total(folder: Path, runs: Sequence[RunEntry]) -> str:
    from microdiffusion.daemon.status import size

    if not runs:
        return f"no runs below {folder}"
    states = Counter(each.state for each in runs)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return f"{count_noun(len(runs), 'run')} ({counts}), {size(sum(each.bytes for each in runs))}"
