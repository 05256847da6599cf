"""Reprocessing over a cluster: gain, overhead, what kills cost, memory, and what a warm-up changes.

    python benchmarks/farm.py                  # all of it, half an hour on a quiet machine
    python benchmarks/farm.py speed memory     # parts; the others stay as they are in the results

Whole commands are timed, start and end of the cluster included, in turns; the load of the machine before and
after each is in the results, as other programs take their share of the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measuring import ROOT, machine

from microdiffusion import open_run
from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.offline import (
    Where,
    Work,
    open_cluster,
    plan_pieces,
    reconstruct_file,
    work_through,
    work_through_here,
)

RESULT = ROOT / "benchmarks" / "results" / "farm.json"
RUNS, SWEEPS, TURNS, ASSEMBLIES = 20, 10, 2, 7
SPEED_SWEEPS, KILLED_RUNS, KILLED_SWEEPS = 60, 100, 60
KILL_EVERY_S = 10.0
MDD = Path(sys.executable).with_name("mdd")
ONE_THREAD = ("--device", "cpu", "--set", "engine.threads=1")


def recordings(folder: Path, count: int = RUNS, sweeps: int = SWEEPS, **layout: int) -> list[Path]:
    """Return recordings of 24 x 32 x 32 voxels; copies of one, under ids of their own."""
    from support.recorded_sessions import write_recording

    first = write_recording(folder / "run00.h5", sweeps, **layout)
    return [first, *(Path(shutil.copy(first, folder / f"run{n:02d}.h5")) for n in range(1, count))]


def command(*words: object) -> tuple[float, list[float]]:
    """Return the seconds of a command, and the load before and after."""
    before, began_s = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([MDD, "reconstruct", *map(str, words), *ONE_THREAD], capture_output=True, text=True)
    seconds = time.monotonic() - began_s
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return seconds, [round(before, 1), round(os.getloadavg()[0], 1)]


def same(one: Path, other: Path) -> bool:
    """Return whether two run files have the same volumes."""
    with open_run(one) as left, open_run(other) as right:
        return bool(np.array_equal(left.volume.filled(0)[:], right.volume.filled(0)[:]))


def speed(folder: Path) -> dict[str, Any]:
    """Time one process against two workers, one thread each."""
    runs = recordings(folder, RUNS, SPEED_SWEEPS)
    rows: dict[str, list[float]] = {"one_process_s": [], "two_workers_s": []}
    loads = []
    for turn in range(TURNS):
        for name, more in (("one_process_s", []), ("two_workers_s", ["--local", 2])):
            seconds, load = command(*runs, "--output", folder / f"{name}{turn}", *more)
            rows[name].append(round(seconds, 1))
            loads.append(load)
            print(rows, load, flush=True)
    identical = all(
        same(folder / "one_process_s0" / run.name, folder / "two_workers_s0" / run.name) for run in runs
    )
    ratio = np.mean(rows["one_process_s"]) / np.mean(rows["two_workers_s"])
    about = {"runs": RUNS, "sweeps": SPEED_SWEEPS, "load": loads, "identical": identical}
    return {**rows, **about, "ratio": round(float(ratio), 2), "bar": 1.7}


def overhead(folder: Path) -> dict[str, Any]:
    """Measure what Dask adds to the work of a piece, and an assembly to that of its parts; one worker."""
    runs = recordings(folder)
    several = recordings(folder / "several", 1, SWEEPS, positions=4)
    config = Config(engine=EngineConfig(device="cpu", threads=1))
    work, where = Work(config), Where(local=1, threads=1)
    with open_cluster(where) as client:
        warm = plan_pieces(runs[0], folder / "warm.h5", work)[0]
        work_through(warm, work, client, where)  # the worker opens its engine
        pieces = [
            piece for run in runs[1:] for piece in plan_pieces(run, folder / f"out_{run.name}", work)[0]
        ]
        began_s = time.monotonic()
        outcome = work_through(pieces, work, client, where)
        wall_s = time.monotonic() - began_s
        shares = []
        for number in range(ASSEMBLIES):
            parts = plan_pieces(several[0], folder / f"assembled{number}.h5", work)[0]
            cut = work_through(parts, work, client, where)
            assembly_s = cut.seconds[parts[-1].name]
            shares.append(round(assembly_s / (sum(cut.seconds.values()) - assembly_s), 4))
    busy_s = sum(outcome.seconds.values())
    return {
        "pieces": len(pieces),
        "work_s": round(busy_s, 2),
        "wall_s": round(wall_s, 2),
        "share": round((wall_s - busy_s) / busy_s, 4),
        "assembly_shares_of_four_sessions": shares,
        "assembly_share_of_four_sessions": float(np.median(shares)),
        "bar": 0.05,
    }


def workers_of(command: int) -> list[psutil.Process]:
    """Return the workers of a command, whether they were forked or started, also those that only start."""
    children = psutil.Process(command).children()
    forked = [each for child in children for each in child.children()]
    return forked or [each for each in children if "spawn_main" in " ".join(each.cmdline())]


def killed(folder: Path) -> dict[str, Any]:
    """Kill one of two workers every ten seconds."""
    runs = recordings(folder, KILLED_RUNS, KILLED_SWEEPS)
    calm_s, load = command(*runs, "--output", folder / "calm", "--local", 2)
    draw, kills = random.Random(0), 0  # noqa: S311 no secret
    began_s = time.monotonic()
    job = subprocess.Popen(
        [MDD, "reconstruct", *runs, "--output", folder / "killed", "--local", "2", *ONE_THREAD],
        stdout=subprocess.PIPE,
        text=True,
    )
    said = job.stdout.readline() if job.stdout is not None else ""  # the workers are there
    due_s = time.monotonic() + KILL_EVERY_S
    while job.poll() is None:
        time.sleep(0.1)
        if time.monotonic() >= due_s:
            due_s += KILL_EVERY_S
            if workers := workers_of(job.pid):
                draw.choice(workers).kill()
                kills += 1
    seconds = time.monotonic() - began_s
    said += job.communicate()[0]
    return {
        "undisturbed_s": round(calm_s, 1),
        "killed_s": round(seconds, 1),
        "runs": KILLED_RUNS,
        "sweeps": KILLED_SWEEPS,
        "kills": kills,
        "load": [*load, round(os.getloadavg()[0], 1)],
        "exit_code": job.returncode,
        "said": said.splitlines()[-1],
        "identical": all(same(folder / "calm" / run.name, folder / "killed" / run.name) for run in runs),
        "ratio": round(seconds / calm_s, 2),
        "bar": 1.5,
    }


def scheduler(folder: Path) -> dict[str, Any]:
    """Kill the scheduler in the middle, and start it again with workers."""
    runs = recordings(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = Path(sys.executable).with_name("dask")

    def start() -> list[subprocess.Popen[bytes]]:
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        first = subprocess.Popen([dask, "scheduler", "--host", address, "--no-dashboard"], **quiet)
        worker = [dask, "worker", address, "--nthreads", "1", "--no-dashboard"]
        return [first, *(subprocess.Popen(worker, **quiet) for _ in range(2))]

    def end(processes: list[subprocess.Popen[bytes]]) -> None:
        for each in processes:
            each.kill()
            each.wait()

    output = folder / "out"
    cluster = start()
    job = subprocess.Popen(
        [MDD, "reconstruct", *runs, "--output", output, "--scheduler", address, *ONE_THREAD],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def done() -> dict[str, int]:
        return {each.name: each.stat().st_mtime_ns for each in output.glob("run*.h5")}

    while job.poll() is None and len(done()) < RUNS // 3:
        time.sleep(0.1)
    before = done()
    end(cluster)
    cluster = start()
    said = job.communicate()[0]
    end(cluster)
    after = done()
    return {
        "done_before": len(before),
        "kept": sum(after.get(name) == when for name, when in before.items()),
        "done_after": len(after),
        "exit_code": job.returncode,
        "said": said.splitlines()[-1] if said else "",
    }


def memory(folder: Path) -> dict[str, Any]:
    """Measure the peak memory of `mdd reconstruct` for short and long runs, without mapped files."""
    found: dict[str, float] = {}
    for sweeps in (20, 2000):
        (run,) = recordings(folder / str(sweeps), 1, sweeps)
        method = ["--method", "inr", "--set", "engine.inr.cold_steps=1"]  # what is kept is the same
        words = [MDD, "reconstruct", run, "--output", folder / f"out{sweeps}.h5", *method, *ONE_THREAD]
        job = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        peak = 0
        while job.poll() is None:
            try:
                text = Path(f"/proc/{job.pid}/status").read_text()
            except OSError:
                break
            peak = max(peak, *(int(line.split()[1]) for line in text.splitlines() if "RssAnon" in line), 0)
            time.sleep(0.05)
        if job.wait():
            raise SystemExit("mdd reconstruct failed")
        found[f"{sweeps}_sweeps_mb"] = round(peak / 1024, 1)
        print(found, flush=True)
    ratio = found["2000_sweeps_mb"] / found["20_sweeps_mb"]
    return {**found, "ratio": round(ratio, 3), "bar": 1.1}


def warm_up(folder: Path) -> dict[str, Any]:
    """Compare a session cut in two with one in one piece, in counts, by the sweeps of the warm-up."""
    from support.sample_data import CAMERA, specimen

    (run,) = recordings(folder, 1, 64)
    config = Config(engine=EngineConfig(device="cpu", threads=1))
    truth = np.stack([specimen(drift=0.1 * number) for number in range(64)]) + CAMERA.offset
    reconstruct_file(run, folder / "whole.h5", config=config)

    def volumes(path: Path) -> np.ndarray:
        with open_run(path) as opened:
            return np.asarray(opened.volume[:], np.float64)

    def error(found: np.ndarray) -> float:
        return round(float(np.sqrt(np.mean((found - truth) ** 2))), 3)

    whole = volumes(folder / "whole.h5")
    rows = []
    for sweeps in (4, 8, 16, 32):
        work, output = Work(config, cut=32, warm_up=sweeps), folder / f"cut{sweeps}.h5"
        if failed := work_through_here(plan_pieces(run, output, work)[0], work).failed:
            raise SystemExit(str(failed))
        apart = np.abs(volumes(output) - whole)
        rows.append(
            {
                "warm_up": sweeps,
                "mean_counts": round(float(apart.mean()), 3),
                "rms_counts": round(float(np.sqrt((apart**2).mean())), 3),
                "largest_counts": round(float(apart.max()), 1),
                "rms_error_to_truth": error(volumes(output)),
            }
        )
        print(rows[-1], flush=True)
    return {
        "sweeps": 64,
        "sweeps_of_a_piece": 32,
        "rms_error_to_truth_whole": error(whole),
        "standard_deviation_of_the_volumes": round(float(whole.std()), 1),
        "by_warm_up": rows,
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    part.__name__: part for part in (memory, warm_up, speed, overhead, killed, scheduler)
}


def main() -> None:
    """Measure parts and write them into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    for name in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for below in ("several", "20", "2000"):
                (Path(folder) / below).mkdir()
            try:
                measured = PARTS[name](Path(folder))
            except Exception as error:
                print(name, repr(error), flush=True)
                continue
        print(name, measured, flush=True)
        found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        found |= {name: measured, "machine": machine()}
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
