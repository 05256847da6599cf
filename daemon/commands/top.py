"""Watch a running daemon, from this machine or another; ? shows the keys.

mdd top                                 the daemon on this machine
mdd top --address tcp://lab-pc:5751     one elsewhere (see docs/remote.md: it asks for keys)
mdd top --once                          one plain page, for scripts; also where the output is no terminal
mdd top --once --json                   everything, as JSON

Where the daemon's control channel answers, keys pause it, save a snapshot and put marks into the run file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import complain, options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config_options(parser)
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.status")
    parser.add_argument("--control", metavar="tcp://HOST:PORT", help="its wire.control, for the keys")
    parser.add_argument("--read-only", action="store_true", help="watch, and ask nothing of the daemon")
    parser.add_argument("--once", action="store_true", help="print one page and exit")
    parser.add_argument("--json", action="store_true", help="print the status as JSON and exit")
    parser.add_argument(
        "--timeout",
        type=options.positive,
        default=5.0,
        metavar="S",
        help="how long to wait for an answer (5)",
    )


def run(args: Namespace) -> int:
    """Subscribe and draw."""
    from microdiffusion.daemon.dashboard import LiveDashboard, Remote, control_beside, page
    from microdiffusion.daemon.status import subscribe
    from microdiffusion.wire import client_security

    config = options.config_from(args, {"wire.status": args.address, "wire.control": args.control})
    if args.address and not args.control:
        config = control_beside(config, args.address)
    security = client_security(config.wire, config.wire.status)
    if sys.stderr.isatty():  # a person waits
        complain(f"looking for a daemon at {config.wire.status}, for {args.timeout:g} s at most ...")
    if args.once or args.json or not sys.stdout.isatty():
        snapshot = next(subscribe(config.wire.status, args.timeout, security=security))
        if args.json:
            say(json.dumps(snapshot.model_dump(mode="json", exclude={"preview"}), indent=2))
        else:
            say(page(snapshot))
        return 0
    remote = None if args.read_only else Remote(config.wire)
    dashboard = LiveDashboard(config.dashboard)

    def idle() -> None:
        if remote is not None:
            remote.tell(dashboard)
        dashboard.wait(0.0)

    snapshots = subscribe(config.wire.status, args.timeout, security=security, idle=idle)
    first = next(snapshots)  # the screen is taken when there is something to show
    with _polite_kill(), dashboard:
        try:
            for snapshot in itertools.chain([first], snapshots):
                if remote is not None:
                    remote.look(snapshot, dashboard)
                dashboard.show(snapshot)
        except KeyboardInterrupt:  # the way to leave, not an accident
            return 0
    return 0


@contextlib.contextmanager
def _polite_kill() -> Iterator[None]:
    """Turn a kill into an end in order, so that the terminal is given back."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
