"""Options of commands: one line each, shared ones, kinds of numbers, and the configuration they make."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _ActionsContainer  # a parser, or a group of one
    from collections.abc import Callable, Iterable, Mapping

    from microdiffusion.config import Config


def add(
    parser: _ActionsContainer,
    usage: str,
    about: str | None = None,
    type: Callable[[str], object] | None = None,
    *,
    key: str | None = None,
    **more: Any,
) -> None:
    """Add an option as its usage line says it: "--rate HZ", "FILE", or "--json", which is a flag.

    Parameters
    ----------
    about : str
        What the help says; a default that is a number or a word is added.
    type : callable
        Makes the value, or raises `argparse.ArgumentTypeError`.
    key : str
        The dotted key of the configuration that the option sets; `config_from` finds it.
    """
    name, _, metavar = usage.partition(" ")
    if type is not None:
        more["type"] = type
    if key is not None:
        more["dest"] = key
    if not name.startswith("-"):
        name, metavar = more.pop("dest", name.lower()), name
    if metavar:
        more["metavar"] = tuple(metavar.split()) if isinstance(more.get("nargs"), int) else metavar
    elif "action" not in more and "choices" not in more:
        more["action"] = "store_true"
    default = more.get("default")
    named = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    if about is not None and named:
        about += f" ({default:g})" if isinstance(default, float) else f" ({default})"
    parser.add_argument(name, help=about, **more)


def add_config(parser: argparse.ArgumentParser, *, demo: bool = False) -> None:
    """Add --config and --set, and --demo where there may be one."""
    source = parser.add_mutually_exclusive_group()
    if demo:
        add(source, "--demo", "short for --config demo", action="store_const", const="demo", dest="config")
    config = source.add_argument("--config", metavar="FILE", help="TOML file, or the name of a preset")
    config.completer = _presets  # type: ignore[attr-defined]
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    assignments = parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key: sweep.step_um=10 (repeatable)",
    )
    assignments.completer = _keys  # type: ignore[attr-defined]


def add_run(parser: argparse.ArgumentParser, *, quiet: bool = True) -> None:
    """Add the run file that a command works on, --json, and --quiet where it takes a while."""
    add(parser, "RUN", "run file", file)
    add(parser, "--json", "print JSON")
    if quiet:
        add(parser, "--quiet", "no progress bar")


def config_from(args: argparse.Namespace, *, implied: Mapping[str, object] | None = None) -> Config:
    """Return the configuration of --config, --set, and the options with a `key`, which win.

    `implied` are values of keys that all of these win over.

    Raises
    ------
    ConfigError, MissingFileError
        See `load_config`.
    """
    from microdiffusion.config import load_config

    overrides: dict[str, object] = {}
    for assignment in args.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"Expected --set section.key=value, not --set {assignment}.")
        overrides[key.strip()] = value.strip()
    given = {key: value for key, value in vars(args).items() if "." in key and value not in (None, [])}
    return load_config(args.config, overrides=overrides | given, implied=implied)


def wants_dashboard(args: argparse.Namespace) -> bool:
    """Return whether to draw; if not, log lines go to stderr."""
    if sys.stdout.isatty() and not args.headless:
        return True
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return False


def _keys(prefix: str, **_: object) -> list[str]:
    """Complete a key of the configuration, ready for its value."""
    from microdiffusion.config import keys

    return [f"{key.name}=" for key in keys().values() if key.name.startswith(prefix)]


def _presets(prefix: str, **known: object) -> Iterable[str]:
    """Complete a preset's name, or a file."""
    from argcomplete.completers import FilesCompleter

    from microdiffusion.config import presets

    named = [name for name in presets() if name.startswith(prefix)]
    return [*named, *FilesCompleter(("toml",))(prefix, **known)]


def positive(text: str) -> float:
    """Return a finite number greater than 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, not {text}")
    return value


def not_negative(text: str) -> float:
    """Return a finite number of at least 0."""
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, not {text}")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, not {text}")
    return value


def finite(text: str) -> float:
    """Return a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, not {text}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, not {text}")
    return value


def count(text: str, least: int = 1) -> int:
    """Return a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, not {text}")
    return value


def seed(text: str) -> int:
    """Return a whole number of at least 0."""
    return count(text, least=0)


def shape(text: str) -> tuple[int, int, int]:
    """Return slices, rows and columns of "64x128x128" or "64,128,128"."""
    try:
        z, y, x = (count(part) for part in text.lower().replace("x", ",").split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"expected slices, rows and columns such as 64x128x128, not {text}"
        ) from None
    return z, y, x


def folder(text: str) -> Path:
    """Return a path, with ~ expanded, that is not a file."""
    path = file(text)
    if path.is_file():
        raise argparse.ArgumentTypeError(f"expected a folder, but {text} is a file")
    return path


def output(text: str) -> Path:
    """Return the path of a file to write, in a folder that exists."""
    path = file(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text} does not exist: create it first")
    return path


def file(text: str) -> Path:
    """Return a path, with ~ expanded; it is opened by whoever needs it."""
    return Path(os.path.expanduser(text))  # pathlib's raises where there is no such user, or no home
