"""Check what can go wrong before it does: Python, engine, microscope, ports, disk, computer.

  mdd doctor                              with the defaults: the demo devices, this folder's runs/
  mdd doctor --demo                       for mdd serve --demo
  mdd doctor --config my.toml             what your run asks for, against what is here
  mdd doctor --json > report.json         for a bug report: all versions, no keys

Each line says ok, warning or failure, and what to do. Ends with code 3 where something failed.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.config import Config
    from microdiffusion.daemon.doctor import Line


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config_options(parser, demo=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: Namespace) -> int:
    """Look at everything and say what was found; 3 where something failed."""
    config = options.config_from(args)
    if args.json:
        from microdiffusion.daemon.doctor import report

        lines = look(config)
        say(json.dumps(report(lines, str(args.config or "defaults")), indent=2, ensure_ascii=False))
    else:
        say(f"Checked for: {_whose(args)}.\n")
        _print(lines := look(config))
    return 3 if any(line.finding.level == "failure" for line in lines) else 0


def _whose(args: Namespace) -> str:
    if args.config:
        return f"mdd serve --config {args.config}"
    return "the defaults, with a camera nobody has described (--demo, or --config FILE: that run)"


def look(config: Config) -> list[Line]:
    """Return what all checks find for this configuration."""
    from microdiffusion.daemon.doctor import (
        Child,
        computer,
        disk,
        examine,
        gpu,
        microscope,
        network,
        packages,
    )

    child = Child(config.engine)
    try:
        return examine(
            [
                *packages.checks(config),
                *gpu.checks(config, child),
                *microscope.checks(config),
                *network.checks(config),
                *disk.checks(config),
                *computer.checks(config),
            ]
        )
    finally:
        child.close()


def _print(lines: list[Line]) -> None:
    from rich.console import Console

    from microdiffusion.daemon.dashboard import enable_windows_sequences
    from microdiffusion.daemon.doctor import WIDTH, page

    enable_windows_sequences()
    console = Console(highlight=False)
    if console.legacy_windows:  # a console that would show the sequences as they are
        console = Console(highlight=False, color_system=None)
    width = max(console.width, WIDTH) if sys.stdout.isatty() else WIDTH
    with console.capture() as capture:
        console.print(page(lines, min(width, 100)), end="", soft_wrap=True)
    say(capture.get().rstrip("\n"), styled=True)
