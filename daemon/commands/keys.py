"""Make and trust the keys for daemons on other machines.

  mdd keys new                   make this machine's pair, once; prints the public one
  mdd keys show                  print this machine's public key again
  mdd keys trust scope KEY       let the owner of KEY in to the daemons on this machine
  mdd keys list                  who is trusted
  mdd keys forget scope          let `scope` in no more

A daemon that listens on any address but loopback asks for keys: it has a pair, and so has each machine that
connects. On the daemon's machine `trust` each of those; on theirs, set wire.server_key to what `show` says on
the daemon's. The keys lie in a folder of the user's own, or in wire.keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="new|show|trust|list|forget")
    new = what.add_parser("new", help="make this machine's pair of keys")
    show = what.add_parser("show", help="print this machine's public key")
    trust = what.add_parser("trust", help="let the owner of a key in")
    trust.add_argument("name", metavar="NAME", help="what to call it here")
    trust.add_argument("key", metavar="KEY", help="what `mdd keys show` says on the other machine")
    listing = what.add_parser("list", help="print who is trusted")
    forget = what.add_parser("forget", help="let somebody in no more")
    forget.add_argument("name", metavar="NAME")
    for part in (new, show, trust, listing, forget):
        options.add_config_options(part)


def run(args: Namespace) -> int:
    """Do it."""
    from microdiffusion.paths import keys_folder
    from microdiffusion.wire import forget, new_keys, public_key, trust, trusted_keys

    folder = options.config_from(args).wire.keys or keys_folder()
    if args.what == "new":
        say(new_keys(folder))
    elif args.what == "show":
        say(public_key(folder))
    elif args.what == "trust":
        trust(folder, args.name, args.key)
        say(f"{args.name} is trusted")
    elif args.what == "forget":
        forget(folder, args.name)
        say(f"{args.name} is let in no more")
    else:
        for name, key in trusted_keys(folder).items():
            say(f"{name:<20} {key}")
    return 0
