"""Train the denoiser on volumes, morphologies and phantoms, and write its weights and their card.

  mdd train volumes/ --output mine.safetensors --held-out stack_07 --minutes 60
  mdd train --config training.toml --resume
  torchrun --nproc-per-node 4 -m microdiffusion.daemon.cli train --config training.toml

VOLUMES are HDF5 (dataset `volume`), TIFF, NDTiff or NPY, or folders of them. All settings are keys of the
table [training] of a configuration file; docs/training.md explains them.
"""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.engines.training import Progress


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "volumes", type=options.file, nargs="*", metavar="VOLUMES", help="volumes, or folders of them"
    )
    parser.add_argument("--output", type=options.file, metavar="FILE.safetensors")
    parser.add_argument(
        "--morphologies", type=options.file, metavar="FOLDER", help="trees (swc) and vessel graphs (h5)"
    )
    parser.add_argument("--held-out", action="append", metavar="NAME", help="a volume to validate with")
    parser.add_argument("--init", type=options.file, metavar="WEIGHTS", help="weights to start from")
    parser.add_argument("--resume", action="store_true", help="continue from the output's checkpoint")
    parser.add_argument("--iterations", type=options.count, metavar="N")
    parser.add_argument(
        "--minutes", type=options.positive, metavar="M", help="stop after M minutes, or N iterations"
    )
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=options.seed, metavar="N")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Train."""
    config = options.config_from(
        args,
        {
            "training.volumes": args.volumes or None,
            "training.output": args.output,
            "training.morphologies": args.morphologies,
            "training.held_out": args.held_out,
            "training.init": args.init,
            "training.iterations": args.iterations,
            "training.minutes": args.minutes,
            "training.device": args.device,
            "training.seed": args.seed,
        },
    ).training
    if not config.volumes and config.morphologies is None:
        raise ConfigError(
            "There is nothing to train on: name volumes, or training.volumes in a configuration file."
        )
    from microdiffusion.daemon.system import processor
    from microdiffusion.engines.training import train

    command = shlex.join(["mdd", "train", *_own_arguments(sys.argv)])
    with _Shown() as shown:
        train(config, shown.say, shown.watch, resume=args.resume, command=command, machine=processor())
    return 0


def _own_arguments(argv: list[str]) -> list[str]:
    return argv[argv.index("train") + 1 :] if "train" in argv else argv[1:]


class _Shown:
    """A progress bar with the time left; without a terminal a line now and then."""

    _EVERY_S = 30.0

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console()
        columns = (
            TextColumn("iteration {task.fields[iteration]:,}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[left]} left"),
        )
        self._bar = Progress(*columns, console=self._console) if self._console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task(
                "", total=1.0, iteration=0, loss=float("nan"), left="?", visible=False
            )
        self._told_s = float("-inf")

    def __enter__(self) -> _Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *rest: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            self._console.print(text, markup=False, highlight=False)

    def watch(self, progress: Progress) -> None:
        left = _duration(progress.seconds_left)
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=progress.share,
                iteration=progress.iteration,
                loss=progress.loss,
                left=left,
                visible=True,
            )
        elif time.monotonic() - self._told_s >= self._EVERY_S:
            self._told_s = time.monotonic()
            say(
                f"iteration {progress.iteration}  loss {progress.loss:.4f}  "
                f"{100 * progress.share:.0f} %  {left} left"
            )


def _duration(seconds: float) -> str:
    """Return "1 h 05 min", "12 min" or "40 s"."""
    if seconds >= 1e6:
        return "days"
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
