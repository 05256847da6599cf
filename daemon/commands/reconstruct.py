"""Reconstruct recorded projections with the daemon's engine, without a daemon.

mdd reconstruct projections.h5 --output run.h5
mdd reconstruct projections.h5 --output run.h5 --method tikhonov
mdd reconstruct projections.h5 --output run.h5 --method microdiffusion
                                     the reference method; takes hours
mdd reconstruct run.h5               add the volumes that the engine skipped
mdd reconstruct run.h5 --output new.h5
                                     all sweeps again, into a new run file
mdd reconstruct a.h5 b.h5 c.h5 --output FOLDER --local 4
                                     many recordings, with four workers

Over a cluster (extra "dask") recordings are the pieces, and the sessions of
one that has several; --cut makes pieces of a session's sweeps. What is done
stays done: the same command again goes on. The page reprocessing.md of the
documentation tells more.

With --output a session goes through its sweeps in both directions, so that the
first volume knows as much as the last; --causal gives what live would have
given.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, complain, duration, options, say
from microdiffusion.daemon.signals import StopRequest, interrupting
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    from microdiffusion.config import Config, ReferenceConfig
    from microdiffusion.daemon.offline import Where
    from microdiffusion.frames import Reconstruction
    from microdiffusion.header import RunHeader

METHODS = ("mdd", "inr", "tikhonov", "linear", "microdiffusion")
_STAYS = "what is done stays done: the same command again does the rest"
_LINE_EVERY_S = 10.0  # where there is no terminal
_WARM_UP = 32  # sweeps: see docs/reprocessing.md


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FILE", "projection file or run file", options.file, nargs="+")
    about = (
        "run file to write, or folder for the run files of several; without it, missing volumes are added "
        "to the run file FILE"
    )
    options.add(parser, "--output RUN.h5", about, options.file)
    about = "volumes that know the sweeps before them alone, as live"
    options.add(parser, "--causal", about)
    options.add(parser, "--method", choices=METHODS, key="engine.method")
    options.add(
        parser, "--steps N", "network evaluations per volume, 1 to 8", options.count, key="engine.steps"
    )
    options.add(parser, "--seed N", "seed of the sampler", options.seed, key="engine.seed")
    options.add(parser, "--device NAME", "auto, cpu, cuda or cuda:N", key="engine.device")
    where = parser.add_mutually_exclusive_group()
    options.add(where, "--local N", "N workers on this machine", options.count)
    options.add(where, "--scheduler ADDRESS", "a Dask scheduler, tcp://host:port", default="")
    options.add(where, "--slurm", "jobs of SLURM, as ~/.config/dask/jobqueue.yaml describes them")
    options.add(parser, "--jobs N", "with --slurm: how many", options.count, default=1)
    options.add(parser, "--memory GB", "memory of a worker that is started", options.positive)
    options.add(parser, "--cut N", "cut sessions into pieces of N sweeps", options.count)
    about = (
        "with --cut: sweeps that a piece looks at beside its own. Left out: 32, and with --causal none, as "
        "each piece waits for the one before"
    )
    options.add(parser, "--warm-up N", about, options.seed)
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Load the configuration and reconstruct."""
    config = options.config_from(args)
    on_cluster = bool(args.local or args.scheduler or args.slurm)
    _check(args, on_cluster=on_cluster)
    if args.output is not None and config.engine.method == "microdiffusion":
        say(_cost(config.engine.reference))
    if on_cluster or len(args.file) > 1 or args.cut is not None:
        try:
            return _run_many(args, config, on_cluster=on_cluster)
        except SystemExit:  # of `say`
            complain("nobody reads what mdd reconstruct prints any more, so it ended; " + _STAYS)
            return 3
        except KeyboardInterrupt:
            complain(_STAYS)
            raise
    with interrupting():
        return _run_one(args.file[0], args, config)


def _check(args: Namespace, *, on_cluster: bool) -> None:
    from microdiffusion.runfile import is_run_file

    first = args.file[0]
    if args.output is None:
        if len(args.file) > 1 or on_cluster or args.cut is not None:
            raise ConfigError(
                "Several files, a cluster or --cut need --output, a run file or a folder: volumes are added "
                "to a run file one by one here."
            )
        if not is_run_file(first):
            raise ConfigError(
                f"{first} is not a run file, to which volumes could be added: name the run file to write "
                "with --output RUN.h5."
            )
    if args.warm_up is not None and args.cut is None:
        raise ConfigError("--warm-up is of the pieces that --cut makes: give --cut N too.")


def _run_one(file: Path, args: Namespace, config: Config) -> int:
    """Reconstruct one file in this process, sweep by sweep."""
    from microdiffusion.daemon.offline import catch_up, reconstruct_file

    reasons: dict[str, str] = {}
    with ProgressBar("reconstructing", every_s=_LINE_EVERY_S) as bar:

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
            added, failed = catch_up(file, config=config, progress=volume, building=building)
        else:
            reconstruct_file(
                file,
                args.output,
                config=config,
                causal=args.causal,
                progress=volume,
                report=stage,
                building=building,
            )
    _say_served(reasons)
    if args.output is None:
        left = f"; {count_noun(failed, 'sweep')} could not be reconstructed (see mdd info)" if failed else ""
        say(f"{count_noun(added, 'volume')} added to {file}{left}")
    else:
        say(f"wrote {args.output}")
    return 0


def _run_many(args: Namespace, config: Config, *, on_cluster: bool) -> int:
    """Reconstruct pieces of one or several files, over a cluster or one after the other here."""
    from microdiffusion.daemon.offline import (
        Where,
        Work,
        describe,
        learns,
        open_cluster,
        plan_pieces,
        prepare_workers,
        remove_unfinished,
        work_through,
        work_through_here,
    )

    warm_up = args.warm_up
    if warm_up is None and args.cut is not None and learns(config) and not args.causal:
        warm_up = _WARM_UP
    work = Work(config, args.causal, args.cut, warm_up)
    where = Where(args.local, args.scheduler, args.jobs, args.memory, config.engine.threads)
    prepare_workers(where)
    pieces = []
    for file, output in _outputs(args.file, args.output):
        more, header = plan_pieces(file, output, work)
        pieces += more
        _refuse_too_large(header, config, where)
        if not more:
            say(f"{output} is there already")
    if not pieces:
        return 0
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        client = None
        if args.local is not None:
            stack.callback(remove_unfinished, pieces)  # when the workers are gone
        # Begun in order, a cluster ends in order; here only the work itself can be interrupted.
        stack.enter_context(stop.heard() if on_cluster else interrupting())
        if on_cluster:
            client = stack.enter_context(open_cluster(where))
            for line in describe(client, where):
                say(line)
        bar = stack.enter_context(ProgressBar("reconstructing", "steps", every_s=_LINE_EVERY_S))

        def tell(done: float, steps: float, ready: int) -> None:
            bar(done, steps, f"{ready} of {count_noun(len(pieces), 'piece')}")

        if client is None:
            outcome = work_through_here(pieces, work, tell)
        else:
            outcome = work_through(pieces, work, client, where, tell, stop)
    _say_served(outcome.served)
    for name, why in outcome.failed.items():
        complain(f"{name}: {why}")
    spent = f" in {duration(sum(outcome.seconds.values()))} of work" if outcome.seconds else ""
    said = f"{len(outcome.done)} of {count_noun(len(pieces), 'piece')} done{spent}"
    say(f"{said}, {len(outcome.failed)} failed")
    if outcome.failed:
        say(_STAYS)
        return 3
    return 0


def _outputs(files: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """Return each file, absolute, with the run file to write for it; makes the folder for several."""
    if len(files) == 1 and not output.is_dir():
        return [(files[0].absolute(), output.absolute())]
    if output.is_file():
        raise ConfigError(f"--output {output} is a file: of several recordings it has to be a folder.")
    pairs: dict[Path, Path] = {}
    for file in files:
        target = output.absolute() / f"{file.stem}.h5"
        if target in pairs:
            raise ConfigError(
                f"{pairs[target]} and {file} would both become {target}: give them to two commands, with a "
                "folder each."
            )
        pairs[target] = file.absolute()
    output.mkdir(parents=True, exist_ok=True)
    return [(file, target) for target, file in pairs.items()]


def _refuse_too_large(header: RunHeader, config: Config, where: Where) -> None:
    from microdiffusion.engines.memory import reconstruction_bytes

    needed, most = reconstruction_bytes(header, config.engine), where.memory_each
    if most is not None and needed > most:
        raise ConfigError(
            f"A worker has {most / 1e9:.1f} GB, and the engine may take {needed / 1e9:.1f} GB for "
            f"{' x '.join(map(str, header.shape))} voxels: take fewer workers, or give more with --memory GB."
        )


def _say_served(reasons: dict[str, str]) -> None:
    for answer, why in reasons.items():
        say(f"{answer} was served, as {why}")


def _cost(reference: ReferenceConfig) -> str:
    """Return a sentence on what the reference will cost."""
    pixels = f"{reference.inr_batch_pixels:,} pixels" if reference.inr_batch_pixels else "all pixels"
    return (
        f"microdiffusion trains for every volume: {reference.inr_steps:,} INR updates of {pixels} and "
        f"{reference.epochs:,} epochs of the denoiser. At 128 x 128 pixels the paper's settings take days on "
        "a CPU and, by estimate, hours on a GPU; engine.reference.inr_steps, inr_batch_pixels and epochs "
        "shorten it."
    )
