"""What a session learns: `mdd evaluate --sweeps` on the volumes that docs/method.md shows.

  python benchmarks/session.py --volumes FOLDER [--only A,B] [--crop 48]

Sixteen sweeps at golden offsets, noise of 0.01 that nobody declares, specimens that keep still, are active
and drift; methods that stand alone, that learn, and that learn in both directions. Writes
benchmarks/results/session.json, and the tables to stdout.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import torch

import microdiffusion
from microdiffusion.daemon.system import about
from microdiffusion.engines import evaluation
from microdiffusion.files import volume_paths

ROOT = Path(__file__).resolve().parents[1]
VOLUMES = "vessels_octa,zebrafish_brain_1_pre,dendrite_deepd3,axons_trailmap_b,cells_bigstream_high"
METHODS = "linear,tikhonov,tv,inr:memory=sweep,mdd:memory=sweep,inr,mdd"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--only", default=VOLUMES)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "session.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    machine = about() | {"version": microdiffusion.__version__, "commit": commit}
    plan = evaluation.EvaluationPlan(
        [path for path in volume_paths(arguments.volumes) if path.stem in arguments.only.split(",")],
        evaluation.parse_methods(arguments.methods),
        evaluation.Protocol(crop=(arguments.crop,) * 3),
        engine={"device": "cpu", "threads": 1},
    )
    sessions = evaluation.SessionPlan(16, activity=True, drift=True, offline=True)

    def save(results: evaluation.Results) -> None:
        document = evaluation.session_document(plan, sessions, results, machine)
        evaluation.write_json(arguments.json, document)

    hooks = evaluation.Hooks(lambda done, text: print(text, flush=True), saved=save)
    results = evaluation.evaluate_sessions(plan, sessions, hooks)
    print(evaluation.session_markdown(sessions, results))


if __name__ == "__main__":
    main()
