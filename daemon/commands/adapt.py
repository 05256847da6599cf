"""Adapt the network to one specimen: to a stack of it, or to a session.

  mdd adapt run.h5 --volume stack.tif --output brain7.safetensors
  mdd adapt --config my.toml --volume stack.tif --output brain7.safetensors
  mdd adapt run.h5 --output adapted.safetensors

With --volume: a slow, dense stack of the specimen is trained on, seen with
the optics of a run, or of --config; a part that is kept aside judges. Any
volume that mdd reads will do, FILE#PART too.

Without: a session's own projections; held-out ones judge, or one projection
that is left out of each sweep.

The new weights are written if they are better; --force writes them in any
case.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say
from microdiffusion.errors import ConfigError
from microdiffusion.text import command_line

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.engines.diffusion import Belonging, Denoiser
    from microdiffusion.engines.training import AdaptPlan, Optics, Watch


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    about = "run file or projection file (with --volume: whose optics count; default: the configuration's)"
    options.add(parser, "FILE", about, options.file, nargs="?")
    options.add(parser, "--volume STACK", "a slow, dense stack of the specimen", options.file)
    options.add(parser, "--specimen NAME", "name of the specimen (default: the file's)")
    about = "weights to write"
    options.add(parser, "--output FILE.safetensors", about, options.output, required=True)
    options.add(parser, "--iterations N", "stop after N", options.count, default=100)
    options.add(parser, "--minutes M", "stop after M minutes in all", options.positive, default=15.0)
    options.add(parser, "--rate R", "learning rate", options.positive, default=3e-4)
    options.add(parser, "--sweeps N", "sweeps to use at most", options.count, default=4)
    options.add(parser, "--seed N", "seed of the training", options.seed, default=0)
    options.add(parser, "--force", "write the weights even if they do not help")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Adapt, judge, and write."""
    config = options.config_from(args)
    if args.file is None and args.volume is None:
        raise ConfigError("Nothing to adapt to: name a run file, or a stack of the specimen with --volume.")
    from microdiffusion.engines.training import AdaptPlan

    plan = AdaptPlan(args.iterations, args.minutes, args.rate, args.seed)
    return _to_volume(args, config, plan) if args.volume is not None else _to_session(args, config, plan)


def _to_session(args: Namespace, config: Config, plan: AdaptPlan) -> int:
    from microdiffusion.engines.diffusion import load_denoiser, weights_path
    from microdiffusion.engines.training import SessionOptics, adapt, read_session

    session = read_session(args.file, most=args.sweeps)
    weights = weights_path(config.engine)
    with ProgressBar("adapting", every_s=10.0) as bar:
        result = adapt(session, load_denoiser(weights), config.engine, plan, say, _watch(bar))
    say(result.verdict.sentence)
    optics = SessionOptics.of(session.header, session.for_fitting()).optics
    name, z_um = args.specimen or args.file.stem, session.header.voxel_size_um[0]
    notes = _belonging(name, session.fingerprint, optics, z_um).notes()
    notes |= _notes(weights, args.file, result.iterations, result.verdict.sentence)
    return _write(args, result.model, notes, helps=result.verdict.word == "helps")


def _to_volume(args: Namespace, config: Config, plan: AdaptPlan) -> int:
    from microdiffusion.engines.diffusion import load_denoiser, weights_path
    from microdiffusion.engines.training import (
        SessionOptics,
        adapt_to_volume,
        planned_optics,
        read_session,
        read_specimen,
    )

    if args.file is not None:
        session = read_session(args.file, most=args.sweeps)
        voxel: tuple[float, float | None, float | None] = session.header.voxel_size_um
        optics = SessionOptics.of(session.header, session.for_fitting()).optics
    else:
        from microdiffusion.drivers.plan import load_profile

        volume, pixel = config.volume, config.volume.pixel_um
        voxel = (volume.voxel_z_um, pixel, pixel)
        profile = load_profile(config.sweep)
        optics = planned_optics(profile, config.sweep.resolved_step_um, volume.voxel_z_um)
    specimen = read_specimen(args.volume, voxel, args.specimen or "")
    weights = weights_path(config.engine)
    with ProgressBar("adapting", every_s=10.0) as bar:
        model = load_denoiser(weights)
        result = adapt_to_volume(specimen, optics, model, config.engine, plan, say, _watch(bar))
    say(result.worth.sentence)
    notes = _belonging(specimen.name, specimen.fingerprint, optics, voxel[0]).notes()
    notes |= _notes(weights, args.volume, result.iterations, result.worth.sentence)
    return _write(args, result.model, notes, helps=result.worth.word == "helps")


def _watch(bar: ProgressBar) -> Watch:
    return lambda iteration, share, loss, seconds: bar(share, note=f"iteration {iteration}, loss {loss:.3f}")


def _belonging(name: str, fingerprint: str, optics: Optics, voxel_z_um: float) -> Belonging:
    from microdiffusion.engines.diffusion import Belonging

    lengths = optics.profile.length_um * voxel_z_um, optics.step * voxel_z_um
    return Belonging(name, fingerprint, *lengths, voxel_z_um)


def _notes(start: Path, to: Path, iterations: int, verdict: str) -> dict[str, str]:
    return {
        "adapted_from": start.name,
        "adapted_to": to.name,
        "iterations": str(iterations),
        "verdict": verdict,
    }


def _write(args: Namespace, model: Denoiser, notes: dict[str, str], *, helps: bool) -> int:
    """Write the weights if they help, or by force."""
    from microdiffusion.engines.training import write_weights

    if helps or args.force:
        write_weights(model, args.output, notes)
        use = f"engine.weights={args.output}"
        say(f"wrote {args.output}; use it with {command_line('--set', use)}")
    else:
        say(f"kept the old weights; {args.output} was not written (--force writes it)")
    return 0
