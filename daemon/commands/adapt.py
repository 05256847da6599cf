"""Adapt the network to one session, from its projections alone.

  mdd adapt run.h5 --output adapted.safetensors
  mdd adapt projections.h5 --output adapted.safetensors --minutes 5

No ground truth is needed: held-out projections judge, or one projection that
is left out of each sweep. The new weights are written if they predict these
better; --force writes them in any case.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import ProgressBar, options, say
from microdiffusion.text import command_line


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FILE", "run file or projection file", options.file)
    about = "weights to write"
    options.add(parser, "--output FILE.safetensors", about, options.output, required=True)
    options.add(parser, "--iterations N", "stop after N", options.count, default=200)
    options.add(parser, "--minutes M", "stop after M minutes in all", options.positive, default=15.0)
    options.add(parser, "--rate R", "learning rate", options.positive, default=3e-4)
    options.add(parser, "--sweeps N", "sweeps to use at most", options.count, default=4)
    options.add(parser, "--seed N", "seed of the training", options.seed, default=0)
    options.add(parser, "--force", "write the weights even if they do not help")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Adapt, judge, and write."""
    config = options.config_from(args).engine
    from microdiffusion.engines.diffusion import load_denoiser, weights_path
    from microdiffusion.engines.training import AdaptPlan, adapt, read_session, write_weights

    session = read_session(args.file, most=args.sweeps)
    weights = weights_path(config)
    plan = AdaptPlan(args.iterations, args.minutes, args.rate, args.seed)
    with ProgressBar("adapting", every_s=10.0) as bar:

        def watch(iteration: int, share: float, loss: float, seconds: float) -> None:
            bar(share, note=f"iteration {iteration}, loss {loss:.3f}")

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
        use = f"engine.weights={args.output}"
        say(f"wrote {args.output}; use it with {command_line('--set', use)}")
    else:
        say(f"kept the old weights; {args.output} was not written (--force writes it)")
    return 0
