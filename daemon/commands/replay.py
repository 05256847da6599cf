"""Send a recorded file over the wire, as the microscope would.

  mdd replay projections.h5      to the daemon on this machine, as fast as it
                                 takes them
  mdd replay volume.h5 --rate 20 --serve
                                 20 frames/s, to a daemon of its own that ends
                                 with the file
  mdd replay projections.h5 --drop 0.01 --duplicate 0.01 --reorder 0.05 --seed 3
                                 over a bad connection

FILE is a projection file, or a volume (HDF5 dataset `volume`, or TIFF) that is
projected on the way, with the slabs of [sweep]. Faults are shares of the
frames; corrupted frames are sent again. With a rate, frames that the daemon
does not take wait in memory and then in the journal, as at the microscope.
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

    from microdiffusion.sender import Faults, SenderStats

OWN_DAEMON = {f"wire.{name}": "tcp://127.0.0.1:*" for name in ("data", "status", "control")}
"""A daemon of its own must not be in the way of another one, whose configuration it may share."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FILE", "projection or volume file", options.file)
    options.add(
        parser, "--rate HZ", "frames per second; default: as fast as they are taken", options.positive
    )
    options.add(parser, "--address tcp://HOST:PORT", "the daemon's wire.data", key="wire.data")
    options.add(parser, "--serve", "start a daemon for this replay")
    about = "folder of its run files (--serve)"
    options.add(parser, "--output DIR", about, options.folder, key="recorder.output")
    options.add(parser, "--headless", "log, even in a terminal (--serve)")
    options.add_config(parser)
    faults = parser.add_argument_group("faults of the connection")
    for name in ("drop", "duplicate", "reorder", "corrupt"):
        options.add(faults, f"--{name} P", f"share of frames to {name}", options.share, default=0.0)
    options.add(faults, "--stall S", "stop sending once, for S seconds", options.not_negative, default=0.0)
    options.add(faults, "--cut S", "disconnect once, for S seconds", options.not_negative, default=0.0)
    options.add(faults, "--seed N", "seed of the faults", options.seed, default=0)


def run(args: Namespace) -> int:
    """Open the file and send it."""
    if not args.serve:
        return _replay(args, None)
    stop = StopRequest()
    with stop.heard():  # loading takes a second, and a signal counts from now on
        return _replay(args, stop)


def _replay(args: Namespace, stop: StopRequest | None) -> int:
    own: dict[str, object] = {}
    if args.serve:
        if vars(args)["wire.data"] is not None:
            raise UserError("Give --serve (a daemon of its own) or --address (a running one), not both.")
        vars(args)["acquisition.driver"] = "none"
        # Without a rate the file waits for the engine; with one, it stands for a microscope, which cannot.
        own = {**OWN_DAEMON, "engine.policy": "wait" if args.rate is None else "archive"}
    config = options.config_from(args, implied=own)
    faults = _faults(args)

    from microdiffusion.drivers.replay import open_source, replay
    from microdiffusion.paths import journal_folder
    from microdiffusion.wire import client_security

    with open_source(args.file, sweep=config.sweep) as source:

        def feed(address: str, stop: Callable[[], bool]) -> SenderStats:
            return replay(
                source,
                address,
                rate_hz=args.rate,
                faults=faults,
                buffer_bytes=int(config.wire.send_buffer_mb * 1e6),
                journal=config.wire.journal or journal_folder(),
                # A daemon of its own ends with the replay: there is nobody to deliver to later.
                journal_bytes=0 if args.serve else int(config.wire.journal_gb * 1e9),
                security=client_security(config.wire, address),
                stop=stop,
            )

        if args.serve:
            from microdiffusion.daemon.server import serve

            return serve(config, dashboard=options.wants_dashboard(args), feed=feed, stopping=stop)
        _say(feed(config.wire.data, lambda: False))
    return 0


def _say(stats: SenderStats) -> None:
    text = f"{count_noun(stats.put, 'frame')}, {stats.acknowledged} acknowledged"
    losses = {"dropped": stats.dropped, "refused": stats.refused, "damaged": stats.damaged}
    for word, number in {**losses, "lost on purpose": stats.lost}.items():
        if number:
            text += f", {number} {word}"
    say(text)


def _faults(args: Namespace) -> Faults:
    from pydantic import ValidationError

    from microdiffusion.sender import Faults

    given = {name: getattr(args, name) for name in ("drop", "duplicate", "reorder", "corrupt", "seed")}
    try:
        return Faults(**given, stall_s=args.stall, cut_s=args.cut)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"These faults are impossible: {reason}.") from None
