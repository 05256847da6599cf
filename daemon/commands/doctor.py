"""Check for problems before a run: Python, engine, microscope, ports, disk.

  mdd doctor                          the defaults: demo devices, runs/
  mdd doctor --demo                   what mdd serve --demo needs
  mdd doctor --config my.toml         what your run needs
  mdd doctor --json > report.json     for a bug report: all versions, no keys

Each line is ok, a warning or a failure, with what to do. Exit code 3 if
anything failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say, say_json
from microdiffusion.text import command_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config(parser, demo=True)
    options.add(parser, "--json", "print one JSON object")


def run(args: Namespace) -> int:
    """Run all checks and print what they found; 3 if anything failed."""
    from microdiffusion.daemon.doctor import examine, page, report

    config = options.config_from(args)
    if args.json:
        findings = examine(config)
        say_json(report(findings, str(args.config or "defaults")))
    else:
        from rich.console import Console

        what = (
            command_line("mdd", "serve", "--config", Path(args.config))
            if args.config
            else "the defaults (see --demo, --config)"
        )
        say(f"Checks for {what}\n")
        console = Console(highlight=False)
        console.print(page(findings := examine(config)), width=min(console.width, 100))
    return 3 if any(finding.level == "failure" for _, finding in findings) else 0
