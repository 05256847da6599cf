"""The `mdd` command: finds the subcommand, imports it alone, and turns every error into one sentence.

`mdd --help` must be quick, so this module imports nothing heavy, and a subcommand's module only when it is
called. Exit codes: 0 success, 2 user error, 3 runtime failure, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import takewhile, zip_longest
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from microdiffusion import __version__
from microdiffusion.daemon.cli.output import complain, say
from microdiffusion.errors import ConfigError, MddError
from microdiffusion.text import did_you_mean

# Each text has 25 characters at most: `mdd --help` shows two columns of them.
GROUPS: dict[str, dict[str, str]] = {
    "At the microscope": {
        "serve": "acquire and reconstruct",
        "top": "watch a running daemon",
        "control": "start, pause, stop, set",
        "acquire": "acquire for another host",
        "deliver": "send undelivered frames",
    },
    "Run files": {
        "list": "all runs below a folder",
        "info": "describe a run",
        "verify": "check every byte of a run",
        "repair": "recover after a crash",
        "report": "one HTML page about a run",
        "export": "to napari, Fiji, Slicer",
        "snapshot": "copy a run, even live",
        "repack": "compress or decompress",
        "reconstruct": "volumes from recordings",
    },
    "Without a microscope": {
        "simulate": "projections from a volume",
        "replay": "send a file as if live",
    },
    "Setup": {
        "init": "write a configuration",
        "doctor": "check for problems",
        "config": "check, show, explain",
        "calibrate": "measure beam and camera",
        "keys": "manage trusted hosts",
        "compile": "build TensorRT engines",
    },
    "The network": {
        "train": "train on volumes",
        "adapt": "adapt to a session",
        "evaluate": "compare methods",
        "bench": "measure speed here",
    },
}


_OPTION = re.compile(r"-.?|-[\d.].*|--[a-z][a-z-]*(=.*)?", re.DOTALL)
"""Form of an option, or of a negative number."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one sentence."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep the words for `error`."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on stderr."""
        before = takewhile(lambda word: word != "--", self._words)
        odd = [word for word in before if word[:1] == "-" and not _OPTION.fullmatch(word)]
        if odd:
            message += f"; to name {odd[0]}, write it last, after --, or in --OPTION={odd[0]}"
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        raise SystemExit(2)


_FIXES = {  # of folders that may not even be looked into, and of files that cannot be
    errno.EACCES: "check the folder's permissions",
    errno.EPERM: "check the folder's permissions",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EEXIST: "a file is in its place; name another",
    errno.ENOTDIR: "a part of it is a file; name another",
    errno.ELOOP: "its links lead to each other; name the file itself",
}
LEAST_FILES = 256
"""Files and sockets that a process may have open."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mdd` with `argv` (None: the process's own arguments) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # replace what the terminal's encoding lacks (µ, ▀) rather than fail
            reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _interrupts_noted() as interrupts:
        try:
            _allow_descriptors()
            return _dispatch(arguments)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0
        except KeyboardInterrupt:
            pass
        except Exception as error:
            if not interrupts:
                return _explained(error, arguments)
    complain("mdd: interrupted")
    return 130


def _allow_descriptors() -> None:
    """Raise this process's limit of open files to what is allowed; ZeroMQ aborts where it meets one."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
            return
        if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
            raise ConfigError(
                f"Only {hard} files may be open at a time, mdd needs {LEAST_FILES}: raise `ulimit -n`."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_FILES, hard))


def _explained(error: Exception, arguments: list[str]) -> int:
    """Print an error as one sentence and return the exit code."""
    if isinstance(error, MddError):
        complain(f"mdd: {error}")
        return error.exit_code
    if isinstance(error, OSError) and error.filename and error.errno in _FIXES:
        complain(f"mdd: {error.filename} cannot be used ({error.strerror}): {_FIXES[error.errno]}.")
        return 2
    complain(
        f"mdd: unexpected error ({type(error).__name__}: {error}): please report it with "
        f"{_write_traceback(arguments)}."
    )
    return 3


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Give a list that grows with each Ctrl-C: compiled code may turn it into any other error."""
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


def commands() -> dict[str, str]:
    """Return all commands and what they do."""
    return {name: text for group in GROUPS.values() for name, text in group.items()}


def command_parser(name: str) -> Parser:
    """Return the parser of a command."""
    module = _module(name)
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"mdd {name}", description=module.__doc__, formatter_class=plain)
    module.add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    return import_module(f"microdiffusion.daemon.commands.{name}")


def _dispatch(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        return _complete()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_help())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        say(f"mdd {__version__}")
        return 0
    if name not in commands():
        complain(f"mdd: there is no command {name}{did_you_mean(name, commands())}; see mdd --help")
        return 2
    return int(_module(name).run(command_parser(name).parse_args(rest)))


def _complete() -> int:
    """Answer the shell, which asks with the line so far in the environment, for the Tab key."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()
    parser = Parser(prog="mdd")
    parts = parser.add_subparsers(dest="command")
    for name, text in commands().items():
        # A command is imported only if it is on the line.
        on_line = len(words) > 1 and words[1] == name
        parents = [command_parser(name)] if on_line else []
        parts.add_parser(name, help=text, parents=parents, add_help=not on_line)
    argcomplete.autocomplete(parser)
    return 0


def _help() -> str:
    """Return the commands by purpose, in two columns that fit a terminal of 80 x 24."""
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
    """Write the current exception's traceback to a file in the temporary folder and return where it is."""
    name = f"mdd-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    header = f"mdd {__version__}, Python {sys.version}, {sys.platform}\nmdd {' '.join(arguments)}\n\n"
    text = header + traceback.format_exc()
    try:
        file = Path(tempfile.gettempdir()) / name
        file.write_text(text, encoding="utf-8", errors="replace")
    except OSError:  # the disk is full, or there is no such folder
        return f"this: {text}"
    return f"the file {file}"
