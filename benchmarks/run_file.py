"""The run file under load: how fast it is written, what readers see, what a kill or damage leaves.

    python benchmarks/run_file.py --folder DISK --json benchmarks/results/run_file.json

Parts, each left out with 0: `--blocks` runs of 12 volumes, each beside a raw write of the same bytes on
the same disk (rate; 512 x 512 x 64); `--volumes` volumes of a smaller size in the same way (median and 99th
percentile); `--readers` processes that check every voxel of a run that goes on at the demo's rate; `--demo`
volumes of the demo itself, and how long its engine waits for the recorder; `--kills` writers killed at
random moments; `--files` damaged files, in which nothing that is wrong may be read, as many as come in
`--minutes`. The room on the disk is used again and again: at most 3 GB. `--set durable=true` and the like set
values of `[recorder]`.
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
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine
from support.file_mutations import Findings, malformed_files, open_all
from support.run_file_trials import (
    base_of,
    bytes_of_volume,
    demo_waits,
    kill_trials,
    processor_times,
    reader_trial,
    timed_writes,
    truth,
    writing,
)

from microdiffusion.runfile import snapshot_run

RATE_SHAPE = (64, 512, 512)
RATE_BLOCK = 12
TAIL_SHAPE = (32, 256, 256)
TAIL_BLOCK = 250
DEMO_SHAPE = (32, 128, 128)
DEMO_PERIOD_S = 0.25
KILL_SHAPE = (12, 160, 160)
BATCH = 100
WORKERS = 12
BAR = {"rate": 0.6, "p99": 2.0, "slower": 0.1}


def write_rate(folder: Path, blocks: int, values: dict[str, Any]) -> dict[str, Any]:
    """Compare volumes with raw writes of the same bytes, in turn."""
    size = bytes_of_volume(folder, RATE_SHAPE, values)
    raw: list[float] = []
    ours: list[float] = []
    for _ in range(blocks):
        some_raw, some = timed_writes(folder, RATE_SHAPE, RATE_BLOCK, values)
        raw, ours = raw + some_raw, ours + some
    shares = np.divide(raw, ours)
    return {
        "shape": RATE_SHAPE,
        "bytes_of_a_volume": size,
        "volumes": len(ours),
        "raw_mb_s": round(size / np.median(raw) / 1e6, 1),
        "run_mb_s": round(size / np.median(ours) / 1e6, 1),
        "share_of_raw_quartiles": [round(float(one), 3) for one in np.percentile(shares, (25, 50, 75))],
        "share_of_raw_in_all": round(sum(raw) / sum(ours), 3),
        "well": bool(np.median(shares) >= BAR["rate"]),
        "processor": processor_times(folder, RATE_SHAPE, RATE_BLOCK, values),
    }


def write_tail(folder: Path, volumes: int, values: dict[str, Any]) -> dict[str, Any]:
    """Write many volumes, and beside each as many raw bytes."""
    raw: list[float] = []
    ours: list[float] = []
    while len(ours) < volumes:
        some_raw, some = timed_writes(folder, TAIL_SHAPE, TAIL_BLOCK, values)
        raw, ours = raw + some_raw, ours + some
    ratio = float(np.percentile(ours, 99) / np.median(ours))
    return {
        "shape": TAIL_SHAPE,
        "bytes_of_a_volume": bytes_of_volume(folder, TAIL_SHAPE, values),
        "volumes_in_a_file": TAIL_BLOCK,
        "volumes": len(ours),
        **_percentiles("", ours),
        **_percentiles("raw_", raw),
        "p99_over_median": round(ratio, 2),
        "raw_p99_over_median": round(float(np.percentile(raw, 99) / np.median(raw)), 2),
        "well": ratio < BAR["p99"],
    }


def _percentiles(prefix: str, seconds: list[float]) -> dict[str, float]:
    names = {"median_ms": 50, "p99_ms": 99, "p99_9_ms": 99.9, "largest_ms": 100}
    return {
        prefix + name: round(float(np.percentile(seconds, share)) * 1e3, 2) for name, share in names.items()
    }


def damaged(
    folder: Path, count: int, values: dict[str, Any], *, minutes: float, seed: int = 0
) -> dict[str, Any]:
    """Damage a run file in many ways; it is refused, or what is read of it is right, repaired or not.

    A third of them are made of a closed file, a third of one that its writer had open, the others of a
    compressed copy of that.
    """
    closed, left_open, packed = folder / "closed.h5", folder / "open.h5", folder / "packed.h5"
    base = base_of((6, 72, 80))
    with writing(closed, (6, 72, 80), 4, values) as target:
        for sweep in range(4):
            volume = truth(sweep, base)
            target.put_frame(sweep, volume[0])
            target.write(sweep, volume.astype(np.float32))
        shutil.copyfile(closed, left_open)  # what a kill would leave
    snapshot_run(left_open, packed, compression="gzip")
    outcomes: Counter[str] = Counter()
    strange: list[str] = []
    slowest_s, tried = 0.0, 0
    until_s = time.monotonic() + 60 * minutes

    def batch(number: int) -> tuple[int, Findings]:
        if time.monotonic() > until_s:
            return 0, Findings()
        own = folder / f"batch-{number}"
        own.mkdir()
        sound = (closed, left_open, packed)[number % 3]
        size = min(count - number * BATCH, BATCH)
        try:
            return size, open_all(list(malformed_files(own, sound, size, seed + number)), own, sound)
        finally:
            shutil.rmtree(own)

    # Several at a time: who reads a file that may be in the making waits a little before refusing it.
    with ThreadPoolExecutor(WORKERS) as pool:
        for size, found in pool.map(batch, range(-(-count // BATCH))):
            tried += size
            outcomes.update(found.outcomes)
            strange += [text for _, text in found.strange]
            slowest_s = max(slowest_s, found.slowest_s)
    return {
        "files": tried,
        "outcomes": dict(outcomes),
        "slowest_s": round(slowest_s, 2),
        "strange": strange[:20],
        "well": not strange,
    }


def main() -> int:
    """Measure, and print one JSON object; 0 where every bar is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk in question")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--volumes", type=int, default=5000)
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--demo", type=int, default=60)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    values: dict[str, Any] = dict(one.split("=", 1) for one in options.set)
    folder = Path(tempfile.mkdtemp(prefix="mdd-run-file-", dir=options.folder))
    report: dict[str, Any] = {"machine": machine(), "recorder": values}
    try:
        if options.blocks:
            report["rate"] = write_rate(folder, options.blocks, values)
        if options.volumes:
            report["tail"] = write_tail(folder, options.volumes, values)
        if options.readers:
            trial = reader_trial(
                folder,
                DEMO_SHAPE,
                values,
                readers=options.readers,
                volumes=60,
                period_s=DEMO_PERIOD_S,
                phases=3,
            )
            well = not trial["problems"] and trial["slower"] < BAR["slower"]
            report["readers"] = trial | {"shape": DEMO_SHAPE, "well": well}
        if options.demo:
            report["demo"] = demo_waits(folder, options.demo, values)
        if options.kills:
            trial = kill_trials(folder, KILL_SHAPE, options.kills, values)
            report["kills"] = trial | {"shape": KILL_SHAPE, "well": not trial["wrong"]}
        if options.files:
            report["damaged"] = damaged(folder, options.files, values, minutes=options.minutes)
    finally:
        shutil.rmtree(folder)
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(part.get("well", True) for part in report.values() if isinstance(part, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
