"""The `mdd` command: dispatch, shared options, printing, progress. Light: a command imports what it needs."""

from microdiffusion.daemon.cli.dispatch import commands, main
from microdiffusion.daemon.cli.output import complain, say, say_json
from microdiffusion.daemon.cli.progress import ProgressBar, duration

__all__ = ["ProgressBar", "commands", "complain", "duration", "main", "say", "say_json"]
