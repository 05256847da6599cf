"""Hallucination test on volumes that no weights have seen: what is shown, hidden, and shown at two depths.

    python benchmarks/hallucinations.py --volumes FOLDER [--pictures FOLDER]

The hallucination test of `mdd evaluate --hallucinations` with five objects of each kind and origin in each
volume, the middle 48 x 64 x 64 voxels, slabs of 6 slices at a step of 6, golden offsets, 8 sweeps, noise
0.01. `mdd:fallback=false` is the network alone, `mdd:4` takes four evaluations.
Writes benchmarks/results/hallucinations.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from measuring import ROOT, machine

from microdiffusion.engines.evaluation.hallucination_report import (
    hallucination_document,
    hallucination_markdown,
)
from microdiffusion.engines.evaluation.hallucinations import evaluate_hallucinations, hallucination_calls
from microdiffusion.engines.evaluation.methods import parse_methods
from microdiffusion.engines.evaluation.pictures import object_views
from microdiffusion.engines.evaluation.protocol import Protocol
from microdiffusion.engines.evaluation.report import write_json
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks
from microdiffusion.engines.evaluation.sessions import SessionPlan

METHODS = "linear,tv,inr,mdd,mdd:4,mdd:fallback=false"
CROP = (48, 64, 64)
NOISES = (0.01,)
OBJECTS, SWEEPS = 5, 8


def main() -> int:
    """Measure, write the file, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--pictures", type=Path)
    results = ROOT / "benchmarks" / "results" / "hallucinations.json"
    parser.add_argument("--json", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(options.volumes.glob("*.h5"))
    sessions = SessionPlan(SWEEPS)
    content: dict[str, object] = {
        "machine": machine(),
        "volumes": [path.stem for path in files],
        "objects": OBJECTS,
    }
    for noise in NOISES:
        plan = EvaluationPlan(
            files,
            parse_methods(options.methods),
            Protocol(crop=CROP, noise=noise),
            steps=(6.0,),
            engine={"device": "cpu", "threads": 1},
        )
        total = hallucination_calls(plan)
        told: set[int] = set()

        def progress(done: int, text: str, total: int = total, told: set[int] = told) -> None:
            if done not in told:
                told.add(done)
                print(f"{done}/{total} {text}", file=sys.stderr, flush=True)

        found = evaluate_hallucinations(plan, sessions, OBJECTS, Hooks(progress))
        document = hallucination_document(plan, sessions, found, {})
        content[f"noise_{noise:g}"] = {
            key: document[key] for key in ("protocol", "methods", "summary", "skipped")
        }
        write_json(options.json, content)
        print(f"# Noise {noise:g}\n\n{hallucination_markdown(found)}")
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for volume in dict.fromkeys(row["volume"] for row in found.rows):
                for sweep in (1, SWEEPS):
                    rows = [row for row in found.rows if (row["volume"], row["sweep"]) == (volume, sweep)]
                    name = f"{volume}_noise{noise:g}_sweep{sweep}"
                    object_views(options.pictures / f"{name}.png", f"{volume}, sweep {sweep}", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
