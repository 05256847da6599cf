"""Acquire, reconstruct and record until Ctrl-C, --volumes or --duration.

  mdd serve --demo                        Micro-Manager's demo devices, a virtual specimen
  mdd serve --config my.toml              your microscope
  mdd serve --config remote-engine        frames that come over the network

Without a terminal it logs a line every ten seconds instead of drawing. `mdd top` watches from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.commands import options
from microdiffusion.errors import UserError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config_options(parser, demo=True)
    parser.add_argument("--output", type=options.folder, metavar="DIR", help="folder of the run files")
    parser.add_argument("--volumes", type=options.count, metavar="N", help="stop after N volumes")
    parser.add_argument("--duration", type=options.positive, metavar="S", help="stop after S seconds")
    parser.add_argument(
        "--no-specimen",
        action="store_false",
        dest="specimen",
        default=None,
        help="the camera's own pixels, not the virtual specimen's",
    )
    parser.add_argument("--resume", type=options.file, metavar="RUN", help="go on with this run file")
    parser.add_argument("--headless", action="store_true", help="log, even in a terminal")


def run(args: Namespace) -> int:
    """Load the configuration and serve."""
    if args.resume is not None:
        raise UserError("Resuming a run file is not possible yet: leave --resume out to begin a new file.")
    config = options.config_from(
        args, {"recorder.output": args.output, "acquisition.specimen": args.specimen}
    )
    from microdiffusion.daemon.serve import serve

    return serve(
        config,
        volumes=args.volumes,
        duration_s=args.duration,
        dashboard=options.wants_dashboard(args),
    )
