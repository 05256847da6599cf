"""Compare methods on volumes, and write the table.

  mdd evaluate volumes/ --methods linear,tikhonov,tv,mdd --json results.json
  mdd evaluate volumes/ --methods mdd:1,mdd:4,mdd:4:guidance=0 --markdown table.md --pictures pictures/

FOLDER holds volumes (Z, Y, X): HDF5 (dataset `volume`), TIFF, NPY or folders of NDTiff. Each is projected as
the protocol says and reconstructed by every method; docs/evaluation.md explains protocol, scores and methods.

A method is NAME[:EVALUATIONS][:KEY=VALUE...]; keys are those of the table [engine] (mdd:consistency=false,
inr:inr.bandwidth_z=0.05), or a baseline's own (tv:weight=0.1).
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import complain, options, say
from microdiffusion.daemon.system import resident_mb
from microdiffusion.errors import MissingFileError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterator

    from microdiffusion.engines.evaluation import Plan, Results

DEFAULT = "nearest,linear,tikhonov,tv,rl,inr,mdd"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=options.folder, metavar="FOLDER")
    parser.add_argument("--methods", default=DEFAULT, metavar="A,B", help=f"default: {DEFAULT}")
    files = parser.add_argument_group("results")
    files.add_argument("--json", type=options.file, metavar="FILE", help="everything")
    files.add_argument(
        "--csv", type=options.file, metavar="FILE", help="one line per volume, step and method"
    )
    files.add_argument("--markdown", type=options.file, metavar="FILE", help="the tables")
    files.add_argument("--pictures", type=options.folder, metavar="DIR", help="a picture per volume and step")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--length", type=options.positive, default=6.0, metavar="N", help="slab, slices (6)"
    )
    protocol.add_argument("--steps", type=_steps, default=(6.0, 8.0), metavar="N,M", help="slices (6,8)")
    light = protocol.add_mutually_exclusive_group()
    light.add_argument(
        "--noise",
        type=options.not_negative,
        default=0.01,
        metavar="S",
        help="white noise, share of the range (0.01)",
    )
    light.add_argument(
        "--photons", type=options.positive, metavar="N", help="photons per pixel at full range"
    )
    protocol.add_argument(
        "--crop",
        type=_crop,
        default=(130, 128, 128),
        metavar="Z,Y,X",
        help="the middle (130,128,128), or none",
    )
    protocol.add_argument(
        "--seeds", type=options.count, default=1, metavar="N", help="repeats with other noise (1)"
    )
    protocol.add_argument(
        "--held-out",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the held-out projection to the methods (it judges them in any case)",
    )
    parser.add_argument("--weights", type=options.file, metavar="FILE", help="of the denoiser")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (needs the extra lpips)")


def run(args: Namespace) -> int:
    """Evaluate; 3 where not one score came out."""
    from microdiffusion.daemon.system import about
    from microdiffusion.engines import evaluation

    plan = _plan(args)
    outputs = [path for path in (args.json, args.csv, args.markdown) if path is not None]
    for folder in {path.parent for path in outputs}:
        if not folder.is_dir():
            raise MissingFileError(f"The folder {folder} of the results does not exist: create it first.")
    if args.pictures is not None:
        evaluation.check_matplotlib()
        args.pictures.mkdir(parents=True, exist_ok=True)
    machine = about()

    def save(results: Results) -> None:
        content = evaluation.document(plan, results, machine)
        if args.json is not None:
            evaluation.write_json(args.json, content)
        if args.csv is not None:
            evaluation.write_csv(args.csv, results)
        if args.markdown is not None:
            evaluation.write_markdown(args.markdown, content, results)

    def show(name: str, step: float, case: Any, answers: Any) -> None:
        evaluation.volume_picture(args.pictures / f"{name}_step{step:g}.png", name, step, case, answers)

    with _warnings(), _progress(plan.runs()) as progress:
        hooks = evaluation.Hooks(progress, resident_mb, show if args.pictures is not None else None, save)
        results = evaluation.evaluate(plan, hooks)
    if not results.rows:
        complain("mdd: nothing could be evaluated; the warnings above say why.")
        return 3
    save(results)
    if args.pictures is not None and len(plan.steps) > 1:
        evaluation.step_curves(args.pictures / "steps.png", results)
    say(evaluation.markdown(evaluation.document(plan, results, machine), results))
    for path in outputs + ([args.pictures] if args.pictures is not None else []):
        say(f"wrote {path}")
    return 0


def _plan(args: Namespace) -> Plan:
    from microdiffusion.engines.evaluation import Lpips, Plan, Protocol, parse_methods
    from microdiffusion.files import volume_paths

    engine: dict[str, Any] = {"device": args.device}
    if args.weights is not None:
        engine["weights"] = args.weights
    return Plan(
        methods=parse_methods(args.methods),
        files=volume_paths(args.folder),
        protocol=Protocol(
            length=args.length, noise=args.noise, photons=args.photons, crop=args.crop, held_out=args.held_out
        ),
        steps=args.steps,
        seeds=args.seeds,
        engine=engine,
        lpips=Lpips() if args.lpips else None,
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """Draw a bar with the time left where there is a terminal; else say nothing."""
    if not sys.stderr.isatty():
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


@contextmanager
def _warnings() -> Iterator[None]:
    """Show the evaluation's warnings, one line each, on stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complain(f"mdd: warning: {record.getMessage()}")

    logger, handler = logging.getLogger("microdiffusion.evaluation"), Lines(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _steps(text: str) -> tuple[float, ...]:
    return tuple(options.positive(part) for part in text.split(","))


def _crop(text: str) -> tuple[int, int, int] | None:
    if text == "none":
        return None
    parts = [options.count(part) for part in text.split(",")]
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers Z,Y,X or none, not {text}")
    return parts[0], parts[1], parts[2]
