"""Check, show or explain a configuration.

mdd config check my.toml                name the line of anything unknown or impossible
mdd config show demo > my.toml          a preset or file with every key, resolved and commented
mdd config reference                    all keys, as a page in Markdown
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="check|show|reference")
    check = what.add_parser("check", help="check a file or preset")
    check.add_argument("config", metavar="FILE", help="TOML file, or a preset's name")
    show = what.add_parser("show", help="print the resolved configuration")
    show.add_argument(
        "config", metavar="FILE", nargs="?", help="TOML file, or a preset's name; nothing: the defaults"
    )
    for part in (check, show):
        part.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="set one key")
    what.add_parser("reference", help="print the reference page")


def run(args: Namespace) -> int:
    """Print."""
    from microdiffusion.config import dump_toml, reference_page

    if args.what == "reference":
        say(reference_page().rstrip("\n"))
        return 0
    config = options.config_from(args)
    if args.what == "show":
        say(dump_toml(config).rstrip("\n"))
        return 0
    say(f"{args.config}: valid")
    return 0
