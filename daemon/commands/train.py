"""Train the denoiser on volumes, and write its weights.

  mdd train volumes/ --output denoiser.safetensors --minutes 60

VOLUMES is a folder of HDF5 files with a dataset `volume`. `--held-out NAME` keeps one back to judge with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import say
from microdiffusion.daemon.commands import options
from microdiffusion.errors import MissingFileError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("volumes", type=options.file, metavar="VOLUMES")
    parser.add_argument("--output", type=options.file, required=True, metavar="FILE.safetensors")
    parser.add_argument(
        "--morphologies", type=options.file, metavar="FOLDER", help="trees (swc) and vessel graphs"
    )
    parser.add_argument(
        "--held-out", action="append", default=[], metavar="NAME", help="a volume to judge with"
    )
    parser.add_argument("--iterations", type=options.count, default=20_000, metavar="N")
    parser.add_argument(
        "--minutes", type=options.positive, default=60.0, metavar="M", help="stop after M minutes"
    )
    parser.add_argument("--seed", type=options.seed, default=0, metavar="N")


def run(args: Namespace) -> int:
    """Train."""
    for folder in (args.volumes, args.morphologies):
        if folder is not None and not folder.is_dir():
            raise MissingFileError(f"There is no folder {folder}: check its name.")
    from microdiffusion.engines.training.loop import TrainingPlan, train

    plan = TrainingPlan(
        volumes=args.volumes,
        morphologies=args.morphologies,
        output=args.output,
        held_out=tuple(args.held_out),
        iterations=args.iterations,
        minutes=args.minutes,
        seed=args.seed,
    )
    train(plan, say)
    say(f"wrote {args.output}")
    return 0
