"""Measure what a volume costs on this machine, stage by stage.

  mdd bench                          a minute, a table
  mdd bench --quick
  mdd bench --size 64x128x128 --size 64x256x256 --device cpu --json bench.json

Sweeps of the demo's virtual specimen go through the daemon's wire, engine and
recorder. For comparison, in the same run and in turns: torch eager in float32,
parts of the reference method (extrapolated to the whole, and marked so), and
matrix products. docs/performance.md explains each figure.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.daemon.bench import Bench, BenchSettings

_LEAST = (12, 16, 16)  # two slabs of the demo, and the camera's smallest image
_MOST_EVALUATIONS = 8


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_argument_group("what to measure")
    options.add(what, "--size ZxYxX", "size of a volume (repeatable; 64x128x128)", _size, action="append")
    options.add(what, "--all-sizes", "64x128x128, 130x128x128, 64x256x256 and 64x512x512")
    options.add(what, "--device NAME", "auto, cpu, cuda or cuda:N", key="engine.device")
    options.add(what, "--evaluations N,M", "of the network, per volume (1,4)", _evaluations)
    how = parser.add_argument_group("how thoroughly")
    options.add(how, "--quick", "a quarter of a minute, coarser figures")
    options.add(how, "--volumes N", "warm volumes per figure (8)", options.count)
    options.add(how, "--seed N", "seed of the specimen", options.seed, default=1)
    options.add(parser, "--json FILE", "write all figures", options.output)
    options.add_config(parser)


def run(args: Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    args.config = args.config or "demo"
    config = options.config_from(args)
    from rich.console import Console

    from microdiffusion.daemon.bench import Bench, size_name, tables
    from microdiffusion.daemon.system import about
    from microdiffusion.files import write_text

    settings = _settings(args)
    with Console(stderr=True).status("") as status:
        bench = Bench(config, settings, status.update)
        sizes = _sizes(args, bench)
        document: dict[str, Any] = {
            "sizes": {size_name(size): bench.size(size) for size in sizes},
            "engine": bench.about_engine(),
            "settings": {**asdict(settings), "quick": args.quick},
            "machine": about(),
        }
    say(tables(document), styled=True)
    if args.json is not None:
        write_text(args.json, json.dumps(document, indent=1) + "\n")
        say(f"wrote {args.json}")
    return 0


def _settings(args: Namespace) -> BenchSettings:
    from microdiffusion.daemon.bench import QUICK, BenchSettings

    settings = QUICK if args.quick else BenchSettings()
    changes = {"evaluations": args.evaluations, "volumes": args.volumes, "seed": args.seed}
    return replace(settings, **{key: value for key, value in changes.items() if value is not None})


def _sizes(args: Namespace, bench: Bench) -> tuple[tuple[int, int, int], ...]:
    from microdiffusion.daemon.bench import CPU_SIZES, CUDA_SIZES

    if args.all_sizes:
        return (*CPU_SIZES, *CUDA_SIZES)
    if args.size:
        return tuple(dict.fromkeys(args.size))
    return CUDA_SIZES if bench.device.type == "cuda" else CPU_SIZES


def _size(text: str) -> tuple[int, int, int]:
    size = options.shape(text)
    if any(edge < least for edge, least in zip(size, _LEAST, strict=True)):
        raise argparse.ArgumentTypeError(f"expected at least {'x'.join(map(str, _LEAST))} voxels, not {text}")
    if size[0] * size[1] * size[2] >= 1 << 31:
        raise argparse.ArgumentTypeError(f"expected less than 2^31 voxels, not {text}")
    return size


def _evaluations(text: str) -> tuple[int, ...]:
    numbers = tuple(dict.fromkeys(options.count(part) for part in text.split(",")))
    if max(numbers) > _MOST_EVALUATIONS:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_EVALUATIONS} evaluations, not {text}")
    return numbers
