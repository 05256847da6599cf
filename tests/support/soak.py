"""A long run of the demo, watched: memory of each process, latencies, losses.

`soak` plays it: `mdd serve --demo --headless`, a sweep each `interval_s`. Every few seconds the memory of
each process is read, and what the status says; at the end the run file is verified, and its latencies are
read, volume by volume. Slopes are least squares over everything after a warm-up of two minutes (two thirds
of a shorter run). The tests soak for two minutes, `benchmarks/soak.py` for an hour.
"""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from microdiffusion import open_run
from support.fault_stage import first_files
from support.mdd_process import Mdd, free_port

WARM_UP_S = 120.0
NAMES = {"libtorch": "engine", "pymmcore": "driver", "resource_tracker": "tracker"}


def soak(folder: Path, minutes: float, interval_s: float, every_s: float = 10.0) -> dict[str, Any]:
    """Run the demo and return what was seen.

    Parameters
    ----------
    folder
        For the run files; new.
    every_s
        From one look at the processes to the next.
    """
    folder.mkdir(parents=True)
    pairs = [f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("data", "status", "control")]
    pairs += [f"acquisition.sweep_interval_s={interval_s:g}", f"wire.journal={folder / 'journal'}"]
    settings = [word for pair in pairs for word in ("--set", pair)]
    memory: dict[str, list[tuple[float, float]]] = {}
    with Mdd("serve", "--demo", "--headless", "--output", folder, *settings, folder=folder) as mdd:
        mdd.wait_for(lambda: bool(first_files(folder)))
        begin_s = time.monotonic()
        daemon = psutil.Process(mdd.process.pid)
        names: dict[int, str] = {daemon.pid: "daemon"}
        while (now_s := time.monotonic() - begin_s) < 60 * minutes:
            if not mdd.look():
                break
            for process in [daemon, *mdd.family]:
                with contextlib.suppress(psutil.Error):
                    name = names.setdefault(process.pid, _name(process))
                    memory.setdefault(name, []).append((now_s / 60, process.memory_info().rss / 1e6))
            time.sleep(max(0.0, min(every_s, begin_s + 60 * minutes - time.monotonic())))
        alive = mdd.look()
        stop_s = time.monotonic()
        mdd.send(signal.SIGTERM)
        code = mdd.finish(120)
        stop_s = time.monotonic() - stop_s
        last_words = mdd.err[-600:]
    (path,) = first_files(folder)
    with open_run(path) as run:
        report = _of_run(run, min(WARM_UP_S, 40 * minutes))
    with Mdd("verify", path, folder=folder) as mdd:
        report["verified"] = mdd.finish(1200) == 0
        report["verify_said"] = "" if report["verified"] else (mdd.out + mdd.err)[-600:]
    warm_up_min = min(WARM_UP_S, 40 * minutes) / 60
    report["memory"] = {name: _memory(samples, warm_up_min) for name, samples in sorted(memory.items())}
    report |= {"minutes": minutes, "interval_s": interval_s, "alive_to_the_end": alive, "exit": code}
    report["stop_s"] = round(stop_s, 1)
    report["well"] = alive and code == 0 and report["verified"] and report["closed"] and not report["lost"]
    if not report["well"]:
        report["last_words"] = last_words
    return report


def _name(process: psutil.Process) -> str:
    """Return which of the daemon's processes this is."""
    command = " ".join(process.cmdline())
    if "resource_tracker" in command:
        return "tracker"
    with contextlib.suppress(OSError):
        paths = {area.path for area in process.memory_maps()}
        for library, name in NAMES.items():
            if any(library in path for path in paths):
                return name
    return "starting"


def _of_run(run: Any, warm_up_s: float) -> dict[str, Any]:
    """Return counts, and the latencies of a run's volumes."""
    latency_s, when_s = run.values("latency_s"), run.times
    status = run.status
    written = np.isfinite(latency_s) & np.isfinite(when_s) & (status == 1)
    # Those that waited in the run file for a free engine are not the live view's latency.
    with contextlib.suppress(KeyError):
        written &= run.values("later") == 0
    live = written & (when_s > warm_up_s)
    ledger = asdict(run.ledger)
    slope = _slope(when_s[live] / 60, latency_s[live])
    return {
        "sweeps": int((run.values("frames_received") > 0).sum()),
        "volumes": int((status == 1).sum()),
        "not_written": {str(code): int((status == code).sum()) for code in (2, 3, 4)},
        "frames": int(np.isfinite(run.values("frames/z_um")).sum()),
        "ledger": ledger,
        "lost": ledger["announced"] - ledger["received"],
        "closed": bool(run.closed),
        "latency_s": {
            "live_volumes": int(live.sum()),
            "p50": _round(np.percentile(latency_s[live], 50)) if live.any() else None,
            "p95": _round(np.percentile(latency_s[live], 95)) if live.any() else None,
            "most": _round(latency_s[live].max()) if live.any() else None,
            "slope_ms_per_min": slope and round(slope[0] * 1e3, 3),
            "slope_error_ms_per_min": slope and round(slope[1] * 1e3, 3),
        },
    }


def _memory(samples: list[tuple[float, float]], warm_up_min: float) -> dict[str, Any]:
    minutes, megabytes = np.array(samples).T
    late = minutes > warm_up_min
    slope = _slope(minutes[late], megabytes[late])
    return {
        "first_mb": _round(megabytes[0]),
        "last_mb": _round(megabytes[-1]),
        "most_mb": _round(megabytes.max()),
        "slope_mb_per_min": slope and round(slope[0], 3),
        "slope_error_mb_per_min": slope and round(slope[1], 3),
    }


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Return the least-squares slope and its standard error; None where there are too few points."""
    if len(x) < 4:
        return None
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _round(value: Any) -> float:
    return round(float(value), 3)
