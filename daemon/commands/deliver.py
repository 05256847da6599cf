"""Send the frames that an interrupted acquisition or replay left in its journal.

  mdd deliver                    all journals of this user, to this machine's
                                 daemon
  mdd deliver D:/spill --config my.toml
                                 those in another folder, to the daemon that
                                 my.toml names
  mdd deliver --list             only list them

A journal in use by a running sender is skipped; one whose frames are all
acknowledged is deleted. The daemon resumes the run file if it is in its output
folder, else it begins a new one. Exit code 3 if frames are left.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import count_noun


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FOLDER", "folder of journals (wire.journal)", options.folder, nargs="?")
    options.add(parser, "--address tcp://HOST:PORT", "the daemon's wire.data", key="wire.data")
    options.add(parser, "--run RUN_ID", "this run only")
    options.add(parser, "--list", "list the journals, send nothing")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Deliver; 3 if something is left."""
    from microdiffusion.errors import MissingFileError
    from microdiffusion.paths import journal_folder
    from microdiffusion.sender import deliver
    from microdiffusion.wire import client_security

    config = options.config_from(args)
    folder: Path = args.folder or config.wire.journal or journal_folder()
    if args.folder is not None and not folder.is_dir():
        raise MissingFileError(f"There is no folder {folder}: give the one that wire.journal named.")
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
        frames = count_noun(len(journal.records), "frame")
        say(f"{path}: run {journal.header.name!r}, {frames}, {journal.size / 1e6:.1f} MB")
        journal.close()
    if not paths:
        say(f"nothing is left in {folder}")
    return 0
