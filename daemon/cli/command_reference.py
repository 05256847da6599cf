"""The reference page of all commands, from their own parsers.

`python -m microdiffusion.daemon.cli.command_reference` prints it; a test compares docs/commands.md with it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli.dispatch import GROUPS, command_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Commands

`mdd --help` lists them, `mdd COMMAND --help` explains one. `mdd completion SHELL` makes the Tab key complete
commands, options, configuration keys and files.

| exit code | meaning |
|---|---|
| 0 | well |
| 2 | something that you can mend: an option, a configuration, a file |
| 3 | a failure while running, or a run file that is not sound |
| 130 | interrupted with Ctrl-C before there was anything to close in order |

Whatever goes wrong, one sentence on stderr says what and what to do. Colours go where a terminal is, and not
where `NO_COLOR` is set.

This page is written by `python -m microdiffusion.daemon.cli.command_reference`; a test keeps it up to date.
"""


def reference() -> str:
    """Return the page in Markdown."""
    parts = [INTRODUCTION]
    for title, group in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in group:
            parts.extend(_command(f"mdd {name}", command_parser(name)))
    return "\n".join(parts)


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"### `{name}`\n"
    if parser.description:
        yield _prose(parser.description)
    yield from _table(parser)
    for action in parser._actions:  # noqa: SLF001 argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help for choice in action._choices_actions}  # noqa: SLF001
            for part, below in action.choices.items():
                yield f"**`{name} {part}`**: {helps.get(part) or ''}\n"
                yield from _table(below)


def _prose(text: str) -> str:
    """Return a docstring as Markdown: lines that are commands or indented are code, the rest is text."""
    lines: list[str] = []
    inside = False
    for line in text.strip().splitlines():
        code = line.startswith((" ", "mdd ", "bash:", "zsh:", "fish:", "PowerShell:"))
        if code and not inside:
            lines.append("```text")
        elif inside and not code:
            lines.append("```")
        inside = code
        lines.append(line)
    if inside:
        lines.append("```")
    return "\n".join(lines) + "\n"


def _table(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = [
        row
        for action in parser._actions  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)  # noqa: SLF001
        if action.help != argparse.SUPPRESS
        for row in [_row(action)]
    ]
    if rows:
        yield "| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"


def _row(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        shown = name
    elif action.nargs == 0:
        shown = ", ".join(action.option_strings)
    else:
        shown = f"{', '.join(action.option_strings)} {name}"
    meaning = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return f"| `{_cell(shown)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(reference().rstrip("\n"))
