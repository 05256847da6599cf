"""Train the denoiser on volumes, morphologies and phantoms.

  mdd train volumes/ --output mine.safetensors --held-out stack_07 --minutes 60
  mdd train --config training.toml --resume
  torchrun --nproc-per-node 4 -m microdiffusion.daemon.cli train --config my.toml

Writes the weights and a card about them. VOLUMES are HDF5 (dataset `volume`),
TIFF, NDTiff or NPY, or folders of them. All settings are keys of the table
[training] of a configuration file; docs/training.md explains them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import ProgressBar, options, say
from microdiffusion.errors import ConfigError
from microdiffusion.text import command_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.engines.training import TrainingProgress


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    about = "volumes, or folders of them"
    options.add(parser, "VOLUMES", about, options.file, key="training.volumes", nargs="*")
    options.add(parser, "--output FILE.safetensors", "weights to write", options.file, key="training.output")
    about = "trees (swc) and vessel graphs (h5)"
    options.add(parser, "--morphologies FOLDER", about, options.file, key="training.morphologies")
    about = "a volume to validate with (repeatable)"
    options.add(parser, "--held-out NAME", about, key="training.held_out", action="append")
    options.add(
        parser,
        "--init WEIGHTS",
        "start from these, not from the shipped ones",
        options.file,
        key="training.init",
    )
    options.add(
        parser, "--scratch", "start from nothing", key="training.scratch", action="store_true", default=None
    )
    options.add(parser, "--resume", "continue from the output's checkpoint")
    options.add(parser, "--iterations N", "stop after N", options.count, key="training.iterations")
    options.add(
        parser, "--minutes M", "stop after M minutes in all", options.positive, key="training.minutes"
    )
    options.add(parser, "--device NAME", "auto, cpu, cuda or cuda:N", key="training.device")
    options.add(parser, "--seed N", "seed of the training", options.seed, key="training.seed")
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Train."""
    config = options.config_from(args).training
    if not config.volumes and config.morphologies is None:
        raise ConfigError(
            "There is nothing to train on: name volumes, or training.volumes in a configuration file."
        )
    from microdiffusion.daemon.system import processor
    from microdiffusion.engines.training import train

    own = sys.argv[sys.argv.index("train") + 1 :] if "train" in sys.argv else sys.argv[1:]
    command = command_line("mdd", "train", *own)
    with ProgressBar("training", every_s=30.0) as bar:

        def watch(progress: TrainingProgress) -> None:
            bar(progress.share, note=f"iteration {progress.iteration:,}, loss {progress.loss:.4f}")

        train(config, say, watch, resume=args.resume, command=command, machine=processor())
    return 0
