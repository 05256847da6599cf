"""What exports cost: rate of each format as a share of a raw copy of the same bytes, and peak memory.

    python benchmarks/export.py --volumes 20 --shape 64x512x512

Each is measured in a process of its own, between two raw copies of the run's volumes on the same disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, machine

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.recorder.opening import create_recorder
from microdiffusion.frames import Reconstruction
from microdiffusion.header import RunHeader
from microdiffusion.runfile.schema import Status

RESULT = ROOT / "benchmarks" / "results" / "export.json"
KINDS = ("ome-zarr", "ome-tiff", "bdv", "nrrd", "snapshot")
_ONE = """
import sys, threading, time
from pathlib import Path
from microdiffusion.export import export_run
from microdiffusion.runfile import snapshot_run
peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
time.sleep(0.1)
idle, (kind, run, output) = peak, sys.argv[1:]
began = time.monotonic()
snapshot_run(Path(run), Path(output)) if kind == "snapshot" else export_run(Path(run), kind, Path(output))
print(time.monotonic() - began, peak / 1024, idle / 1024)
"""


def make_run(path: Path, volumes: int, shape: tuple[int, int, int]) -> None:
    """Write a run of noisy volumes."""
    header = RunHeader(
        run_id="0" * 32,
        shape=shape,
        voxel_size_um=(2.0, 0.5, 0.5),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=6.0,
        sweeps=volumes,
    )
    recorder = create_recorder(
        path,
        header,
        RecorderConfig(time_points=volumes),
        frames_per_sweep=1,
        configuration="{}",
        provenance={},
        on_written=lambda written: None,
    )
    recorder.start()
    rng = np.random.default_rng(0)
    base = rng.poisson(200, shape).astype(np.float32)
    for sweep in range(volumes):
        done = Reconstruction(
            volume=np.roll(base, sweep, axis=2),
            served="tikhonov",
            residual=1.0,
            held_out_error=1.0,
            candidate_errors={},
            seconds={},
            inr_iterations=0,
        )
        while not recorder.put_volume(
            sweep, 0, 0, done, acquired_s=float(sweep), received_s=time.monotonic()
        ):
            time.sleep(0.01)
    while recorder.counts[Status.WRITTEN] < volumes:
        recorder.raise_if_failed()
        time.sleep(0.01)
    recorder.stop()


def raw_copy(source: Path, target: Path, size: int) -> float:
    """Copy `size` bytes with plain reads and writes, and return the rate in MB/s."""
    began_s = time.monotonic()
    left = size
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while left > 0 and (block := reader.read(min(left, 16 << 20))):
            writer.write(block)
            left -= len(block)
    seconds = time.monotonic() - began_s
    target.unlink()
    return size / 1e6 / seconds


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--shape", default="64x512x512")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    z, y, x = (int(length) for length in args.shape.split("x"))
    size = args.volumes * z * y * x * 2
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = Path(folder) / "run.h5"
        make_run(run, args.volumes, (z, y, x))
        for kind in KINDS:
            os.sync()  # each begins with an empty queue to the disk
            os.sync()  # each begins with nothing waiting for the disk
            before = raw_copy(run, Path(folder) / "raw", size)
            os.sync()
            os.sync()
            output = Path(folder) / f"out_{kind}.{'h5' if kind == 'snapshot' else 'xml'}"
            text = subprocess.run(
                [sys.executable, "-c", _ONE, kind, str(run), str(output)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            seconds, memory, idle = (float(value) for value in text.split())
            os.sync()
            os.sync()
            after = raw_copy(run, Path(folder) / "raw", size)
            rate = size / 1e6 / seconds
            found[kind] = {
                "mb_per_s": round(rate, 1),
                "ratio_to_raw_copy": round(rate / ((before + after) / 2), 3),
                "raw_copy_mb_per_s": [round(before, 1), round(after, 1)],
                "peak_memory_mb": round(memory, 1),
                "idle_memory_mb": round(idle, 1),
            }
            print(kind, found[kind], flush=True)
            for leftover in Path(folder).glob("out_*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    result = {
        "volumes": args.volumes,
        "shape": [z, y, x],
        "volume_mb": z * y * x * 2 / 1e6,
        "note": "memory without pages of files that are mapped, which the system takes back at will",
        "formats": found,
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
