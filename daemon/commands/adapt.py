"""Adapt the network to one session, from its projections alone, and say whether that helps.

  mdd adapt run.h5 --output adapted.safetensors
  mdd adapt projections.h5 --output adapted.safetensors --minutes 5

No ground truth is needed. Held-out projections judge, or one projection of each sweep that is left out.
New weights are written where they predict the judges better; --force writes them in any case.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import MissingFileError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN_OR_PROJECTIONS.h5")
    parser.add_argument("--output", type=options.file, required=True, metavar="FILE.safetensors")
    parser.add_argument("--iterations", type=options.count, default=200, metavar="N")
    parser.add_argument(
        "--minutes", type=options.positive, default=15.0, metavar="M", help="stop after M minutes, or N"
    )
    parser.add_argument("--rate", type=options.positive, default=3e-4, metavar="R", help="learning rate")
    parser.add_argument("--sweeps", type=options.count, default=4, metavar="N", help="sweeps used, at most")
    parser.add_argument("--seed", type=options.seed, default=0, metavar="N")
    parser.add_argument("--force", action="store_true", help="write the weights also where they do not help")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Adapt, judge, and write."""
    config = options.config_from(args).engine
    if not args.output.parent.is_dir():
        raise MissingFileError(f"There is no folder {args.output.parent} for the output: create it first.")
    from microdiffusion.engines.diffusion import load_denoiser, shipped_weights
    from microdiffusion.engines.training import AdaptPlan, adapt, read_session, write_weights

    session = read_session(args.file, most=args.sweeps)
    weights = config.weights or shipped_weights()
    plan = AdaptPlan(args.iterations, args.minutes, args.rate, args.seed)
    told_s = float("-inf")

    def watch(iteration: int, share: float, loss: float, seconds: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= 10:
            told_s = time.monotonic()
            left = seconds * (1 - share) / share if share else 0.0
            say(f"iteration {iteration}  loss {loss:.3f}  {100 * share:.0f} %  {left:.0f} s left")

    result = adapt(session, load_denoiser(weights), config, plan, say, watch)
    say(result.verdict.sentence)
    if result.verdict.word == "helps" or args.force:
        notes = {
            "adapted_from": weights.name,
            "adapted_to": args.file.name,
            "iterations": str(result.iterations),
            "verdict": result.verdict.sentence,
        }
        write_weights(result.model, args.output, notes)
        say(f"wrote {args.output}; use it with --set engine.weights={args.output}")
    else:
        say(f"kept the old weights; {args.output} was not written (--force writes it)")
    return 0
