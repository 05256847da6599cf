"""Check, show or explain a configuration.

mdd config check my.toml            report anything unknown or impossible
mdd config show demo > my.toml      a preset or file, all keys, with comments
mdd config list                     the presets that ship with mdd
mdd config explain sweep.step_um    what a key means, or those of a table
mdd config reference                all keys, as a page in Markdown
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import options, say

_FILE = "TOML file, or the name of a preset"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="check|show|list|explain|reference")
    check = what.add_parser("check", help="check a file or preset")
    options.add(check, "FILE", _FILE, dest="config")
    show = what.add_parser("show", help="print the resolved configuration")
    options.add(show, "FILE", f"{_FILE}; default: the defaults", dest="config", nargs="?")
    for part in (check, show):
        options.add_set(part)
    what.add_parser("list", help="list the presets")
    explain = what.add_parser("explain", help="explain a key, or all keys of a table")
    options.add(explain, "KEY", "such as sweep.step_um, or sweep")
    what.add_parser("reference", help="print the reference page")


def run(args: Namespace) -> int:
    """Check or print."""
    from microdiffusion.config import dump_toml, explained, presets, reference_page

    if args.what == "list":
        for name, about in presets().items():
            say(f"{name:<18} {about}")
    elif args.what == "explain":
        say(explained(args.key))
    elif args.what == "reference":
        say(reference_page().rstrip("\n"))
    elif args.what == "show":
        say(dump_toml(options.config_from(args)).rstrip("\n"))
    else:
        options.config_from(args)
        say(f"{args.config}: valid")
    return 0
