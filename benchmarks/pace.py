"""`mdd doctor`'s estimate of the pace against what a run then reaches, in ten geometries.

For each geometry: the estimate, a run as fast as the engine takes it (`mdd replay --serve`, whose sender
waits), the estimate again, since others use the machine too. The run's pace is read from its file while it is
written: the seconds between the first volumes and the last, over their number. Its projections are of the
bench's virtual specimen, which flickers, drifts and bleaches.

Where others use the machine, seconds say little: the same comparison is made in processor time, the engine
process's between the same volumes.

    python benchmarks/pace.py --json benchmarks/results/pace.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from microdiffusion import open_run
from microdiffusion.config import Config, load_config
from microdiffusion.daemon.bench.scene import make_scene
from microdiffusion.daemon.doctor.subprocess_probe import probe
from microdiffusion.files import write_projections
from microdiffusion.runfile import Status

GEOMETRIES = [  # slices, rows, columns, slab in slices, step in slices
    (48, 128, 128, 6, 6),
    (24, 128, 128, 6, 6),
    (96, 128, 128, 6, 6),
    (48, 64, 64, 6, 6),
    (48, 128, 256, 6, 6),
    (48, 256, 256, 6, 6),
    (24, 320, 320, 6, 6),
    (48, 128, 128, 12, 12),
    (60, 128, 128, 6, 3),
    (64, 128, 128, 4, 8),
]
VOXEL_UM = 2.0
FIRST, LAST = 3, 12
"""Volumes between which the run's pace is read."""
PORTS = [f"--set=wire.{name}=tcp://127.0.0.1:*" for name in ("data", "status", "control")]


def configured(geometry: tuple[int, int, int, int, int]) -> Config:
    """Return the demo's configuration with another geometry."""
    slices, rows, columns, length, step = geometry
    return load_config(
        "demo",
        overrides={
            "volume.shape_z": slices,
            "volume.voxel_z_um": VOXEL_UM,
            "camera.height": rows,
            "camera.width": columns,
            "sweep.length_um": length * VOXEL_UM,
            "sweep.step_um": step * VOXEL_UM,
            "sweep.overlap": None,
        },
        environ={},
    )


def estimate(config: Config) -> tuple[float, float]:
    """Return seconds and processor seconds for a sweep, as `mdd doctor` measures them."""
    facts = probe(config, timeout_s=300.0, subjects=("pace",))["pace"]
    if isinstance(facts, str):
        raise SystemExit(facts)
    return float(facts["seconds"]), float(facts["cpu_s"])


def write_sweeps(config: Config, path: Path) -> None:
    """Write the projections of the virtual specimen, sweep after sweep."""
    size = (config.volume.shape_z, config.camera.height or 0, config.camera.width or 0)
    scene = make_scene(config, size, seed=1, sweeps=LAST + 1)
    made = [scene.frames(number) for number in range(LAST + 1)]
    most = min(len(frames) for frames in made)  # a file's sweeps have as many frames each
    header = scene.header
    write_projections(
        path,
        (np.stack([frame.pixels for frame in frames[:most]]) for frames in made),
        z_um=np.array([[frame.info.stage.z_um for frame in frames[:most]] for frames in made]),
        profile=header.profile,
        voxel_size_um=header.voxel_size_um,
        z0_um=header.z0_um,
        shape_z=header.shape[0],
        time_s=np.arange(len(made), dtype=np.float64),
        camera=header.camera,
    )


def reached(projections: Path, folder: Path) -> tuple[float, float]:
    """Return seconds, and processor seconds of the engine, for a volume of a run as fast as it goes."""
    command = [sys.executable, "-m", "microdiffusion.daemon.cli", "replay", str(projections), "--serve"]
    command += ["--output", str(folder), *PORTS, f"--set=recorder.time_points={LAST + 1}"]
    ran = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen: dict[int, tuple[float, float]] = {}
    while ran.poll() is None and not (paths := list(folder.glob("*.h5"))):
        time.sleep(0.1)
    if ran.poll() is None:
        with open_run(paths[0], missing="ignore") as run:
            while ran.poll() is None and LAST not in seen:
                time.sleep(0.03)
                done = int(np.count_nonzero(run.status == Status.WRITTEN))
                if done not in seen:
                    seen[done] = time.monotonic(), engine_cpu_s(ran.pid)
    error = ran.communicate(timeout=300)[1]
    known = [number for number in seen if number >= FIRST]
    if len(known) < 2:
        raise SystemExit(f"the run wrote {max(seen, default=0)} volumes: {error[-500:]}")
    first, last = min(known), max(known)
    seconds, cpu_s = (
        (end - begin) / (last - first) for begin, end in zip(seen[first], seen[last], strict=True)
    )
    return seconds, cpu_s


def engine_cpu_s(pid: int) -> float:
    """Return the processor time of the engine process below `pid`: the busiest of its children."""
    times = [sum(child.cpu_times()[:2]) for child in psutil.Process(pid).children(recursive=True)]
    return max(times, default=0.0)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of geometries")
    args = parser.parse_args()
    rows = []
    for number, geometry in enumerate(GEOMETRIES):
        if args.only and number not in args.only:
            continue
        config = configured(geometry)
        with tempfile.TemporaryDirectory(prefix="mdd-pace-") as folder:
            projections = Path(folder) / "projections.h5"
            write_sweeps(config, projections)
            before = estimate(config)
            (Path(folder) / "runs").mkdir()
            run = reached(projections, Path(folder) / "runs")
            estimates = np.array([before, estimate(config)])
        ratio, cpu_ratio = np.array(run) / estimates.mean(0)
        rows.append(
            {
                "slices_rows_columns": geometry[:3],
                "slab_and_step_slices": geometry[3:],
                "estimates_s": estimates[:, 0].round(4).tolist(),
                "run_s": round(run[0], 4),
                "estimates_cpu_s": estimates[:, 1].round(4).tolist(),
                "run_cpu_s": round(run[1], 4),
                "estimated_rate_over_reached": round(float(ratio), 3),
                "in_processor_time": round(float(cpu_ratio), 3),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    within = {
        name: sum(0.75 <= row[name] <= 1.25 for row in rows)
        for name in ("estimated_rate_over_reached", "in_processor_time")
    }
    print(f"within 25 %, of {len(rows)}: {within}")
    if args.json is not None:
        text = {
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "within_25_percent": within,
            "geometries": rows,
        }
        args.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
