"""What a session learns: a still specimen, one that is active, and one that drifts, sweep by sweep.

  python benchmarks/session.py --volumes FOLDER [--only A,B] [--crop 48]

For each volume: PSNR of each sweep with `engine.memory` "session" and "sweep", golden offsets, noise of 0.01
that nobody declares; and for five compact spots (sigma 2.5 voxels) that brighten by 20 to 100 % after eight
quiet sweeps, correlation and slope of their ΔF/F against the truth from sweep 5 on, and the standard
deviation of ΔF/F in spots that keep still, for linear interpolation, Tikhonov, the INR and mdd. Writes
benchmarks/results/session.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
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
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine
from microdiffusion.files import open_volume, volume_paths
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.metrics import psnr_per_slice
from microdiffusion.optics import sweep_offset, sweep_positions

ROOT = Path(__file__).resolve().parents[1]
LENGTH, NOISE, SWEEPS, QUIET, HELD_OUT_EVERY = 6.0, 0.01, 16, 8, 4
Volume = NDArray[np.float32]
VOLUMES = "vessels_octa,zebrafish_brain_1_pre,dendrite_deepd3,axons_trailmap_b,cells_bigstream_high"
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "tikhonov": {"method": "tikhonov"},
    "inr, sweep": {"method": "inr", "memory": "sweep"},
    "mdd, sweep": {"method": "mdd", "memory": "sweep"},
    "inr, session": {"method": "inr"},
    "mdd, session": {"method": "mdd"},
}


def read(path: Path, crop: int) -> Volume:
    """Return the middle of a volume, percentiles 1 and 99.9 at 0 and 1."""
    with open_volume(path) as source:
        volume = np.asarray(source.volume(0), dtype=np.float32)
    begin = [max(0, (edge - crop) // 2) for edge in volume.shape]
    volume = volume[tuple(slice(at, at + crop) for at in begin)]
    low, high = np.percentile(volume, (1, 99.9))
    return np.clip((volume - low) / (high - low), 0, 1).astype(np.float32)


def reconstructed(
    truth: Callable[[int], Volume], step: float, settings: dict[str, Any], engine: Engine
) -> list[Volume]:
    """Return the volume of each sweep."""
    shape = truth(0).shape
    header = RunHeader(
        run_id="0" * 32,
        shape=(shape[0], shape[1], shape[2]),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=LENGTH,
        dtype="float32",
    )
    config = EngineConfig.model_validate({"device": "cpu", "threads": 1, **settings})
    reconstructor = Reconstructor(header, config, engine)
    rng, volumes = np.random.default_rng(1), []
    for number in range(SWEEPS):
        z_um = sweep_positions(
            length_um=LENGTH,
            step_um=step,
            z0_um=0.0,
            voxel_z_um=1.0,
            shape_z=shape[0],
            offset_um=sweep_offset(number, "golden") * step,
        )
        pair = number * 7 % (len(z_um) - 1)
        judge = [z_um[pair : pair + 2].mean()] if number % HELD_OUT_EVERY == 0 else []
        stage = StagePositions.along_z([*z_um, *judge])
        light = np.tensordot(header.operator_at(stage), truth(number), 1)
        images = (light + NOISE * rng.standard_normal(light.shape)).astype(np.float32)
        many = len(z_um)
        sweep = Sweep(number, 0, 0, stage[:many], images[:many], stage[many:], images[many:])
        volumes.append(reconstructor.reconstruct(sweep).volume)
    return volumes


class Activity:
    """Five spots that brighten, and others that keep still."""

    def __init__(self, structure: Volume, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        smooth = ndimage.gaussian_filter(structure, 1.5)
        peaks = (ndimage.maximum_filter(smooth, 5) == smooth) & (smooth > np.quantile(smooth, 0.9))
        inside = np.zeros(structure.shape, dtype=bool)
        inside[8:-8, 8:-8, 8:-8] = True
        centres: list[NDArray[np.int64]] = []
        for centre in rng.permutation(np.argwhere(peaks & inside)):
            if all(np.linalg.norm(centre - other) > 9 for other in centres):
                centres.append(centre)
        self._structure = structure
        self._active, still = centres[:5], centres[5:20]
        grid = np.indices(structure.shape)
        self._far = [((grid - c[:, None, None, None]) ** 2).sum(0) for c in self._active]
        self._balls = [far <= 2.5**2 for far in self._far]
        self._still = [((grid - c[:, None, None, None]) ** 2).sum(0) <= 2.5**2 for c in still]
        self._course = np.zeros((SWEEPS, len(self._active)))
        for number in range(len(self._active)):
            begin, peak, lasting = QUIET + rng.integers(0, 3), rng.uniform(0.2, 1.0), rng.uniform(1.5, 3)
            for onset, height in ((begin, peak), (begin + rng.integers(4, 6), rng.uniform(0.5, 1) * peak)):
                after = np.arange(SWEEPS) - onset
                self._course[:, number] += np.where(after >= 0, height * np.exp(-after / lasting), 0)

    def truth(self, number: int) -> Volume:
        """Return the specimen at a sweep."""
        bright = sum(
            height * np.exp(-far / (2 * 2.5**2))
            for height, far in zip(self._course[number], self._far, strict=True)
        )
        return (self._structure * (1 + bright)).astype(np.float32)

    def scores(self, volumes: list[Volume]) -> dict[str, float]:
        """Return correlation, slope and false activity of ΔF/F, from sweep 5 on."""
        truths = [self.truth(number) for number in range(SWEEPS)]
        pairs = [(_dff(truths, ball), _dff(volumes, ball)) for ball in self._balls]
        false = [_dff(volumes, ball).std() for ball in self._still]
        return {
            "spots": len(pairs),
            "correlation": round(float(np.mean([np.corrcoef(pair)[0, 1] for pair in pairs])), 3),
            "slope": round(float(np.mean([a @ b / (a @ a) for a, b in pairs])), 3),
            "false": round(float(np.mean(false)), 4) if false else float("nan"),
        }


def _dff(volumes: list[Volume], ball: NDArray[np.bool_]) -> NDArray[np.float64]:
    light = np.array([float(volume[ball].mean()) for volume in volumes])
    return np.asarray(light / light[4:QUIET].mean() - 1)[4:]


def drifting(structure: Volume, by: float) -> Callable[[int], Volume]:
    """Return a specimen that goes so many voxels a sweep along z and y."""
    return lambda number: ndimage.shift(structure, (by * number, by * number, 0), order=1, mode="nearest")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--only", default=VOLUMES)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "session.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = open_engine(EngineConfig(device="cpu", threads=1))
    plain = open_engine(EngineConfig(device="cpu", threads=1, method="inr"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows: list[dict[str, Any]] = []
    for path in volume_paths(arguments.volumes):
        if path.stem not in arguments.only.split(","):
            continue
        structure = read(path, arguments.crop)
        activity = Activity(structure)
        for step in (6.0, 8.0):
            for name, settings in METHODS.items():
                used = engine if settings["method"] == "mdd" else plain
                row: dict[str, Any] = {"volume": path.stem, "step": step, "method": name}
                row |= activity.scores(reconstructed(activity.truth, step, settings, used))
                if step == 8.0 and name in ("mdd, sweep", "mdd, session", "inr, session"):
                    for course, by in (("still", 0.0), ("drift", 0.1)):
                        truth = drifting(structure, by)
                        volumes = reconstructed(truth, step, settings, used)
                        row[course] = [
                            round(float(np.mean(psnr_per_slice(volume, truth(number)))), 2)
                            for number, volume in enumerate(volumes)
                        ]
                rows.append(row)
                print(row, flush=True)
        found = {
            "machine": about(),
            "version": microdiffusion.__version__,
            "commit": commit,
            "crop": arguments.crop,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
