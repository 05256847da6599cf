"""Watch a running daemon, from this machine or another.

mdd top                                 the daemon on this machine
mdd top --address tcp://lab-pc:5751     one elsewhere (see docs/remote.md: it asks for keys)
mdd top --once                          one plain page, for scripts
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import say
from microdiffusion.daemon.commands import options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config_options(parser)
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.status")
    parser.add_argument("--once", action="store_true", help="print one page and exit")
    parser.add_argument(
        "--timeout",
        type=options.positive,
        default=5.0,
        metavar="S",
        help="how long to wait for an answer (5)",
    )


def run(args: Namespace) -> int:
    """Subscribe and draw."""
    from microdiffusion.daemon.dashboard import LiveDashboard, page
    from microdiffusion.daemon.status import subscribe
    from microdiffusion.keys import client_security

    config = options.config_from(args, {"wire.status": args.address})
    security = client_security(config.wire, config.wire.status)
    snapshots = subscribe(config.wire.status, args.timeout, security=security)
    if args.once:
        say(page(next(snapshots)))
        return 0
    with LiveDashboard(preview=config.dashboard.preview) as dashboard:
        try:
            for snapshot in snapshots:
                dashboard.show(snapshot)
        except KeyboardInterrupt:  # the way to leave, not an accident
            return 0
    return 0
