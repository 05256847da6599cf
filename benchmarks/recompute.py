"""Make every volume of a demo run again from its raw projections, and count those with the same bits.

    python benchmarks/recompute.py [--volumes 40] [--json benchmarks/results/recompute.json]

Three runs of the demo (48 x 128 x 128, shipped weights): as it is; `engine.policy` "live" at a sweep every
0.1 s, so that effort is left out and sweeps are skipped; and one whose engine is killed on the way, so that
it goes on from a checkpoint. Then `daemon.recompute` in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import psutil
from measuring import ROOT, machine
from support.mdd_process import Mdd, free_port

from microdiffusion import open_run
from microdiffusion.daemon.offline.recompute import recompute

RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "demo": ({"acquisition.sweep_interval_s": 1.0}, False),
    "live policy, too fast": ({"acquisition.sweep_interval_s": 0.1, "engine.policy": "live"}, False),
    "engine killed": ({"acquisition.sweep_interval_s": 1.0, "engine.checkpoint_s": 1.0}, True),
}


def made(folder: Path, volumes: int, settings: dict[str, Any], kill: bool) -> Path:
    """Run the demo and return its file."""
    folder.mkdir()
    pairs = [f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("data", "status", "control")]
    pairs += [f"{key}={value}" for key, value in settings.items()]
    words = [word for pair in pairs for word in ("--set", pair)]
    output = folder / "runs"
    with Mdd(
        *("serve", "--demo", "--headless", "--output", output, "--volumes", volumes),
        *words,
        folder=folder,
        environment={"OMP_NUM_THREADS": "2"},
    ) as mdd:
        if kill:
            mdd.wait_for(lambda: _written(output) >= volumes // 3)
            _engine_of(mdd).kill()
        code = mdd.finish(900)
        if code != 0:
            raise SystemExit(f"the demo ended with {code}: {mdd.err[-600:]}")
    (path,) = output.glob("*.h5")
    return path


def checked(path: Path) -> dict[str, Any]:
    """Make the run's volumes again and return what became of them."""
    differences: list[str] = []
    began_s = time.monotonic()
    found = list(recompute(path, on_difference=differences.append))
    seconds = time.monotonic() - began_s
    counts = Counter(each.outcome for each in found)
    with open_run(path) as run:
        there = run.status == 1
        efforts = Counter(run.values("effort")[there].tolist())
        return {
            "volumes": len(found),
            "bit_exact": counts["exact"],
            "differs": counts["differs"],
            "impossible": counts["impossible"],
            "why_impossible": sorted({each.why for each in found if each.outcome == "impossible"}),
            "efforts": {str(effort): number for effort, number in sorted(efforts.items())},
            "merged": int(run.values("merged")[there].sum()),
            "later": int(run.values("later")[there].sum()),
            "with_held_out": int(np.isfinite(run.values("held_out_error")[there]).sum()),
            "began_from_nothing": int((run.values("from_state")[there] == 0).sum()),
            "skipped": int((run.status == 3).sum()),
            "recipes": len(run.recipes),
            "not_as_recorded": differences,
            "seconds": round(seconds, 1),
        }


def _written(output: Path) -> int:
    with contextlib.suppress(OSError, StopIteration), open_run(next(output.glob("*.h5"))) as run:
        return int((run.status == 1).sum())
    return 0


def _engine_of(mdd: Mdd) -> psutil.Process:
    for process in mdd.family:
        with contextlib.suppress(psutil.Error):
            if any("libtorch_cpu" in area.path for area in process.memory_maps()):
                return process
    raise SystemExit("no process has torch: is this Linux?")


def main() -> int:
    """Measure, and print one JSON object; 0 where every volume that can be made again has the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=int, default=40)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "recompute.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "runs": {}}
    with tempfile.TemporaryDirectory(prefix="mdd-recompute-") as folder:
        for number, (name, (settings, kill)) in enumerate(RUNS.items()):
            path = made(Path(folder) / str(number), options.volumes, settings, kill)
            report["runs"][name] = {"settings": settings, **checked(path)}
    text = json.dumps(report, indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(run["differs"] == 0 for run in report["runs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
