"""Does a session's memory ever cost? Seeded sessions in which the specimen changes, with and without it.

  python benchmarks/session_changes.py --volumes FOLDER [--sessions 200] [--seed 0]

Each session takes a crop of 48 voxels of a volume, a step, a noise and a change from its seed: the specimen
keeps still, drifts, jumps by 5 voxels, half of it flows, another specimen comes, a bubble passes, a part
blinks, all of it bleaches. The INR's volume with `engine.memory` "session" is held against that with "sweep",
sweep by sweep (PSNR over the slices that were seen). Writes benchmarks/results/session_changes.json.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

import microdiffusion
from microdiffusion.config import EngineConfig
from microdiffusion.daemon.system import about
from microdiffusion.engines import evaluation
from microdiffusion.engines.evaluation.courses import Still
from microdiffusion.engines.evaluation.sessions import session_sweeps
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.files import open_volume, volume_paths
from microdiffusion.metrics import psnr_per_slice

ROOT = Path(__file__).resolve().parents[1]
EDGE, SWEEPS = 48, 12
Volume = NDArray[np.float32]


def crop(volume: Volume, rng: np.random.Generator) -> Volume:
    """Return one of the brighter half of eight random crops, normalised."""
    tried = []
    for _ in range(8):
        at = [int(rng.integers(0, edge - EDGE + 1)) for edge in volume.shape]
        tried.append(volume[tuple(slice(begin, begin + EDGE) for begin in at)])
    return evaluation.normalise(sorted(tried, key=np.std)[int(rng.integers(4, 8))], None)


class Changing(Still):
    """A specimen that keeps still; its subclasses change.

    Parameters
    ----------
    structure, other : (Z, Y, X)
        The specimen, and another one.
    rng : Generator
        Draws what happens, and when.
    """

    name: ClassVar[str] = "still"

    def __init__(self, structure: Volume, other: Volume, rng: np.random.Generator) -> None:
        super().__init__(structure, SWEEPS)
        self._other, self._rng = other, rng
        self._when = int(rng.integers(3, 9))
        self._draw()

    def _draw(self) -> None: ...

    def _moved(self, by: NDArray[np.float64]) -> Volume:
        return np.clip(ndimage.shift(self.structure, by, order=3, mode="nearest"), 0, None).astype(np.float32)


class Drifting(Changing):
    """Drifts by up to 0.3 voxel a sweep in each direction."""

    name = "drifting"

    def _draw(self) -> None:
        self._rate = self._rng.uniform(-0.3, 0.3, 3)

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        return self._moved(self._rate * sweep)


class Jumping(Changing):
    """Jumps by 5 voxels."""

    name = "jumping"

    def _draw(self) -> None:
        self._by = np.zeros(3)
        self._by[int(self._rng.integers(0, 3))] = 5.0

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        return self._moved(self._by) if sweep >= self._when else self.structure


class Flowing(Changing):
    """Half of it flows by up to 3 voxels a sweep, from a sweep on."""

    name = "flowing"

    def _draw(self) -> None:
        self._rate, self._when = self._rng.uniform(0.5, 3), int(self._rng.integers(0, 6))

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        volume, half = self.structure.copy(), EDGE // 2
        by = round(self._rate * max(0, sweep - self._when))
        volume[:, half:] = np.roll(volume[:, half:], by, axis=2)
        return volume


class Another(Changing):
    """Another specimen comes."""

    name = "another"

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        return self._other if sweep >= self._when else self.structure


class Bubble(Changing):
    """A dark ball passes within five sweeps."""

    name = "bubble"

    def _draw(self) -> None:
        self._radius = self._rng.uniform(5, 12)
        self._ends = [
            np.array([self._rng.uniform(10, 30), self._rng.uniform(5, 40), x]) for x in (-10.0, EDGE + 10.0)
        ]

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        along = (sweep - self._when) / 5
        centre = self._ends[0] + along * (self._ends[1] - self._ends[0])
        inside = ((np.indices(self.structure.shape) - centre[:, None, None, None]) ** 2).sum(0)
        dark = (inside < self._radius**2) & (0 <= along <= 1)
        return np.where(dark, np.float32(0), self.structure)


class Blinking(Changing):
    """Compact places brighten by up to threefold in sweeps of their own."""

    name = "blinking"

    def _draw(self) -> None:
        places = np.argwhere(self.structure > np.quantile(self.structure, 0.9))
        chosen = places[self._rng.integers(0, len(places), 8)]
        far = [((np.indices(self.structure.shape) - c[:, None, None, None]) ** 2).sum(0) for c in chosen]
        self._spots = np.exp(-np.array(far) / (2 * 2.5**2))
        self._rise = self._rng.uniform(0.2, 2.0, 8) * (self._rng.random((SWEEPS, 8)) < 0.3)

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        bright = np.tensordot(self._rise[sweep], self._spots, 1)
        return np.asarray(self.structure * (1 + bright), np.float32)


class Bleaching(Changing):
    """All of it loses up to 8 % a sweep."""

    name = "bleaching"

    def _draw(self) -> None:
        self._rate = self._rng.uniform(0.01, 0.08)

    def truth(self, sweep: int) -> Volume:
        """Return the specimen at a sweep."""
        return np.asarray(self.structure * (1 - self._rate) ** sweep, np.float32)


COURSES = (Changing, Drifting, Jumping, Flowing, Another, Bubble, Blinking, Bleaching)


def scores(course: Still, protocol: evaluation.Protocol, seed: int, memory: str) -> list[float]:
    """Return the PSNR (dB) of each sweep."""
    header, sweeps = session_sweeps(course, protocol, evaluation.SessionPlan(SWEEPS), seed)
    config = EngineConfig.model_validate({"device": "cpu", "threads": 1, "method": "inr", "memory": memory})
    reconstructor = Reconstructor(header, config, open_engine(config))
    return [
        float(np.mean(psnr_per_slice(reconstructor.reconstruct(sweep).volume, course.truth(sweep.sweep))))
        for sweep in sweeps
    ]


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
        step, noise = float(rng.choice([6.0, 8.0])), float(rng.choice([0.005, 0.01, 0.02]))
        course = COURSES[seed % len(COURSES)](crop(volumes[name], rng), crop(volumes[other], rng), rng)
        protocol = evaluation.Protocol(crop=None, noise=noise, step=step)
        with_memory, without = (scores(course, protocol, seed, memory) for memory in ("session", "sweep"))
        gain = np.subtract(with_memory, without)
        rows.append(
            {"seed": seed, "volume": name, "change": course.name, "step": step, "noise": noise}
            | {"session": np.round(with_memory, 3).tolist(), "sweep": np.round(without, 3).tolist()}
        )
        print(
            f"{seed:4d} {course.name:9s} {name[:16]:16s} step {step:.0f} noise {noise:.3f} "
            f"mean {gain.mean():+.2f} last {gain[-1]:+.2f} worst {gain.min():+.2f} dB "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    summary: dict[str, Any] = {}
    for each in COURSES:
        gains = [np.subtract(row["session"], row["sweep"]) for row in rows if row["change"] == each.name]
        if gains:
            worst = np.array([gain.min() for gain in gains])
            summary[each.name] = {
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
