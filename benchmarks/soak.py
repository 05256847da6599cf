"""Let the demo run for an hour, and see that nothing grows, slows down or gets lost.

    python benchmarks/soak.py [--minutes 60] [--interval-s 0.5] [--json soak.json]

`mdd serve --demo --headless`, a sweep each `--interval-s` (the demo's own interval is 2 s). Every ten seconds
the memory of each process is read, and what the status says; at the end the run file is verified, and its
latencies read, volume by volume. Slopes are least squares over everything after a warm-up of two minutes (two
thirds of a shorter run). An hour takes some 15 GB of disk at 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import machine
from support.soak import soak

BYTES_PER_SWEEP = 48 * 128 * 128 * 2 + 8 * 128 * 128 * 2


def main() -> int:
    """Soak, and print one JSON object; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interval-s", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, help="where the run files go; left out: a temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parent = options.folder or Path(tempfile.mkdtemp(prefix="mdd-soak-"))
    parent.mkdir(parents=True, exist_ok=True)
    needed = 60 * options.minutes / max(options.interval_s, 0.05) * BYTES_PER_SWEEP
    if shutil.disk_usage(parent).free < 1.2 * needed:
        parser.error(f"{parent} has not enough room for {needed / 1e9:.1f} GB: give another --folder")
    report = {"machine": machine(), **soak(parent / "soak", options.minutes, options.interval_s)}
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    if report["well"]:
        shutil.rmtree(parent / "soak")
    return 0 if report["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
