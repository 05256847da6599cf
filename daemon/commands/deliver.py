"""Send what an interrupted acquisition or replay has left in its journal.

  mdd deliver                        all journals of this user, to the daemon on this machine
  mdd deliver D:/spill --config my.toml      those in another folder, to the daemon that my.toml names
  mdd deliver --list                 only say what is there

A journal that a running sender has open is passed over; one whose frames the daemon has confirmed is deleted.
The daemon goes on with the run's file if it lies in its output folder, and begins one otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folder", type=options.folder, nargs="?", metavar="FOLDER", help="folder of journals (wire.journal)"
    )
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.data")
    parser.add_argument("--run", metavar="RUN_ID", help="only this run's")
    parser.add_argument("--list", action="store_true", help="say what is there, and send nothing")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Deliver; 3 where something is left."""
    from microdiffusion.errors import MissingFileError
    from microdiffusion.paths import journal_folder
    from microdiffusion.sender import deliver
    from microdiffusion.wire import client_security

    config = options.config_from(args, {"wire.data": args.address})
    folder: Path = args.folder or config.wire.journal or journal_folder()
    if args.folder is not None and not folder.is_dir():
        raise MissingFileError(f"There is no folder {folder}: name the one that wire.journal named.")
    if args.list:
        return _list(folder, args.run)
    found = left = 0
    security = client_security(config.wire, config.wire.data)
    for delivered in deliver(folder, config.wire.data, run_id=args.run, security=security):
        say(str(delivered))
        found += 1
        left += not delivered.done
    if not found:
        say(f"nothing is left in {folder}")
    return 3 if left else 0


def _list(folder: Path, run_id: str | None) -> int:
    from microdiffusion.sender import Journal, left_over

    paths = left_over(folder, run_id)
    for path in paths:
        journal = Journal.reopen(path)
        if journal is None:
            say(f"{path}: in use")
            continue
        say(
            f"{path}: run {journal.header.name!r}, {count_noun(len(journal.records), 'frame')}, "
            f"{journal.size / 1e6:.1f} MB"
        )
        journal.close()
    if not paths:
        say(f"nothing is left in {folder}")
    return 0
