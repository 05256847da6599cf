"""Watch a running daemon, on this machine or another; ? shows the keys.

mdd top                                the daemon on this machine
mdd top --address tcp://lab-pc:5751    one elsewhere (with keys: docs/remote.md)
mdd top --once                         one plain page, for scripts
mdd top --once --json                  everything, as JSON

If the daemon's control channel answers, keys pause it, save a snapshot and put
marks into the run file.
"""

from __future__ import annotations

import itertools
import sys
from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import complain, options, say, say_json
from microdiffusion.daemon.signals import StopRequest


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config(parser)
    options.add(parser, "--address tcp://HOST:PORT", "the daemon's wire.status", key="wire.status")
    options.add(parser, "--control tcp://HOST:PORT", "its wire.control, for the keys", key="wire.control")
    options.add(parser, "--read-only", "watch, and send no commands")
    options.add(parser, "--once", "print one page and exit")
    options.add(parser, "--json", "print the status as JSON and exit")
    options.add(parser, "--timeout S", "how long to wait for an answer", options.positive, default=5.0)


def run(args: Namespace) -> int:
    """Subscribe and draw."""
    from microdiffusion.daemon.dashboard import LiveDashboard, Remote, control_beside, page
    from microdiffusion.daemon.status import subscribe
    from microdiffusion.wire import client_security

    config = options.config_from(args)
    address, control = vars(args)["wire.status"], vars(args)["wire.control"]
    if address and not control:
        config = control_beside(config, address)
    security = client_security(config.wire, config.wire.status)
    if sys.stderr.isatty():  # a person waits
        complain(f"looking for a daemon at {config.wire.status}, for {args.timeout:g} s at most ...")
    if args.once or args.json or not sys.stdout.isatty():
        snapshot = next(subscribe(config.wire.status, args.timeout, security=security))
        if args.json:
            say_json(snapshot.model_dump(mode="json", exclude={"preview"}))
        else:
            say(page(snapshot))
        return 0
    remote = None if args.read_only else Remote(config.wire)
    dashboard = LiveDashboard(config.dashboard)
    stop = StopRequest()

    def idle() -> None:
        if stop.is_set():  # a kill too gives the terminal back
            raise KeyboardInterrupt
        if remote is not None:
            remote.tell(dashboard)
        dashboard.wait(0.0)

    snapshots = subscribe(config.wire.status, args.timeout, security=security, idle=idle)
    first = next(snapshots)  # the screen is taken when there is something to show
    with stop.heard(), dashboard:
        try:
            for snapshot in itertools.chain([first], snapshots):
                if remote is not None:
                    remote.look(snapshot, dashboard)
                dashboard.show(snapshot)
        except KeyboardInterrupt:  # the way to leave, not an accident
            return 0
    return 0
