"""Acquire, reconstruct and record until Ctrl-C, --volumes or --duration.

  mdd serve --demo                        Micro-Manager's demo devices, a virtual specimen
  mdd serve --config my.toml              your microscope
  mdd serve --config remote-engine        frames that come over the network
  mdd serve --resume runs/demo_....h5     go on with a run that was cut off, as it was configured

Without a terminal it logs a line every ten seconds instead of drawing. `mdd top` watches from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import options
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import UserError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator
    from pathlib import Path


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
    parser.add_argument(
        "--no-compile",
        action="store_false",
        dest="compile",
        default=None,
        help="serve with torch where TensorRT's engine would have to be built first",
    )
    parser.add_argument("--headless", action="store_true", help="log, even in a terminal")


def run(args: Namespace) -> int:
    """Load the configuration and serve."""
    wish = StopRequest()
    with wish.heard():  # loading takes a second, and a stop is one from now on
        return _serve(args, wish)


def _serve(args: Namespace, wish: StopRequest) -> int:
    given: dict[str, object] = {
        "recorder.output": args.output,
        "acquisition.specimen": args.specimen,
        "engine.compile": args.compile,
    }
    recorded: dict[str, object] = {}
    if args.resume is not None:
        if args.output is not None:
            raise UserError("A run goes on in its own file: leave --output out with --resume.")
        recorded = _recorded(args.resume, args.config)
        given["recorder.output"] = args.resume.parent
    config = options.config_from(args, given, implied=recorded)
    from microdiffusion.daemon.server import serve

    return serve(
        config,
        volumes=args.volumes,
        duration_s=args.duration,
        dashboard=options.wants_dashboard(args),
        resume=args.resume,
        stopping=wish,
    )


def _recorded(path: Path, config: str | None) -> dict[str, object]:
    """Return the configuration that a run file was recorded with, as dotted keys; none where one is named."""
    from microdiffusion import open_run

    with open_run(path) as run:
        recorded = run.config
    return {} if config is not None else dict(_flat(recorded, ""))


def _flat(table: dict[str, Any], above: str) -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", value
