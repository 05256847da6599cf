"""The `mdd` command: finds the subcommand, imports it alone, and turns every error into one sentence.

`mdd --help` must be quick, so this module imports nothing heavy, and a subcommand's module only when it
is called. Exit codes: 0 well, 2 the user's input, 3 failure while running, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from difflib import get_close_matches
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from microdiffusion import __version__
from microdiffusion.errors import MddError
from microdiffusion.text import strip_control

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType, ModuleType

# Each text has 25 characters at most: `mdd --help` shows two columns of them.
GROUPS: dict[str, dict[str, str]] = {
    "At the microscope": {
        "serve": "acquire and reconstruct",
        "top": "watch a running daemon",
        "control": "start, pause, stop, set",
        "acquire": "acquire for another host",
        "deliver": "send what a journal holds",
    },
    "With run files": {
        "info": "what a run holds",
        "verify": "check every byte of a run",
        "repair": "in order after a kill",
        "report": "one HTML page of a run",
        "export": "to napari, Fiji, Slicer",
        "snapshot": "a copy of a run, any time",
        "repack": "compress, or undo it",
        "reconstruct": "volumes from recordings",
    },
    "Without a microscope": {
        "simulate": "projections from a volume",
        "replay": "send a file, as if live",
    },
    "Setting up": {
        "init": "write a configuration",
        "doctor": "what could go wrong",
        "config": "check, show, explain",
        "calibrate": "measure beam and camera",
        "keys": "who may connect",
        "compile": "build TensorRT's engines",
        "completion": "complete with the Tab key",
    },
    "The network": {
        "train": "train on volumes",
        "adapt": "adapt to a session",
        "evaluate": "compare methods",
        "bench": "what a volume costs here",
    },
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps a description's lines where the terminal has room for them, and wraps them where it has not."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fitted(super()._fill_text(text, width, indent), max(width, 20))


def fitted(text: str, width: int) -> str:
    """Return a command's description without a line longer than `width`.

    A paragraph is filled anew; a line of code goes on with its remark in the next line.
    """
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        block = paragraph.splitlines()
        if any(line.startswith((" ", "mdd ")) or "   " in line for line in block):
            for line in block:
                code, gap, remark = line.rpartition("   ")
                fits = len(line) <= width or not gap or not code.strip()
                lines += [line] if fits else [code.rstrip(), *_wrapped(remark, width, " " * 6)]
        elif any(len(line) > width for line in block):
            lines += _wrapped(" ".join(block), width, "")
        else:
            lines += block
        lines.append("")
    return "\n".join(lines[:-1])


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on stderr."""
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mdd` with `argv` (None: the process's own arguments) and return its exit code."""
    _never_fail_to_print()
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _interrupts_noted() as interrupts:
        return _judged(arguments, interrupts)


def _judged(arguments: list[str], interrupts: list[int]) -> int:
    """Run a command and return the exit code; an error is one sentence."""
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if interrupts:
            return _interrupted()
        if isinstance(error, MddError):
            complain(f"mdd: {error}")
            return error.exit_code
        if isinstance(error, PermissionError) and error.filename:  # a folder that may not even be looked into
            complain(f"mdd: {error.filename} cannot be used ({error.strerror}): check its folder's rights.")
            return 2
        complain(
            f"mdd: this should not have happened ({type(error).__name__}: {error}): "
            f"please report it with {_write_traceback(arguments)}."
        )
        return 3


def _interrupted() -> int:
    complain("mdd: interrupted")
    return 130


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Give a list that grows with each Ctrl-C: compiled code may make any other error of it on its way up."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str = "", *, styled: bool = False) -> None:
    """Print to stdout; whoever stops reading (`mdd ... | head`) ends the command quietly.

    What comes from a file or a daemon cannot play the terminal; `styled` is a text with colours of our own.
    """
    try:
        print(text if styled else strip_control(text), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at exit, and must not stumble over the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def complain(text: str) -> None:
    """Print to stderr."""
    print(strip_control(text), file=sys.stderr, flush=True)


def commands() -> list[str]:
    """Return the names of all commands."""
    return [command for group in GROUPS.values() for command in group]


def command_parser(name: str) -> Parser:
    """Return the parser of a command."""
    module = _module(name)
    parser = Parser(prog=f"mdd {name}", description=module.__doc__, formatter_class=HelpFormatter)
    module.add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    return import_module(f"microdiffusion.daemon.commands.{name}")


def _dispatch(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from microdiffusion.daemon.cli.completing import complete

        texts = {name: text for group in GROUPS.values() for name, text in group.items()}
        return complete(Parser(prog="mdd"), texts, command_parser)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_help())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        say(f"mdd {__version__}")
        return 0
    if name not in commands():
        close = get_close_matches(name, commands(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        complain(f"mdd: there is no command {name}{hint}; see mdd --help")
        return 2
    return int(_module(name).run(command_parser(name).parse_args(rest)))


def _help() -> str:
    """Return the commands by what they are for, in two columns; a terminal of 80 x 24 shows all of it."""
    blocks = [
        [f"{title}:", *(f"  {name:<11} {text}" for name, text in group.items())]
        for title, group in GROUPS.items()
    ]
    # As even as the blocks allow: the split that leaves the fewest lines.
    heights = [len(block) for block in blocks]
    split = min(range(len(blocks) + 1), key=lambda at: max(sum(heights[:at]), sum(heights[at:])))
    columns = [[line for block in part for line in block] for part in (blocks[:split], blocks[split:])]
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(
        [
            "usage: mdd COMMAND [options]   (live volumes from Bessel-beam projections)",
            *(f"{left:<40}{right}".rstrip() for left, right in rows),
            "mdd COMMAND --help explains a command; start with: mdd serve --demo",
        ]
    )


def _write_traceback(arguments: list[str]) -> str:
    """Write the current exception's traceback to a file of the temporary folder and return where it is."""
    name = f"mdd-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    header = f"mdd {__version__}, Python {sys.version}, {sys.platform}\nmdd {' '.join(arguments)}\n\n"
    text = header + traceback.format_exc()
    try:
        file = Path(tempfile.gettempdir()) / name
        file.write_text(text, encoding="utf-8", errors="replace")
    except OSError:  # the disk is full, or there is no such folder
        return f"this: {text}"
    return f"the file {file}"


def _never_fail_to_print() -> None:
    """Replace what the terminal's encoding lacks (µ, ▀) rather than fail in the middle of a run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
