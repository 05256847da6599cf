"""The `mdd` command: dispatch, shared options, progress bars."""

from microdiffusion.daemon.cli.build_bar import BuildBar
from microdiffusion.daemon.cli.dispatch import commands, complain, main, say
from microdiffusion.daemon.cli.progress import ProgressBar
from microdiffusion.daemon.cli.suggestions import Value, suggestions, written

__all__ = [
    "BuildBar",
    "ProgressBar",
    "Value",
    "commands",
    "complain",
    "main",
    "say",
    "suggestions",
    "written",
]
