"""Break things in a few hundred short runs, and see whether anything was lost.

    python benchmarks/faults.py --runs 200 --seed 0 --json faults.json [--kind kill-daemon ...] [--jobs 2]

Run number i is of the i-th kind, over and over, with the seed + i. One that fails keeps its folder, and the
command that plays it again is printed. What is broken and what must hold: docs/faults.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from measuring import machine
from support.fault_scenarios import KINDS, SWEEPS, Outcome, play
from support.fault_stage import make_source
from support.fault_times import measure_times

AGAIN = "python benchmarks/faults.py"


def main() -> int:
    """Play, and print one JSON object; 0 where nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=len(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=[*KINDS, "times"], help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--longest-cut", type=float, default=30.0, metavar="S", help="seconds (30)")
    parser.add_argument("--repeats", type=int, default=10, help="of the measured times (10)")
    parser.add_argument("--folder", type=Path, help="where to play; left out: a temporary one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = [kind for kind in options.kind or KINDS if kind != "times"]
    work = options.folder or Path(tempfile.mkdtemp(prefix="mdd-faults-"))
    sources = work / "sources"
    make_source(sources, sweeps=SWEEPS)
    make_source(sources, sweeps=12, edge=256)
    started_s = time.monotonic()
    number = 0

    def one(index: int) -> Outcome:
        nonlocal number
        kind, seed = kinds[index % len(kinds)], options.seed + index
        folder = work / f"{kind}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        outcome = play(kind, seed, folder, sources, longest_cut_s=options.longest_cut)
        number += 1
        said = f"{number:4d}  {kind:24s} seed {seed:<6d} {outcome.seconds:6.1f} s  "
        if outcome.problems:
            said += "WRONG\n" + "".join(f"        {text}\n" for text in outcome.problems)
            said += (
                f"        {folder}\n        python benchmarks/faults.py --runs 1 --kind {kind} --seed {seed}"
            )
        else:
            shutil.rmtree(folder)
            said += f"well  {outcome.facts}"
        print(said, flush=True)
        return outcome

    outcomes: list[Outcome] = []
    if kinds:
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(one, range(options.runs)))
    wrong = [outcome for outcome in outcomes if outcome.problems]
    report = {
        "machine": machine(),
        "runs": len(outcomes),
        "wrong": [asdict(outcome) for outcome in wrong],
        "minutes": round((time.monotonic() - started_s) / 60, 1),
        "kinds": {
            kind: {
                "runs": sum(outcome.kind == kind for outcome in outcomes),
                "wrong": sum(outcome.kind == kind for outcome in wrong),
            }
            for kind in kinds
        },
        "disks": dict(Counter(outcome.facts["disk"] for outcome in outcomes if "disk" in outcome.facts)),
    }
    if options.kind is None or "times" in options.kind:
        report["times"] = measure_times(work / "times", sources, options.repeats)
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    if not wrong and options.folder is None:
        shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
