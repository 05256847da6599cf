"""Ask something of a running daemon.

  mdd control status
  mdd control start                      an acquisition that waits (acquisition.begin = "on command")
  mdd control pause        go, stop
  mdd control set engine.steps=2         a setting that may be changed during a run
  mdd control mark "new objective"       a remark in the run file, with the time
  mdd control snapshot                   the newest volume as a TIFF beside the run file

The commands reach every acquisition that sends to the daemon, here or on another machine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import UserError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    commands = ("status", "start", "pause", "go", "stop", "set", "mark", "snapshot")
    parser.add_argument("what", choices=commands, metavar="COMMAND")
    parser.add_argument(
        "assignment",
        nargs="?",
        metavar="VALUE",
        help="KEY=VALUE for set, the text of a mark, a session's name",
    )
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.control")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Ask, and print the answer."""
    takes = args.what in ("mark", "snapshot")
    if not takes and (args.what == "set") != (args.assignment is not None):
        raise UserError("Expected `mdd control set KEY=VALUE`, or one of the other commands alone.")
    key, equals, value = ("", "", args.assignment or "") if takes else (args.assignment or "").partition("=")
    if args.what == "set" and not (key and equals and value):
        raise UserError(f"Expected KEY=VALUE such as engine.steps=2, not {args.assignment!r}.")
    config = options.config_from(args, {"wire.control": args.address})

    from microdiffusion.daemon.control import ask
    from microdiffusion.wire import client_security

    answer = ask(
        config.wire.control,
        args.what,
        key=key.strip(),
        value=value.strip(),
        security=client_security(config.wire, config.wire.control),
    )
    if args.json:
        say(json.dumps({"text": answer.text, **answer.values}))
        return 0
    say(answer.text)
    for name, content in answer.values.items():
        say(f"{name:<18} {content}")
    return 0
