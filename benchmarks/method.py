"""The method against everything it claims to beat, on recorded volumes.

    python benchmarks/method.py --volumes FOLDER [--folds folds.json] [--only classical,network]
    python benchmarks/method.py --volumes FOLDER --only pictures,bars

`--folds` is a JSON file, volume name to weights that have not seen that volume's structure; volumes without
an entry get the shipped weights, which have. Every piece goes on where it was stopped: what is in the results
(benchmarks/results/method.json) is not computed again unless its weights have changed. Every row names the
commit that it was made with; after a change of the engine, remove the file.

Pieces: `classical` and `network` at steps 6, 8 and 12; `evaluations` (1, 2, 4 and 8 of the network alone);
`conditions` (noise, photons, slab length); `two_sweeps` (half a step apart,
a still specimen); `reference` (the reference, trained for each volume: slow; a small part of each volume,
`--reference` holds its options); `pictures` of a neuron, vessels and nuclei (docs/images/method_*.png);
`bars`, the summary of what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, machine

from microdiffusion.daemon.system import resident_mb
from microdiffusion.engines.evaluation.methods import CLASSICAL, parse_methods
from microdiffusion.engines.evaluation.pictures import volume_picture
from microdiffusion.engines.evaluation.protocol import Protocol, make_case, read_truth
from microdiffusion.engines.evaluation.report import better_classical, per_volume, summarise, write_json
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks, Results, evaluate
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.metrics import bootstrap_interval

CLASSIC = ",".join(CLASSICAL)
NETWORK = "inr,mdd:1,mdd:4"
ALONE = ",".join(f"mdd:{number}:fallback=false" for number in (1, 2, 4, 8))
HARD = "linear,tikhonov,inr,mdd:1"
# Piece -> condition -> (methods, protocol, steps).
PIECES: dict[str, dict[str, tuple[str, Protocol, tuple[float, ...]]]] = {
    "classical": {"protocol": (CLASSIC, Protocol(), (6.0, 8.0, 12.0))},
    "network": {"protocol": (NETWORK, Protocol(), (6.0, 8.0, 12.0))},
    "evaluations": {"protocol": (ALONE, Protocol(), (6.0,))},
    "conditions": {
        "noise 0.04": (HARD, Protocol(noise=0.04), (6.0,)),
        "30 photons": (HARD, Protocol(photons=30), (6.0,)),
        "300 photons": (HARD, Protocol(photons=300), (6.0,)),
        "length 4": (HARD, Protocol(length=4), (4.0,)),
        "length 12": (HARD, Protocol(length=12), (12.0,)),
    },
}
REFERENCE = Protocol(crop=(48, 48, 48))
AXONS = ("axons_trailmap_a", "axons_trailmap_b")
PICTURES = {"neuron": "axon_olfactory_pn", "vessels": "vessels_octa", "nuclei": "cells_bigstream_high"}
SHOWN = "linear,tikhonov,tv,inr,mdd:4"


def main() -> None:
    """Compute the pieces that are asked for and missing, then sum up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--folds", type=Path, help="JSON: volume name to weights file")
    parser.add_argument(
        "--only", default="classical,network,evaluations,conditions,two_sweeps,bars", metavar="A,B"
    )
    parser.add_argument("--names", help="volumes, separated by commas; default: all")
    parser.add_argument(
        "--reference",
        default="reference.epochs=200:reference.inr_steps=1000:reference.inr_batch_pixels=256",
        help="options of the reference in the piece `reference`",
    )
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "method.json")
    arguments = parser.parse_args()
    store = Store(arguments.json)
    folds = json.loads(arguments.folds.read_text(encoding="utf-8")) if arguments.folds else {}
    names = arguments.names.split(",") if arguments.names else None
    files = [p for p in sorted(arguments.volumes.glob("*.h5")) if names is None or p.stem in names]
    for piece in arguments.only.split(","):
        if piece == "two_sweeps":
            two_sweeps(files, folds, store)
        elif piece == "pictures":
            pictures(files, folds)
        elif piece == "bars":
            store.content["bars"] = bars(store.rows)
            store.save()
            print(json.dumps(store.content["bars"], indent=1))
        elif piece == "reference":
            methods = f"{CLASSIC},inr,mdd:4,microdiffusion:{arguments.reference},ddpm:{arguments.reference}"
            run(piece, "48 x 48 x 48", files, (methods, REFERENCE, (8.0,)), folds, store)
        else:
            for condition, what in PIECES[piece].items():
                run(piece, condition, files, what, folds, store)


class Store:
    """The rows so far, on disk after every volume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine(), "rows": []}
        if path.is_file():
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            # JSON has no NaN: what was not known was written as null.
            self.content["rows"] = [{k: np.nan if v is None else v for k, v in row.items()} for row in rows]
        self.rows: list[dict[str, Any]] = self.content["rows"]
        self.commit = commit()

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a row with these values is there."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, rows: list[dict[str, Any]], key: dict[str, Any]) -> None:
        """Replace what was stored for the same volume and methods, whatever its weights."""
        place = {name: value for name, value in key.items() if name != "weights"}
        new = {(row["method"], row["step"]) for row in rows}
        self.rows[:] = [
            row
            for row in self.rows
            if not (all(row.get(k) == v for k, v in place.items()) and (row["method"], row["step"]) in new)
        ]
        self.rows += [{**key, "commit": self.commit, **row} for row in rows]
        self.save()

    def save(self) -> None:
        """Write everything."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def commit() -> str:
    """Return the commit of this checkout, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def weights_of(name: str, folds: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Return the engine's keys for a volume, and what its weights are called in the results."""
    if name not in folds:
        return {"device": "cpu"}, "shipped"
    path = Path(folds[name])
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return {"device": "cpu", "weights": path}, f"{path.stem} {checksum}"


def run(
    piece: str,
    condition: str,
    files: list[Path],
    what: tuple[str, Protocol, tuple[float, ...]],
    folds: dict[str, str],
    store: Store,
) -> None:
    """Score what is missing of a condition, volume by volume, step by step."""
    text, protocol, steps = what
    for path in files:
        engine, weights = weights_of(path.stem, folds)
        for step in steps:
            methods = []
            for method in parse_methods(text):
                key = {"piece": piece, "condition": condition, "volume": path.stem}
                key["weights"] = weights if method.kind == "mdd" else ""
                if not store.has({**key, "method": method.name, "step": step}):
                    methods.append((method, key))
            if not methods:
                continue
            plan = EvaluationPlan([path], [m for m, _ in methods], protocol, (step,), 1, engine)
            results = evaluate(plan, Hooks(resident_mb=resident_mb))
            for method, key in methods:
                store.add([row for row in results.rows if row["method"] == method.name], key)
            shown = "  ".join(f"{r['method']} {r['psnr_db']:.2f}/{r['ssim']:.3f}" for r in results.rows)
            print(f"{piece}, {condition}, {path.stem}, step {step:g}: {shown}", *results.skipped, flush=True)


def two_sweeps(files: list[Path], folds: dict[str, str], store: Store) -> None:
    """Score the second of two sweeps of a still specimen, half a step apart, with the first and alone."""
    for path in files:
        engine, weights = weights_of(path.stem, folds)
        truth = read_truth(path)
        cases = [make_case(truth, Protocol(offset=offset), seed) for seed, offset in enumerate((0.0, 3.0))]
        first, second = (dataclasses.replace(case.sweep, sweep=number) for number, case in enumerate(cases))
        judged = dataclasses.replace(cases[1], seen=cases[0].seen & cases[1].seen)
        for name, condition in (
            ("inr", "session"),
            ("mdd:1", "session"),
        ):
            (method,) = parse_methods(name)
            key = {"piece": "two_sweeps", "condition": condition, "volume": path.stem}
            key["weights"] = weights if method.kind == "mdd" else ""
            if store.has({**key, "method": name, "step": 6.0}):
                continue
            both, alone = (method.config({**engine, "memory": memory}) for memory in (condition, "sweep"))
            opened = open_engine(both)
            with_first = Reconstructor(judged.header, both, opened)
            with_first.reconstruct(first)
            merged = with_first.reconstruct(second)
            single = Reconstructor(judged.header, alone, opened).reconstruct(second)
            scores, before = (dataclasses.asdict(judged.scores(r.volume)) for r in (merged, single))
            row = {"method": name, "step": 6.0, "merged": merged.merged, **scores}
            row |= {f"alone_{score}": before[score] for score in ("psnr_db", "ssim", "axial_area")}
            store.add([row], key)
            gain = f"{before['psnr_db']:.2f} alone, {scores['psnr_db']:.2f} with the first"
            print(f"two sweeps, {condition}, {path.stem}, {name}: {gain}", flush=True)


def pictures(files: list[Path], folds: dict[str, str]) -> None:
    """Draw truth, projections and answers of a neuron, vessels and nuclei at step 8."""
    folder = ROOT / "docs" / "images"
    protocol = Protocol(step=8.0)
    for subject, name in PICTURES.items():
        path = next((p for p in files if p.stem == name), None)
        if path is None:
            continue
        engine, _ = weights_of(name, folds)
        case = make_case(read_truth(path), protocol)
        answers = {m.name: m.answer(case, engine).volume for m in parse_methods(SHOWN)}
        volume_picture(folder / f"method_{subject}.png", f"{subject} ({name})", 8.0, case, answers)
        print(f"wrote {folder / f'method_{subject}.png'}", flush=True)


def bars(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the pieces say, as far as they are there."""
    found: dict[str, Any] = {}
    main_rows = [r for r in rows if r["piece"] in ("classical", "network", "evaluations", "priors")]
    if main_rows:
        found["summary"] = summarise(Results(main_rows, classical=CLASSICAL))
    tables = {step: per_volume(r for r in main_rows if r["step"] == step) for step in (6.0, 8.0, 12.0)}
    for step, table in tables.items():
        best = {score: better_classical(table, CLASSICAL, score) for score in ("psnr_db", "ssim")}
        for method in ("mdd:1", "mdd:2", "mdd:4"):
            mine = {v: s for v, s in table.get(method, {}).items() if v in best["psnr_db"]}
            if mine:
                found[f"{method} over the best classical answer, step {step:g}"] = {
                    "psnr_db": spread([mine[v]["psnr_db"] - best["psnr_db"][v][0] for v in mine]),
                    "ssim": spread([mine[v]["ssim"] - best["ssim"][v][0] for v in mine]),
                    "dense axons": spread(
                        [mine[v]["psnr_db"] - best["psnr_db"][v][0] for v in AXONS if v in mine]
                    ),
                    "volumes": {v: round(mine[v]["psnr_db"] - best["psnr_db"][v][0], 2) for v in mine},
                }
    found |= differences(tables)
    for condition in PIECES["conditions"]:
        part = [r for r in rows if r["condition"] == condition]
        if part:
            found[condition] = summarise(Results(part, classical=CLASSICAL))
    sweeps = [r for r in rows if r["piece"] == "two_sweeps"]
    for method, condition in sorted({(r["method"], r["condition"]) for r in sweeps}):
        found[f"{method}, two sweeps over one, {condition}"] = spread(
            [
                r["psnr_db"] - r["alone_psnr_db"]
                for r in sweeps
                if (r["method"], r["condition"]) == (method, condition)
            ]
        )
    reference = [r for r in rows if r["piece"] == "reference"]
    if reference:
        found["reference"] = summarise(Results(reference, classical=CLASSICAL))
    return found


def differences(tables: dict[float, dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """Return the bars that compare two cells of the table on each volume."""
    found: dict[str, Any] = {}
    for label, (step, method), (other_step, other), scores in (
        (
            "mdd:4 at step 12 over linear at step 6",
            (12.0, "mdd:4"),
            (6.0, "linear"),
            ("psnr_db", "ssim"),
        ),
        *(
            (
                f"{number} evaluations over 1, the network alone",
                (6.0, f"mdd:{number}:fallback=false"),
                (6.0, "mdd:1:fallback=false"),
                SHARPNESS,
            )
            for number in (2, 4, 8)
        ),
    ):
        mine, theirs = tables[step].get(method, {}), tables[other_step].get(other, {})
        both = sorted(set(mine) & set(theirs))
        for score in scores if both else ():
            values = [mine[v][score] - theirs[v][score] for v in both]
            found.setdefault(label, {})[score] = spread(values)
    return found


SHARPNESS = ("axial_area", "axial_cutoff", "sharpness", "foreground_sharpness", "psnr_db")


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean, interval over volumes, and least."""
    if not values:
        return {}
    return {
        "mean": float(np.mean(values)),
        "interval": bootstrap_interval(values),
        "least": float(np.min(values)),
        "volumes": len(values),
    }


if __name__ == "__main__":
    main()
