"""Measure the cost of a volume on this machine, stage by stage, and against its limits.

  mdd bench                                   a minute, a table
  mdd bench --quick
  mdd bench --size 64x128x128 --size 64x256x256 --device cpu --json bench.json

Sweeps of the demo's virtual specimen go through the daemon's own wire, engine and recorder. Everything that
they are compared with is measured in the same run, in turns: torch eager in float32, parts of the reference
method (extrapolated to the whole, and marked so), and matrix products. docs/performance.md explains each
figure.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import MissingFileError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterator

    from microdiffusion.daemon.bench import Bench, BenchSettings

_LEAST = (12, 16, 16)  # two slabs of the demo, and the camera's smallest image
_MOST_EVALUATIONS = 8


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--size", type=_size, action="append", metavar="ZxYxX", help="may be given several times (64x128x128)"
    )
    what.add_argument(
        "--all-sizes", action="store_true", help="64x128x128, 130x128x128, 64x256x256 and 64x512x512"
    )
    what.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    what.add_argument("--network", choices=("auto", "small", "large"), help="which of the shipped weights")
    what.add_argument(
        "--evaluations", type=_evaluations, metavar="N,M", help="of the network, per volume (1,4)"
    )
    how = parser.add_argument_group("how thoroughly")
    how.add_argument("--quick", action="store_true", help="a quarter of a minute, coarser figures")
    how.add_argument("--volumes", type=options.count, metavar="N", help="warm volumes of each figure (8)")
    how.add_argument("--seed", type=options.seed, default=1, metavar="N", help="of the specimen (1)")
    parser.add_argument("--json", type=options.file, metavar="FILE", help="everything")
    options.add_config_options(parser)


def run(args: Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    if args.json is not None and not args.json.parent.is_dir():
        raise MissingFileError(
            f"The folder {args.json.parent} of the results does not exist: create it first."
        )
    args.config = args.config or "demo"
    config = options.config_from(
        args,
        {"engine.device": None if args.device == "auto" else args.device, "engine.network": args.network},
    )
    from microdiffusion.daemon.bench import Bench, size_name, tables, write_json
    from microdiffusion.daemon.system import about

    settings = _settings(args)
    with _progress() as progress:
        bench = Bench(config, settings, progress)
        sizes = _sizes(args, bench)
        document: dict[str, Any] = {
            "sizes": {size_name(size): bench.size(size) for size in sizes},
            "engine": bench.about_engine(),
            "settings": {**asdict(settings), "quick": args.quick},
            "machine": about(),
        }
    say(tables(document), styled=True)
    if args.json is not None:
        write_json(args.json, document)
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


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say what is being measured where there is a terminal; else nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update


def _size(text: str) -> tuple[int, int, int]:
    try:
        slices, rows, columns = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected slices, rows and columns such as 64x128x128, not {text}"
        ) from None
    size = slices, rows, columns
    if any(edge < least for edge, least in zip(size, _LEAST, strict=True)):
        raise argparse.ArgumentTypeError(f"expected at least {'x'.join(map(str, _LEAST))} voxels, not {text}")
    if slices * rows * columns >= 1 << 31:
        raise argparse.ArgumentTypeError(f"expected less than 2^31 voxels, not {text}")
    return size


def _evaluations(text: str) -> tuple[int, ...]:
    numbers = tuple(dict.fromkeys(options.count(part) for part in text.split(",")))
    if max(numbers) > _MOST_EVALUATIONS:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_EVALUATIONS} evaluations, not {text}")
    return numbers
