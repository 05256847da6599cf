"""Reconstruct recorded projections with the daemon's engine, without a daemon.

mdd reconstruct projections.h5 --output run.h5
mdd reconstruct projections.h5 --output run.h5 --method tikhonov
mdd reconstruct projections.h5 --output run.h5 --method microdiffusion
                                     the reference method; takes hours
mdd reconstruct run.h5               add the volumes that the engine skipped
mdd reconstruct run.h5 --output new.h5
                                     all sweeps again, into a new run file

With --output a session goes through its sweeps in both directions, so that the
first volume knows as much as the last; --causal gives what live would have
given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.config import ReferenceConfig
    from microdiffusion.frames import Reconstruction

METHODS = ("mdd", "inr", "tikhonov", "linear", "microdiffusion")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FILE", "projection file or run file", options.file)
    about = "run file to write; without it, missing volumes are added to the run file FILE"
    options.add(parser, "--output RUN.h5", about, options.file)
    about = "volumes that know the sweeps before them alone, as live"
    options.add(parser, "--causal", about)
    options.add(parser, "--method", choices=METHODS, key="engine.method")
    options.add(
        parser, "--steps N", "network evaluations per volume, 1 to 8", options.count, key="engine.steps"
    )
    options.add(parser, "--seed N", "seed of the sampler", options.seed, key="engine.seed")
    options.add(parser, "--device NAME", "auto, cpu, cuda or cuda:N", key="engine.device")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Load the configuration and reconstruct."""
    config = options.config_from(args)
    from microdiffusion.daemon.offline import catch_up, reconstruct_file
    from microdiffusion.runfile import is_run_file

    if args.output is None and not is_run_file(args.file):
        raise ConfigError(
            f"{args.file} is not a run file, to which volumes could be added: name the run file to write "
            "with --output RUN.h5."
        )
    if args.output is not None and config.engine.method == "microdiffusion":
        say(_cost(config.engine.reference))
    reasons: dict[str, str] = {}
    with ProgressBar("reconstructing", every_s=10.0) as bar:

        def building(share: float) -> None:
            bar(share, title="building the TensorRT engine")

        def stage(name: str, done: int, total: int) -> None:
            bar(done, total, title=name)

        def volume(done: int, total: int, result: Reconstruction) -> None:
            if result.why:
                reasons.setdefault(result.served, result.why)
            if bar.shown:
                bar(done, total, title="volumes")
            else:
                say(f"volume {done} of {total}: {result.served}, {result.seconds.get('total', 0.0):.2f} s")

        if args.output is None:
            added, failed = catch_up(args.file, config=config, progress=volume, building=building)
        else:
            reconstruct_file(
                args.file,
                args.output,
                config=config,
                causal=args.causal,
                progress=volume,
                report=stage,
                building=building,
            )
    for answer, why in reasons.items():
        say(f"{answer} was served, as {why}")
    if args.output is None:
        left = f"; {count_noun(failed, 'sweep')} could not be reconstructed (see mdd info)" if failed else ""
        say(f"{count_noun(added, 'volume')} added to {args.file}{left}")
    else:
        say(f"wrote {args.output}")
    return 0


def _cost(reference: ReferenceConfig) -> str:
    """Return a sentence on what the reference will cost."""
    pixels = f"{reference.inr_batch_pixels:,} pixels" if reference.inr_batch_pixels else "all pixels"
    return (
        f"microdiffusion trains for every volume: {reference.inr_steps:,} INR updates of {pixels} and "
        f"{reference.epochs:,} epochs of the denoiser. At 128 x 128 pixels the paper's settings take days on "
        "a CPU and, by estimate, hours on a GPU; engine.reference.inr_steps, inr_batch_pixels and epochs "
        "shorten it."
    )
