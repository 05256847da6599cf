"""Acquire, reconstruct and record until Ctrl-C, --volumes or --duration.

  mdd serve --demo                   Micro-Manager's demo devices and a virtual
                                     specimen
  mdd serve --demo --adaptive        the same, with slabs where something changes
  mdd serve --config my.toml         your microscope
  mdd serve --config remote-engine   frames that come over the network
  mdd serve --resume runs/demo.h5    resume an interrupted run, configured as it
                                     was

Without a terminal it logs a line every ten seconds instead of drawing.
`mdd top` watches from elsewhere.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

from microdiffusion.daemon.cli import options
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add_config(parser, demo=True)
    options.add(parser, "--output DIR", "folder of the run files", options.folder, key="recorder.output")
    options.add(parser, "--volumes N", "stop after N volumes", options.count)
    options.add(parser, "--duration S", "stop after S seconds", options.positive)
    off: dict[str, Any] = {"action": "store_false", "default": None}
    about = "the camera's own pixels, not the virtual specimen's"
    options.add(parser, "--no-specimen", about, key="acquisition.specimen", **off)
    about = "denser slabs where something changes (acquisition.adaptive)"
    adaptive: dict[str, Any] = {"action": "store_const", "const": "changes", "default": None}
    options.add(parser, "--adaptive", about, key="acquisition.adaptive.policy", **adaptive)
    options.add(parser, "--resume RUN", "resume this run", options.file)
    about = "use torch if TensorRT's engine is not built yet"
    options.add(parser, "--no-compile", about, key="engine.compile", **off)
    options.add(parser, "--headless", "log, even in a terminal")


def run(args: Namespace) -> int:
    """Load the configuration and serve."""
    stop = StopRequest()
    with stop.heard():  # loading takes a second, and a signal counts from now on
        return _serve(args, stop)


def _serve(args: Namespace, stop: StopRequest) -> int:
    recorded: dict[str, object] = {}
    if args.resume is not None:
        if vars(args)["recorder.output"] is not None:
            raise UserError("A run is resumed in its own file: leave --output out with --resume.")
        from microdiffusion import open_run

        with open_run(args.resume, missing="refuse") as run:
            recorded = dict(_known(run.config)) if args.config is None else {}
        vars(args)["recorder.output"] = args.resume.parent
    config = options.config_from(args, implied=recorded)
    from microdiffusion.daemon.server import serve

    return serve(
        config,
        volumes=args.volumes,
        duration_s=args.duration,
        dashboard=options.wants_dashboard(args),
        resume=args.resume,
        stopping=stop,
    )


def _known(table: dict[str, Any], *above: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted keys of a recorded configuration and their values, without those of other versions."""
    from microdiffusion.config import keys

    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, dict):
            yield from _known(value, *path)
        elif value is not None and path in keys():
            yield ".".join(path), value
