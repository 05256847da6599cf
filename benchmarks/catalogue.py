"""Time that a catalogue of thousands of runs takes: at first, again, and where one run is new.

    python benchmarks/catalogue.py --runs 3000

The runs are names of a few real files, a hundred in a folder; the files are in the system's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import ROOT, machine

RESULT = ROOT / "benchmarks" / "results" / "catalogue.json"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        found = measure(Path(place), args.runs)
    result = {
        "runs": args.runs,
        **found,
        "note": "wall and processor time; other programs ran on the machine, as its load average says",
        "load_average": round(os.getloadavg()[0], 1),
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def measure(place: Path, runs: int) -> dict[str, Any]:
    """Return seconds of each call."""
    from support.run_file_writer import put_sweep, recorder, started

    from microdiffusion import list_runs

    data = place / "data"
    for number in range(4):
        target = started(recorder(place / f"real{number}.h5"))
        for sweep in range(5 + number):
            put_sweep(target, sweep)
        target.stop()
        os.utime(place / f"real{number}.h5", (0, 0))
    for number in range(runs):
        where = data / f"{number // 100:03d}"
        where.mkdir(parents=True, exist_ok=True)
        os.link(place / f"real{number % 4}.h5", where / f"run{number:05d}.h5")
    time.sleep(3)  # a file that has changed just now is not kept
    found: dict[str, Any] = {}
    for name in ("at_first", "again", "one_is_new"):
        if name == "one_is_new":
            shutil.copy(place / "real0.h5", data / "new.h5")
        began_s, used_s = time.monotonic(), time.process_time()
        count = len(list_runs(data))
        found[name] = {
            "runs": count,
            "seconds": round(time.monotonic() - began_s, 2),
            "processor_s": round(time.process_time() - used_s, 2),
        }
    return found


if __name__ == "__main__":
    main()
