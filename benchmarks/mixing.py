"""How well one held-out projection tells the best mixture of network and INR.

    python benchmarks/mixing.py --volumes FOLDER --folds folds.json

For each volume: the network's share in the mixture that predicts the held-out projection best, and in the
one that is closest to the truth, both unbounded, without the engine's own discount. `--folds` as for
method.py. Writes benchmarks/results/mixing.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, machine
from method import weights_of

from microdiffusion.engines.evaluation.methods import parse_methods
from microdiffusion.engines.evaluation.protocol import Protocol, make_case, read_truth


def share(mine: np.ndarray, other: np.ndarray, target: np.ndarray) -> float:
    """Return w of `w mine + (1 - w) other` that is closest to `target`."""
    apart = mine - other
    return float((apart * (target - other)).sum() / np.square(apart).sum())


def main() -> None:
    """Measure every volume at steps 6 and 8."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--folds", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "mixing.json")
    arguments = parser.parse_args()
    folds = json.loads(arguments.folds.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for path in sorted(arguments.volumes.glob("*.h5")):
        engine, _ = weights_of(path.stem, folds)
        truth = read_truth(path)
        for step in (6.0, 8.0):
            case = make_case(truth, Protocol(step=step))
            mdd, inr = (
                method.answer(case, engine).volume for method in parse_methods("mdd:1:fallback=false,inr")
            )
            sweep = case.sweep
            held = case.header.operator_at(sweep.held_out_stage)
            seen = case.seen
            row = {
                "volume": path.stem,
                "step": step,
                "held_out": share(
                    np.tensordot(held, mdd, 1), np.tensordot(held, inr, 1), np.asarray(sweep.held_out)
                ),
                "truth": share(mdd[seen], inr[seen], truth[seen]),
            }
            rows.append(row)
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    pairs = np.array([[row["held_out"], row["truth"]] for row in rows])
    result = {
        "machine": machine(),
        "rows": rows,
        "correlation": float(np.corrcoef(pairs.T)[0, 1]),
        "mean_difference": float((np.clip(pairs[:, 0], 0, 1) - np.clip(pairs[:, 1], 0, 1)).mean()),
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({key: round(result[key], 3) for key in ("correlation", "mean_difference")})


if __name__ == "__main__":
    main()
