"""Compare methods on volumes, and write the table.

  mdd evaluate volumes/ --methods linear,tikhonov,tv,mdd --json results.json
  mdd evaluate stack.h5 --methods linear,mdd
  mdd evaluate volumes/ --methods mdd:1,mdd:4:guidance=0 --markdown table.md

VOLUMES is a volume (Z, Y, X), or a folder of them: HDF5 (dataset `volume`),
TIFF, NPY or folders of NDTiff. Each is projected according to the protocol and
reconstructed by every method; docs/evaluation.md explains protocol, scores and
methods.

  mdd evaluate volumes/ --sweeps 16 --activity --drift --offline --pictures DIR

With --sweeps it is a session of so many sweeps: how each sweep sharpens the
next, and how truly activity and drift are told.

  mdd evaluate volumes/ --hallucinations --methods tv,inr,mdd,mdd:4

With --hallucinations objects are removed from the volumes and added to them:
how often does a volume show what is not there, or hide what is.

  mdd evaluate --against dense.h5
  mdd evaluate run.h5 --against dense.h5

With --against a dense recording of a still specimen (a run or projection file,
slabs a third of their length apart or less) is the truth: for sparse sweeps
taken out of it, or for the volumes of another run of the same specimen.

A method is NAME[:EVALUATIONS][:KEY=VALUE...]; keys are those of the table
[engine] (mdd:consistency=false, inr:inr.bandwidth_z=0.05), or a baseline's own
(tv:weight=0.1).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import ProgressBar, complain, options, say
from microdiffusion.daemon.system import resident_mb
from microdiffusion.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    from microdiffusion.engines.evaluation import EvaluationPlan, Results, SessionPlan

DEFAULT = "nearest,linear,tikhonov,tv,rl,inr,mdd"
DEFAULT_HALLUCINATIONS = "linear,tv,inr,mdd"
OBJECTS = 5
SPARSE_SWEEPS = 8
DEFAULT_OVER_TIME = "linear,tv,inr:memory=sweep,mdd:memory=sweep,inr,mdd"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    about = "a volume, or a folder of volumes; with --against a run, or nothing"
    options.add(parser, "VOLUMES", about, options.file, nargs="?")
    options.add(parser, "--against DENSE", "a dense recording is the truth", options.file)
    about = (
        f"methods to compare ({DEFAULT}; with --sweeps {DEFAULT_OVER_TIME}; with --hallucinations "
        f"{DEFAULT_HALLUCINATIONS})"
    )
    options.add(parser, "--methods A,B", about)
    session = parser.add_argument_group("over time")
    options.add(session, "--sweeps N", "a session of so many sweeps, 8 or more", options.count)
    about = "where sweeps start within a step (golden)"
    options.add(session, "--offsets", about, choices=("golden", "alternate", "fixed"))
    options.add(session, "--activity", "spots that brighten as well")
    options.add(session, "--drift", "a specimen that drifts 0.1 voxels a sweep along z and y as well")
    options.add(session, "--offline", "what learns, in both directions as well (mdd reconstruct)")
    hidden = parser.add_argument_group("hallucinations")
    options.add(hidden, "--hallucinations", "spines, vessels and nuclei removed and added (8 sweeps)")
    about = "objects of each kind in each volume, of its own and added (5)"
    options.add(hidden, "--objects N", about, options.count)
    results = parser.add_argument_group("results")
    options.add(results, "--json FILE", "everything", options.output)
    options.add(results, "--markdown FILE", "the tables", options.output)
    options.add(results, "--pictures DIR", "a picture per volume and step", options.folder)
    protocol = parser.add_argument_group("protocol")
    options.add(protocol, "--length N", "slab, slices", options.positive, default=6.0)
    options.add(protocol, "--steps N,M", "slices (6,8)", _steps, default=(6.0, 8.0))
    light = protocol.add_mutually_exclusive_group()
    options.add(light, "--noise S", "white noise, share of the range", options.not_negative, default=0.01)
    options.add(light, "--photons N", "photons per pixel at full range", options.positive)
    about = "the middle (130,128,128), or none"
    options.add(protocol, "--crop Z,Y,X", about, _crop, default=(130, 128, 128))
    options.add(protocol, "--seeds N", "repeats with other noise", options.count, default=1)
    about = "show the held-out projection to the methods (it judges them in any case)"
    flag = argparse.BooleanOptionalAction
    options.add(protocol, "--held-out", about, action=flag, default=True)
    options.add(parser, "--weights FILE", "weights of the denoiser", options.file)
    options.add(parser, "--device NAME", "auto, cpu, cuda or cuda:N", default="auto")


def run(args: Namespace) -> int:
    """Evaluate; 3 if there is no score at all."""
    from microdiffusion.daemon.system import about
    from microdiffusion.engines import evaluation
    from microdiffusion.files import write_text

    if args.against is not None:
        return _against(args)
    if args.volumes is None:
        raise ConfigError(
            "Expected a volume, or a folder of volumes: mdd evaluate volumes/ --methods linear,mdd"
        )
    plan, sessions = _plan(args), _session_plan(args)
    outputs = [path for path in (args.json, args.markdown) if path is not None]
    if args.pictures is not None:
        evaluation.check_matplotlib()
        args.pictures.mkdir(parents=True, exist_ok=True)
    machine = about()

    def tables(results: Results) -> str:
        if args.hallucinations:
            return evaluation.hallucination_markdown(results)
        if sessions is not None:
            return evaluation.session_markdown(sessions, results)
        return evaluation.markdown(evaluation.document(plan, results, machine), results)

    def save(results: Results) -> None:
        if args.json is not None and sessions is not None and args.hallucinations:
            content = evaluation.hallucination_document(plan, sessions, results, machine)
            evaluation.write_json(args.json, content)
        elif args.json is not None and sessions is not None:
            evaluation.write_json(args.json, evaluation.session_document(plan, sessions, results, machine))
        elif args.json is not None:
            evaluation.write_json(args.json, evaluation.document(plan, results, machine))
        if args.markdown is not None:
            write_text(args.markdown, tables(results))

    def show(name: str, step: float, case: Any, answers: Any) -> None:
        evaluation.volume_picture(args.pictures / f"{name}_step{step:g}.png", name, step, case, answers)

    if args.hallucinations:
        total = evaluation.hallucination_calls(plan)
    else:
        total = plan.runs() if sessions is None else evaluation.session_calls(plan, sessions)
    with ProgressBar("evaluating") as bar:

        def progress(done: int, text: str) -> None:
            bar(done, total, text)

        def skipped(what: str) -> None:
            complain(f"mdd: warning: left out {what}")

        drawn = show if args.pictures is not None else None
        hooks = evaluation.Hooks(progress, resident_mb, drawn, save, skipped)
        if sessions is None:
            results = evaluation.evaluate(plan, hooks)
        elif args.hallucinations:
            results = evaluation.evaluate_hallucinations(plan, sessions, args.objects or OBJECTS, hooks)
        else:
            results = evaluation.evaluate_sessions(plan, sessions, hooks)
    if not results.rows:
        complain("mdd: nothing could be evaluated: see the warnings above.")
        return 3
    save(results)
    if args.pictures is not None and args.hallucinations:
        _draw_objects(args.pictures, results)
    elif args.pictures is not None and sessions is not None:
        _draw_sessions(args.pictures, results)
    say(tables(results))
    for path in outputs + ([args.pictures] if args.pictures is not None else []):
        say(f"wrote {path}")
    return 0


def _draw_sessions(folder: Path, results: Results) -> None:
    """Draw each volume and step of seed 0: scores by sweep, and traces of ten cells."""
    from microdiffusion.engines import evaluation

    shown = [row for row in results.rows if row["seed"] == 0]
    for volume, step in dict.fromkeys((row["volume"], row["step"]) for row in shown):
        rows = [row for row in shown if (row["volume"], row["step"]) == (volume, step)]
        title, active = f"{volume}, step {step:g}", [row for row in rows if "traces" in row]
        evaluation.sweep_curves(folder / f"{volume}_step{step:g}_sweeps.png", title, rows)
        if active:
            evaluation.cell_traces(folder / f"{volume}_step{step:g}_traces.png", title, active)


def _against(args: Namespace) -> int:
    """Score sparse parts of a dense recording, or the volumes of a run, against it."""
    from microdiffusion.daemon.offline import hold_against, read_dense
    from microdiffusion.daemon.system import about
    from microdiffusion.engines import evaluation
    from microdiffusion.files import write_text

    if args.hallucinations or args.activity or args.drift or args.offline or args.pictures is not None:
        raise ConfigError(
            "--against goes with --methods, --steps, --sweeps, --crop, --json, --markdown: leave out others."
        )
    if args.volumes is not None and args.volumes.resolve() == args.against.resolve():
        raise ConfigError(
            f"{args.volumes} cannot be held against itself: give a run of the same specimen that was "
            "recorded beside it, or none, for sparse sweeps out of the dense recording."
        )
    methods = evaluation.parse_methods(args.methods or DEFAULT_HALLUCINATIONS)
    with ProgressBar("evaluating") as bar:
        bar(0, 1, "the reference")
        dense = read_dense(args.against, args.crop and args.crop[1:])
        rows = hold_against(
            dense,
            args.volumes,
            methods,
            steps=args.steps,
            most=args.sweeps or SPARSE_SWEEPS,
            engine=_engine(args),
            progress=bar,
        )
    tables = evaluation.against_markdown(dense, rows)
    say(tables)
    if args.json is not None:
        reference = {
            "own_error": dense.own_error,
            "apart": dense.apart,
            "slab": dense.slab,
            "frames": len(dense.stage),
        }
        evaluation.write_json(args.json, {"machine": about(), "reference": reference, "rows": rows})
        say(f"wrote {args.json}")
    if args.markdown is not None:
        write_text(args.markdown, tables)
        say(f"wrote {args.markdown}")
    return 0


def _engine(args: Namespace) -> dict[str, Any]:
    """Return the keys of the table [engine] that hold for all methods."""
    engine: dict[str, Any] = {"device": args.device}
    if args.weights is not None:
        engine["weights"] = args.weights
    return engine


def _draw_objects(folder: Path, results: Results) -> None:
    """Draw each volume and step of seed 0, first sweep and last."""
    from microdiffusion.engines import evaluation

    shown = [row for row in results.rows if row["seed"] == 0]
    sweeps = {min(row["sweep"] for row in shown), max(row["sweep"] for row in shown)}
    for volume, step in dict.fromkeys((row["volume"], row["step"]) for row in shown):
        for sweep in sorted(sweeps):
            key = (volume, step, sweep)
            rows = [row for row in shown if (row["volume"], row["step"], row["sweep"]) == key]
            path = folder / f"{volume}_step{step:g}_objects_sweep{sweep}.png"
            evaluation.object_views(path, f"{volume}, step {step:g}, sweep {sweep}", rows)


def _session_plan(args: Namespace) -> SessionPlan | None:
    from microdiffusion.engines.evaluation import FEWEST, SessionPlan

    if args.objects and not args.hallucinations:
        raise ConfigError("--objects is of the hallucination test: give --hallucinations as well.")
    if args.hallucinations:
        if args.activity or args.drift or args.offline:
            raise ConfigError(
                "--hallucinations is of specimens that keep still: leave out --activity, --drift, --offline."
            )
        return SessionPlan(args.sweeps or FEWEST, args.offsets or "golden")
    if args.sweeps is None:
        if args.activity or args.drift or args.offline or args.offsets:
            raise ConfigError(
                "--offsets, --activity, --drift and --offline are of a session: give its sweeps, --sweeps 16."
            )
        return None
    return SessionPlan(args.sweeps, args.offsets or "golden", args.activity, args.drift, args.offline)


def _plan(args: Namespace) -> EvaluationPlan:
    from microdiffusion.engines.evaluation import EvaluationPlan, Protocol, parse_methods
    from microdiffusion.files import volume_paths

    usual = DEFAULT if args.sweeps is None else DEFAULT_OVER_TIME
    if args.hallucinations:
        usual = DEFAULT_HALLUCINATIONS
    return EvaluationPlan(
        methods=parse_methods(args.methods or usual),
        files=volume_paths(args.volumes),
        protocol=Protocol(
            length=args.length, noise=args.noise, photons=args.photons, crop=args.crop, held_out=args.held_out
        ),
        steps=args.steps,
        seeds=args.seeds,
        engine=_engine(args),
    )


def _steps(text: str) -> tuple[float, ...]:
    return tuple(options.positive(part) for part in text.split(","))


def _crop(text: str) -> tuple[int, int, int] | None:
    return None if text == "none" else options.shape(text)
