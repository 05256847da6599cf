"""Reconstruct recorded projections with the daemon's own engine, without a daemon.

mdd reconstruct projections.h5 --output run.h5
mdd reconstruct projections.h5 --output run.h5 --method tikhonov
mdd reconstruct projections.h5 --output run.h5 --method microdiffusion   (the reference; takes hours)
mdd reconstruct run.h5                     (adds the volumes that the engine had no time for)
mdd reconstruct run.h5 --output anew.h5    (every sweep anew, into a run file of its own)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from microdiffusion.config import ReferenceConfig
    from microdiffusion.frames import Reconstruction


_EVERY_S = 10.0


class StageLines:
    """Says how far a stage is and how long it will take, every ten seconds and when it ends.

    Parameters
    ----------
    write : callable
        Takes a line.
    clock : callable
        Seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stage, self._begun, self._first, self._said = "", 0.0, 0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note that `done` of `total` are done."""
        now = self._clock()
        if stage != self._stage or done <= self._first:
            # The time of the first one is not known: it began before anybody was told.
            self._stage, self._begun, self._first, self._said = stage, now, done, now
        elif done == total or now >= self._said + _EVERY_S:
            self._said = now
            left = (now - self._begun) / (done - self._first) * (total - done)
            self._write(f"{stage}: {done:,} of {total:,}" + (f", {_duration(left)} left" if left else ""))


def _duration(seconds: float) -> str:
    """Return "40 s", "12 min", "3.4 h" or "5.1 days"."""
    for size, unit in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _cost(reference: ReferenceConfig) -> str:
    """Return a sentence on what the reference will cost."""
    pixels = f"{reference.inr_batch_pixels:,} pixels" if reference.inr_batch_pixels else "all pixels"
    return (
        f"microdiffusion trains for every volume: {reference.inr_steps:,} INR updates of {pixels} and "
        f"{reference.epochs:,} epochs of the denoiser. At 128 x 128 pixels the paper's settings take days on "
        "a CPU and, by estimate, hours on a GPU; engine.reference.inr_steps, inr_batch_pixels and epochs "
        "shorten it."
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="FILE", help="projection file or run file")
    parser.add_argument(
        "--output",
        type=options.file,
        metavar="RUN.h5",
        help="run file to write; without it a run file gets what it lacks, in place",
    )
    parser.add_argument("--method", choices=("mdd", "inr", "tikhonov", "linear", "microdiffusion"))
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
    from microdiffusion.daemon.cli import BuildBar, ProgressBar
    from microdiffusion.daemon.offline import catch_up, is_run_file, reconstruct_file

    building, bar = BuildBar("TensorRT engine"), ProgressBar("reconstructing")

    def progress(done: int, total: int, result: Reconstruction) -> None:
        building.close()
        bar(done, total)
        if not bar.shown:
            say(f"volume {done} of {total}: {result.served}, {result.seconds.get('total', 0.0):.2f} s")

    if args.output is None:
        if not is_run_file(args.file):
            raise ConfigError(
                f"{args.file} is no run file, whose volumes could be added in place: "
                "name the run file to write with --output RUN.h5."
            )
        with building, bar:
            added, failed = catch_up(args.file, config=config, progress=progress, building=building)
        left = f"; sweeps that could not be done: {failed} (mdd info says why)" if failed else ""
        say(f"{count_noun(added, 'volume')} added to {args.file}{left}")
        return 0
    if config.engine.method == "microdiffusion":
        say(_cost(config.engine.reference))
    report = StageLines(say)
    with building, bar:
        reconstruct_file(
            args.file, args.output, config=config, progress=progress, report=report, building=building
        )
    say(f"wrote {args.output}")
    return 0
