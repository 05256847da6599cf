"""Send a recorded file over the wire, as the microscope would.

  mdd replay projections.h5                      to the daemon on this machine, as fast as it takes them
  mdd replay volume.h5 --rate 20 --serve         20 frames/s, to a daemon of its own that ends with it
  mdd replay projections.h5 --drop 0.01 --duplicate 0.01 --reorder 0.05 --seed 3      over a bad line

FILE is a projection file, or a volume (HDF5 dataset `volume`, or TIFF) that is projected on the way; its
slabs are those of [sweep]. Faults are shares of the frames; frames that are corrupted are sent again. With
a rate, what the daemon does not take waits in memory and then in the journal, as at the microscope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import UserError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.drivers.replay import ReplaySource
    from microdiffusion.sender import Faults, SenderStats

OWN_DAEMON = {
    "wire.data": "tcp://127.0.0.1:*",
    "wire.status": "tcp://127.0.0.1:*",
    "wire.control": "tcp://127.0.0.1:*",
}
"""A daemon of its own must not be in the way of another one, whose configuration it may share."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="FILE")
    parser.add_argument(
        "--rate", type=options.positive, metavar="HZ", help="frames per second; left out: as taken"
    )
    parser.add_argument("--address", metavar="tcp://HOST:PORT", help="the daemon's wire.data")
    parser.add_argument(
        "--serve", action="store_true", help="start a daemon for this replay, and end it after"
    )
    parser.add_argument(
        "--output", type=options.folder, metavar="DIR", help="folder of its run files (--serve)"
    )
    parser.add_argument("--headless", action="store_true", help="log, even in a terminal (--serve)")
    options.add_config_options(parser)
    faults = parser.add_argument_group("a bad line")
    for name in ("drop", "duplicate", "reorder", "corrupt"):
        faults.add_argument(f"--{name}", type=options.share, default=0.0, metavar="P")
    faults.add_argument(
        "--stall", type=options.not_negative, default=0.0, metavar="S", help="stand still once, s"
    )
    faults.add_argument(
        "--cut", type=options.not_negative, default=0.0, metavar="S", help="be cut off once, s"
    )
    faults.add_argument("--seed", type=options.seed, default=0, metavar="N")


def run(args: Namespace) -> int:
    """Open the file and send it."""
    if not args.serve:
        return _run(args, None)
    wish = StopRequest()
    with wish.heard():  # loading takes a second, and a stop is one from now on
        return _run(args, wish)


def _run(args: Namespace, wish: StopRequest | None) -> int:
    if args.serve and args.address is not None:
        raise UserError("Give --serve (a daemon of its own) or --address (one that runs), not both.")
    given: dict[str, object] = {"recorder.output": args.output, "wire.data": args.address}
    own: dict[str, object] = {}
    if args.serve:
        given["acquisition.driver"] = "none"
        # Without a rate the file waits for the engine; with one, it stands for a microscope, which cannot.
        own = {**OWN_DAEMON, "engine.policy": "wait" if args.rate is None else "archive"}
    config = options.config_from(args, given, implied=own)
    faults = _faults(args)

    from microdiffusion.drivers.replay import open_source

    with open_source(args.file, sweep=config.sweep) as source:
        if args.serve:
            return _serve(source, config, faults, args, wish)
        _report(_send(source, config, faults, args.rate, config.wire.data))
    return 0


def _serve(
    source: ReplaySource, config: Config, faults: Faults, args: Namespace, wish: StopRequest | None
) -> int:
    from microdiffusion.daemon.server import serve

    def feed(address: str, stop: Callable[[], bool]) -> None:
        _send(source, config, faults, args.rate, address, stop, own=True)

    return serve(config, dashboard=options.wants_dashboard(args), feed=feed, stopping=wish)


def _send(
    source: ReplaySource,
    config: Config,
    faults: Faults,
    rate_hz: float | None,
    address: str,
    stop: Callable[[], bool] = lambda: False,
    *,
    own: bool = False,
) -> SenderStats:
    from microdiffusion.drivers.replay import replay
    from microdiffusion.paths import journal_folder
    from microdiffusion.wire import client_security

    return replay(
        source,
        address,
        rate_hz=rate_hz,
        faults=faults,
        buffer_bytes=int(config.wire.send_buffer_mb * 1e6),
        journal=config.wire.journal or journal_folder(),
        # A daemon of its own ends with the replay: there is nobody to deliver to later.
        journal_bytes=0 if own else int(config.wire.journal_gb * 1e9),
        security=client_security(config.wire, address),
        stop=stop,
    )


def _report(stats: SenderStats) -> None:
    text = f"{count_noun(stats.put, 'frame')}, {stats.acknowledged} acknowledged"
    for words, number in (
        ("dropped", stats.dropped),
        ("refused", stats.refused),
        ("damaged", stats.damaged),
        ("lost on purpose", stats.lost),
    ):
        if number:
            text += f", {number} {words}"
    say(text)


def _faults(args: Namespace) -> Faults:
    from pydantic import ValidationError

    from microdiffusion.sender import Faults

    try:
        return Faults(
            drop=args.drop,
            duplicate=args.duplicate,
            reorder=args.reorder,
            corrupt=args.corrupt,
            stall_s=args.stall,
            cut_s=args.cut,
            seed=args.seed,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"These faults are impossible: {reason}.") from None
