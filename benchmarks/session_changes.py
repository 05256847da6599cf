"""Does a session's memory ever cost? Seeded sessions in which the specimen changes, with and without it.

  python benchmarks/session_changes.py --volumes FOLDER [--sessions 200] [--seed 0]

Each session takes a crop of 48 voxels of a volume, a step, a noise and a change from its seed: the specimen
keeps still, drifts, jumps by 5 voxels, half of it flows, another specimen comes, a bubble passes, a part
blinks, all of it bleaches. The INR's volume with `engine.memory` "session" is held against that with "sweep",
sweep by sweep (PSNR over the slices that were seen). Writes benchmarks/results/session_changes.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

import microdiffusion
from microdiffusion.config import EngineConfig
from microdiffusion.daemon.system import about
from microdiffusion.engines import evaluation
from microdiffusion.engines.evaluation.protocol import expose, make_header, slab_centres
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.files import open_volume, volume_paths
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.metrics import psnr_per_slice
from microdiffusion.optics import sweep_offset

ROOT = Path(__file__).resolve().parents[1]
EDGE, SWEEPS, HELD_OUT_EVERY = 48, 12, 4
Volume = NDArray[np.float32]
Course = Callable[[int], Volume]


def crop(volume: Volume, rng: np.random.Generator) -> Volume:
    """Return one of the brighter of eight random crops, percentiles 1 and 99.9 at 0 and 1."""
    tried = []
    for _ in range(8):
        at = [int(rng.integers(0, max(1, edge - EDGE + 1))) for edge in volume.shape]
        tried.append(volume[tuple(slice(begin, begin + EDGE) for begin in at)])
    part = sorted(tried, key=lambda each: float(each.std()))[int(rng.integers(4, 8))]
    low, high = np.percentile(part, (1, 99.9))
    return np.clip((part - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def moved(volume: Volume, by: tuple[float, ...]) -> Volume:
    """Return a volume that is moved by so many voxels."""
    return np.clip(ndimage.shift(volume, by, order=3, mode="nearest"), 0, None).astype(np.float32)


def still(structure: Volume, _: Volume, __: np.random.Generator) -> Course:
    """Keep it as it is."""
    return lambda number: structure


def drifting(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Drift by up to 0.3 voxel a sweep in each direction."""
    rate = rng.uniform(-0.3, 0.3, 3)
    return lambda number: moved(structure, tuple(rate * number))


def jumping(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Jump by 5 voxels."""
    when, by = int(rng.integers(3, 9)), np.zeros(3)
    by[int(rng.integers(0, 3))] = 5.0
    return lambda number: moved(structure, tuple(by)) if number >= when else structure


def flowing(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Let half of it flow by up to 3 voxels a sweep, from a sweep on."""
    rate, when, half = rng.uniform(0.5, 3), int(rng.integers(0, 6)), EDGE // 2

    def at(number: int) -> Volume:
        volume = structure.copy()
        by = round(rate * max(0, number - when))
        volume[:, half:] = np.roll(volume[:, half:], by, axis=2)
        return volume

    return at


def another(structure: Volume, other: Volume, rng: np.random.Generator) -> Course:
    """Put another specimen in its place."""
    when = int(rng.integers(3, 9))
    return lambda number: other if number >= when else structure


def bubble(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Pass a dark ball through it."""
    grid, radius = np.indices(structure.shape), rng.uniform(5, 12)
    start, end = (np.array([rng.uniform(10, 30), rng.uniform(5, 40), x]) for x in (-10.0, EDGE + 10.0))
    first = int(rng.integers(2, 6))

    def at(number: int) -> Volume:
        along = (number - first) / 5
        if not 0 <= along <= 1:
            return structure
        centre = (start + along * (end - start))[:, None, None, None]
        inside = ((grid - centre) ** 2).sum(0) < radius**2
        return np.where(inside, np.float32(0), structure)

    return at


def blinking(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Let compact places brighten by up to threefold in sweeps of their own."""
    places = np.argwhere(structure > np.quantile(structure, 0.9))
    chosen = places[rng.integers(0, len(places), 8)]
    grid = np.indices(structure.shape)
    spots = [np.exp(-((grid - c[:, None, None, None]) ** 2).sum(0) / (2 * 2.5**2)) for c in chosen]
    rise = rng.uniform(0.2, 2.0, len(spots)) * (rng.random((SWEEPS, len(spots))) < 0.3)
    return lambda number: (structure * (1 + np.tensordot(rise[number], spots, 1))).astype(np.float32)


def bleaching(structure: Volume, _: Volume, rng: np.random.Generator) -> Course:
    """Bleach all of it by up to 8 % a sweep."""
    rate = rng.uniform(0.01, 0.08)
    return lambda number: (structure * (1 - rate) ** number).astype(np.float32)


COURSES = (still, drifting, jumping, flowing, another, bubble, blinking, bleaching)


def scores(course: Course, protocol: evaluation.Protocol, seed: int, memory: str) -> list[float]:
    """Return the PSNR (dB) of each sweep."""
    config = EngineConfig.model_validate({"device": "cpu", "threads": 1, "method": "inr", "memory": memory})
    header = make_header(course(0).shape, protocol, len(course(0)))
    reconstructor = Reconstructor(header, config, open_engine(config))
    rng, result = np.random.default_rng(seed), []
    for number in range(SWEEPS):
        offset = sweep_offset(number, "golden") * protocol.step
        z_um = slab_centres(dataclasses.replace(protocol, offset=offset), EDGE)
        pair = number * 7 % (z_um.size - 1)
        judge = [z_um[pair : pair + 2].mean()] if number % HELD_OUT_EVERY == 0 else []
        stage = StagePositions.along_z([*z_um, *judge])
        truth = course(number)
        images, _ = expose(truth, header.operator_at(stage), protocol, rng)
        many = z_um.size
        sweep = Sweep(number, 0, 0, stage[:many], images[:many], stage[many:], images[many:])
        volume = reconstructor.reconstruct(sweep).volume
        result.append(float(np.mean(psnr_per_slice(volume, truth))))
    return result


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "session_changes.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    volumes: dict[str, Volume] = {}
    for path in volume_paths(arguments.volumes):
        with open_volume(path) as source:
            volume = np.asarray(source.volume(0), dtype=np.float32)
        if min(volume.shape) >= EDGE:
            volumes[path.stem] = volume
    names, rows, began = sorted(volumes), [], time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.sessions):
        rng = np.random.default_rng(seed)
        name, other = (names[int(rng.integers(0, len(names)))] for _ in range(2))
        change = COURSES[seed % len(COURSES)]
        step, noise = float(rng.choice([6.0, 8.0])), float(rng.choice([0.005, 0.01, 0.02]))
        course = change(crop(volumes[name], rng), crop(volumes[other], rng), rng)
        protocol = evaluation.Protocol(crop=None, noise=noise, step=step)
        with_memory, without = (scores(course, protocol, seed, memory) for memory in ("session", "sweep"))
        gain = np.subtract(with_memory, without)
        rows.append(
            {"seed": seed, "volume": name, "change": change.__name__, "step": step, "noise": noise}
            | {"session": np.round(with_memory, 3).tolist(), "sweep": np.round(without, 3).tolist()}
        )
        print(
            f"{seed:4d} {change.__name__:9s} {name[:16]:16s} step {step:.0f} noise {noise:.3f} "
            f"mean {gain.mean():+.2f} last {gain[-1]:+.2f} worst {gain.min():+.2f} dB "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    summary: dict[str, Any] = {}
    for each in COURSES:
        gains = [np.subtract(row["session"], row["sweep"]) for row in rows if row["change"] == each.__name__]
        if gains:
            worst = np.array([gain.min() for gain in gains])
            summary[each.__name__] = {
                "sessions": len(gains),
                "mean_gain_db": round(float(np.mean(gains)), 3),
                "worst_sweep_db": round(float(worst.min()), 3),
                "sessions_below_0.2_db": int((worst < -0.2).sum()),
                "sweeps_below_0.2_db": int((np.array(gains) < -0.2).sum()),
            }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    machine = about() | {"version": microdiffusion.__version__, "commit": commit}
    evaluation.write_json(arguments.json, {"machine": machine, "summary": summary, "rows": rows})
    for change_name, figures in summary.items():
        print(change_name, figures)


if __name__ == "__main__":
    main()
