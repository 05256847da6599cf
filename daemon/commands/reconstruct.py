"""Reconstruct a projection file with the daemon's own engine, without a daemon.

mdd reconstruct projections.h5 --output run.h5
mdd reconstruct projections.h5 --output run.h5 --method tikhonov
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import say
from microdiffusion.daemon.commands import options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.sweep import Reconstruction


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="FILE")
    parser.add_argument("--output", type=options.file, required=True, metavar="RUN.h5")
    parser.add_argument("--method", choices=("mdd", "inr", "tikhonov", "linear"))
    parser.add_argument(
        "--steps", type=options.count, metavar="N", help="network evaluations per volume, 1 to 8"
    )
    parser.add_argument("--seed", type=options.seed, metavar="N")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Load the configuration and reconstruct."""
    config = options.config_from(
        args,
        {
            "engine.method": args.method,
            "engine.steps": args.steps,
            "engine.seed": args.seed,
            "engine.device": args.device,
        },
    )
    from microdiffusion.daemon.reconstruct import reconstruct_file

    def progress(done: int, total: int, result: Reconstruction) -> None:
        say(f"volume {done} of {total}: {result.served}, {result.seconds.get('total', 0.0):.2f} s")

    reconstruct_file(args.file, args.output, config=config, progress=progress)
    say(f"wrote {args.output}")
    return 0
