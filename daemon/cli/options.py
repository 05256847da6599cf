"""Options and kinds of numbers that several subcommands share."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microdiffusion.config import Config


def add_config_options(parser: argparse.ArgumentParser, *, demo: bool = False) -> None:
    """Add --config and --set, and --demo where there may be one."""
    source = parser.add_mutually_exclusive_group()
    if demo:
        source.add_argument(
            "--demo", action="store_const", const="demo", dest="config", help="short for --config demo"
        )
    source.add_argument("--config", metavar="FILE", help="TOML file, or a preset's name")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set one key, e.g. --set sweep.step_um=10 (may be given several times)",
    )


def config_from(
    args: argparse.Namespace,
    options: Mapping[str, object] | None = None,
    *,
    implied: Mapping[str, object] | None = None,
) -> Config:
    """Return the configuration of --config, --set, and of the `options` (dotted keys) that are not None.

    `options` win over --set, and --set over `implied`.

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
    overrides |= {key: value for key, value in (options or {}).items() if value is not None}
    return load_config(args.config, overrides=overrides, implied=implied)


def wants_dashboard(args: argparse.Namespace) -> bool:
    """Whether to draw; where not, log lines go to stderr."""
    if sys.stdout.isatty() and not args.headless:
        return True
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return False


def positive(text: str) -> float:
    """Return a finite number greater than 0."""
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, not {text}")
    return value


def not_negative(text: str) -> float:
    """Return a finite number of at least 0."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, not {text}")
    return value


def finite(text: str) -> float:
    """Return a finite number."""
    return _number(text)


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, not {text}")
    return value


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    return _whole(text, least=1)


def seed(text: str) -> int:
    """Return a whole number of at least 0."""
    return _whole(text, least=0)


def folder(text: str) -> Path:
    """Return a path, with ~ expanded, that is not a file."""
    path = file(text)
    if path.is_file():
        raise argparse.ArgumentTypeError(f"expected a folder, but {text} is a file")
    return path


def file(text: str) -> Path:
    """Return a path, with ~ expanded; whether it exists is for whoever opens it to say."""
    return Path(os.path.expanduser(text))  # pathlib's raises where there is no such user, or no home


def _whole(text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, not {text}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, not {text}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, not {text}")
    return value
