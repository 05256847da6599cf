"""What 1, 10 and 1,000 microscopes need, from measured costs; and where the scheduler saturates, simulated.

    python benchmarks/capacity.py

Costs come from performance.json, run_file.json and load.json (two cores of one processor: a *unit*). Prices
are assumptions: change them above `main`. The simulation asks the daemon's own placement and scheduler; only
the engine's work is replaced by its measured time.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from measuring import ROOT, machine

from microdiffusion.daemon.engine.placement import SessionName, place
from microdiffusion.daemon.engine.scheduler import Scheduler
from microdiffusion.daemon.engine.sinks import SweepJob

RESULTS = ROOT / "benchmarks" / "results"
# Price lists differ by a factor of three, and change: these are round figures to replace.
UNIT_PER_HOUR, GB_MONTH = 0.10, 0.02  # two cores with 8 GB; object storage
FILL = 0.7  # of a unit: beyond it waiting grows, as the simulation shows
MICROSCOPES = {  # size: seconds between sweeps
    "64x128x128": 0.5,
    "64x256x256": 2.0,
    "64x512x512": 10.0,
}
SESSIONS, SIMULATED_S, JITTER = 1000, 60.0, 0.2


def read(name: str) -> dict[str, Any]:
    """Return one of the results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def costs() -> dict[str, dict[str, float]]:
    """Return what a microscope of each size takes: unit-seconds a second, and bytes."""
    sizes = read("performance")["sizes"]["sizes"]
    per_voxel = read("run_file")["rate"]["bytes_of_a_volume"] / (
        64 * 512 * 512
    )  # pyramid and frames included
    found = {}
    for size, interval_s in MICROSCOPES.items():
        z, y, x = map(int, size.split("x"))
        frames = sizes[size]["projections"] * y * x * 2
        found[size] = {
            "interval_s": interval_s,
            "volume_s": round(sizes[size]["volume_s"], 3),
            "load": round(sizes[size]["volume_s"] / interval_s, 3),
            "network_mb_s": round(frames / interval_s / 1e6, 2),
            "disk_mb_s": round(per_voxel * z * y * x / interval_s / 1e6, 2),
        }
    return found


def plan(cost: dict[str, float], microscopes: int) -> dict[str, float]:
    """Return what microscopes of one kind need."""
    units = math.ceil(microscopes * cost["load"] / FILL)
    disk, network = microscopes * cost["disk_mb_s"], microscopes * cost["network_mb_s"]
    tb_day = disk * 86400 / 1e6
    return {
        "microscopes": microscopes,
        "units": units,
        "disk_mb_s": round(disk, 1),
        "disks": math.ceil(disk / (FILL * read("run_file")["rate"]["run_mb_s"])),
        "network_gbit_s": round(network * 8 / 1000, 2),
        "receivers": math.ceil(network / (FILL * read("load")["rate"]["receive_path"]["mb_per_s"])),
        "tb_per_day": round(tb_day, 2),
        "units_per_hour": round(units * UNIT_PER_HOUR, 2),
        "keeping_a_day_of_data_per_month": round(tb_day * 1000 * GB_MONTH, 0),
    }


def sessions(count: int, seed: int = 0) -> tuple[dict[SessionName, float], dict[SessionName, float]]:
    """Return sessions of the three kinds: their loads, and seconds between sweeps; each is its own run."""
    draw, kinds = np.random.default_rng(seed), list(costs().values())
    loads, intervals = {}, {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        session = SessionName(f"{number:032x}", 0, 0)
        loads[session] = kind["load"] * float(draw.lognormal(sigma=0.3))
        intervals[session] = kind["interval_s"]
    return loads, intervals


def uneven(loads: dict[SessionName, float], at: dict[SessionName, int], devices: Sequence[int]) -> float:
    """Return the largest load over the mean, less one."""
    found = dict.fromkeys(devices, 0.0)
    for session, device in at.items():
        found[device] += loads[session]
    return max(found.values()) / (sum(found.values()) / len(found)) - 1


def placement(count: int) -> dict[str, Any]:
    """Measure the placement of a thousand sessions, and of what a lost device leaves."""
    loads, _ = sessions(SESSIONS)
    devices = range(count)
    began_s = time.perf_counter()
    at = place(loads, devices)
    took_s = time.perf_counter() - began_s
    fewer = devices[1:]
    began_s = time.perf_counter()
    after = place(loads, fewer, at)
    lost_s = time.perf_counter() - began_s
    moved = sum(after[session] != device for session, device in at.items())
    return {
        "sessions": SESSIONS,
        "devices": len(devices),
        "seconds": round(took_s, 4),
        "above_even": round(uneven(loads, at, devices), 4),
        "a_device_lost": {
            "seconds": round(lost_s, 4),
            "had_sessions": sum(device == 0 for device in at.values()),
            "moved": moved,
            "above_even": round(uneven(loads, after, fewer), 4),
        },
        "bars": {"seconds": 1.0, "above_even": 0.1},
    }


def simulate(fill: float, speed: float) -> dict[str, float]:
    """Return what becomes of the sweeps of a thousand sessions where devices are this full.

    Each device has a scheduler of its own; sweeps come in their intervals from a random moment on, and take
    their measured time over `speed`, give or take a fifth. Policy "archive": what is put off waits until
    there is time.
    """
    loads, intervals = sessions(SESSIONS)
    loads = {session: load / speed for session, load in loads.items()}
    devices = range(max(round(sum(loads.values()) / fill), 1))
    at = place(loads, devices)
    draw = np.random.default_rng(1)
    came = put_off = 0
    waited: list[float] = []
    for device in devices:
        own = [session for session, where in at.items() if where == device]
        scheduler = Scheduler(policy="archive", backlog=2, most_bytes=1 << 40)
        scheduler.set_serving(True, 0.0)
        arrivals: list[tuple[float, SessionName, int]] = []
        for session in own:
            scheduler.begin(session.run_id)
            begins = float(draw.uniform(0, intervals[session]))
            arrivals += [
                (begins + number * intervals[session], session, number)
                for number in range(math.ceil((SIMULATED_S - begins) / intervals[session]))
            ]
        heapq.heapify(arrivals)
        now_s = 0.0
        while arrivals:
            while arrivals and arrivals[0][0] <= now_s:
                when_s, session, number = heapq.heappop(arrivals)
                job = SweepJob(session.run_id, number, 0, 0, received_s=when_s, queued_s=when_s)
                came += 1
                put_off += len(scheduler.add(job, when_s))
            job = scheduler.next(now_s)
            if job is None:
                now_s = arrivals[0][0] if arrivals else now_s
                continue
            if job.lane == "sweep":
                waited.append((now_s - job.received_s) / intervals[SessionName(job.run_id, 0, 0)])
            session = SessionName(job.run_id, 0, 0)
            taken_s = loads[session] * intervals[session] * float(draw.uniform(1 - JITTER, 1 + JITTER))
            scheduler.used(job, taken_s)
            now_s += taken_s
    return {
        "fill": fill,
        "units_of_a_device": speed,
        "devices": len(devices),
        "sessions_of_a_device": round(len(loads) / len(devices), 1),
        "sweeps": came,
        "put_off_share": round(put_off / came, 4),
        "median_wait_of_interval": round(float(np.median(waited)), 3),
        "p99_wait_of_interval": round(float(np.percentile(waited, 99)), 3),
    }


def one_thread() -> dict[str, float]:
    """Measure the daemon's own part: which of a thousand waiting sessions is next, for a device."""
    loads, _ = sessions(SESSIONS)
    at = place(loads, range(300))
    scheduler = Scheduler(policy="archive", backlog=2, most_bytes=1 << 40)
    scheduler.set_serving(True, 0.0)
    for session in loads:
        scheduler.begin(session.run_id)
        for number in range(2):
            scheduler.add(SweepJob(session.run_id, number, 0, 0), 0.0)
    spent = []
    for turn in range(500):
        device = turn % 300
        began_s = time.perf_counter()
        job = scheduler.next(0.0, (), lambda *name, device=device: at[SessionName(*name)] == device)
        spent.append(time.perf_counter() - began_s)
        if job is not None:
            scheduler.used(job, 0.1)
    median = float(np.median(spent))
    return {"next_ms": round(1000 * median, 3), "sweeps_per_s_at_most": round(1 / median, 0)}


def main() -> None:
    """Make the plan, simulate, and write the result."""
    each = costs()
    result = {
        "assumptions": {
            "unit": "two cores of the processor below, 8 GB",
            "unit_per_hour": UNIT_PER_HOUR,
            "gb_month": GB_MONTH,
            "fill": FILL,
            "seconds_between_sweeps": MICROSCOPES,
        },
        "costs": each,
        "plan": {size: [plan(cost, count) for count in (1, 10, 1000)] for size, cost in each.items()},
        "placement": [placement(count) for count in (8, 64, 128, 256, 416)],
        "saturation": [
            simulate(fill, speed) for speed in (1.0, 10.0) for fill in (0.5, 0.7, 0.9, 1.0, 1.1, 1.3)
        ],
        "one_thread": one_thread(),
        "machine": machine(),
    }
    text = json.dumps(result, indent=2)
    (RESULTS / "capacity.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
