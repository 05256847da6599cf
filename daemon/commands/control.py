"""Send a command to a running daemon.

  mdd control status
  mdd control start                   start a waiting acquisition
                                      (acquisition.begin = "on command")
  mdd control pause                   also: go, stop
  mdd control set engine.steps=2      change a setting during a run
  mdd control mark "new objective"    put a mark into the run file
  mdd control snapshot                save the newest volume as a TIFF

The commands reach every acquisition that sends to the daemon, here or on
another machine.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import options, say, say_json
from microdiffusion.errors import UserError

COMMANDS = ("status", "start", "pause", "go", "stop", "set", "mark", "snapshot")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "COMMAND", ", ".join(COMMANDS), choices=COMMANDS)
    options.add(parser, "VALUE", "KEY=VALUE to set, text of a mark, name of a session", nargs="?")
    options.add(parser, "--address tcp://HOST:PORT", "the daemon's wire.control", key="wire.control")
    options.add(parser, "--json", "print the answer as JSON")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Ask, and print the answer."""
    key, value = "", args.value or ""
    if args.command == "set":
        key, _, value = value.partition("=")
        if not (key and value):
            raise UserError(f"Expected KEY=VALUE such as engine.steps=2, not {args.value!r}.")
    elif args.value is not None and args.command not in ("mark", "snapshot"):
        raise UserError(f"`mdd control {args.command}` takes no value: leave {args.value!r} out.")
    config = options.config_from(args)

    from microdiffusion.wire import ask, client_security

    security = client_security(config.wire, config.wire.control)
    answer = ask(config.wire.control, args.command, key=key.strip(), value=value.strip(), security=security)
    if args.json:
        say_json({"text": answer.text, **answer.values})
        return 0
    say(answer.text)
    for name, content in answer.values.items():
        say(f"{name:<18} {content}")
    return 0
