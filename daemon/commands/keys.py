"""Create keys, and manage the hosts that daemons trust.

  mdd keys new                   create this machine's key pair, once; prints
                                 the public key and the lines to paste elsewhere
  mdd keys show                  print this machine's public key
  mdd keys trust scope KEY       let the owner of KEY connect to daemons here
  mdd keys list                  list trusted hosts
  mdd keys forget scope          stop trusting `scope`

A daemon that listens on any address but loopback requires keys: one pair on its
machine, and one on each machine that connects. On the daemon's machine, `trust`
each of those; on theirs, set wire.server_key to what `show` prints on the
daemon's. Keys are kept in a private folder, or in wire.keys.
"""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.text import command_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="new|show|trust|list|forget")
    new = what.add_parser("new", help="create this machine's key pair")
    show = what.add_parser("show", help="print this machine's public key")
    trust = what.add_parser("trust", help="trust the owner of a key")
    options.add(trust, "NAME", "what to call it here")
    options.add(trust, "KEY", "what `mdd keys show` prints on the other machine, or a file with it")
    listing = what.add_parser("list", help="list trusted hosts")
    forget = what.add_parser("forget", help="stop trusting a host")
    options.add(forget, "NAME", "what it is called here")
    for part in (new, show, trust, listing, forget):
        options.add_config(part)


def run(args: Namespace) -> int:
    """Create, print, trust, list or forget."""
    from microdiffusion.paths import keys_folder
    from microdiffusion.wire import forget, new_keys, public_key, readable, trust, trusted_keys

    folder = options.config_from(args).wire.keys or keys_folder()
    if args.what == "new":
        key = readable(new_keys(folder))
        name = re.sub(r"[^A-Za-z0-9]+", "-", platform.node()).strip("-")[:64] or "scope"
        say(
            f"{key}\n"
            "To let this machine in, on the daemon's machine:\n"
            f"  {command_line('mdd', 'keys', 'trust', name, key)}\n"
            "For a daemon here, in the configuration (or after --set) of those who connect to it:\n"
            f"  wire.server_key={key}"
        )
    elif args.what == "show":
        say(readable(public_key(folder)))
    elif args.what == "trust":
        trust(folder, args.name, args.key)
        say(f"{args.name} is trusted")
    elif args.what == "forget":
        forget(folder, args.name)
        say(f"{args.name} is no longer trusted")
    else:
        for name, key in trusted_keys(folder).items():
            say(f"{name:<20} {readable(key)}")
    return 0
