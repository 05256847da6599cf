"""Completion of a command line, while it is typed: commands, options, configuration keys and presets.

The shell calls `mdd` itself with the line so far in its environment; `argcomplete` speaks its protocol. Only
the command that is on the line is imported. Runs in a process of its own for each press of the Tab key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import argcomplete

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping


def complete(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, str],
    command_parser: Callable[[str], argparse.ArgumentParser],
) -> int:
    """Answer the shell, and leave the process; see argcomplete's `autocomplete`."""
    words = os.environ.get("COMP_LINE", "").split()
    parts = parser.add_subparsers(dest="command")
    for name, text in commands.items():
        # The whole of a command is asked for only where it is on the line.
        if len(words) > 1 and words[1] == name:
            command = command_parser(name)
            _teach(command)
            parts.add_parser(name, help=text, parents=[command], add_help=False)
        else:
            parts.add_parser(name, help=text)
    argcomplete.autocomplete(parser)
    return 0


def _teach(command: argparse.ArgumentParser) -> None:
    """Give options their completers: configuration keys and presets; everything else completes files."""
    for action in command._actions:  # noqa: SLF001 argparse has no public list of them
        if "--set" in action.option_strings:
            action.completer = _settings  # type: ignore[attr-defined]
        elif "--config" in action.option_strings:
            action.completer = _presets  # type: ignore[attr-defined]


def _settings(prefix: str, **_: object) -> list[str]:
    """Return the configuration's keys, ready for their value."""
    from microdiffusion.config import keys

    return [f"{key.name}=" for key in keys().values() if key.name.startswith(prefix)]


def _presets(prefix: str, **known: object) -> Iterable[str]:
    """Return presets' names, and files."""
    from argcomplete.completers import FilesCompleter

    from microdiffusion.config import presets

    named = [name for name in presets() if name.startswith(prefix)]
    return [*named, *FilesCompleter(("toml",))(prefix, **known)]
