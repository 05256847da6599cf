"""How well `mdd calibrate` finds what is known: beam and camera over many simulated sets.

python benchmarks/calibration.py --sets 120 --json benchmarks/results/calibration.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from measuring import machine
from support.calibration_scenes import BeadScene, bead_stack, camera_series, layer_stack

from microdiffusion.daemon.calibration.beam import ZStack, measure_beam
from microdiffusion.daemon.calibration.camera import measure_camera
from microdiffusion.errors import MddError


def scene_of(number: int) -> tuple[str, BeadScene, float]:
    """Return the kind of specimen, its scene and the tilt of a layer; everything drawn at random."""
    rng = np.random.default_rng([number, 1])
    length = float(rng.uniform(10, 60))
    step = length / float(rng.uniform(6, 20))
    spot = float(rng.uniform(0.8, 3.0))
    dtype = str(rng.choice(["uint16", "uint16", "float32", "uint8"]))
    eight = dtype == "uint8"
    scene = BeadScene(
        profile=("box", "gaussian", "bessel")[number % 3],
        length_um=length,
        step_um=step,
        range_um=float(rng.uniform(2.6, 4.5)) * length,
        beads=int(np.exp(rng.uniform(np.log(8), np.log(90)))),
        size=(int(rng.integers(96, 161)), int(rng.integers(96, 161))),
        spot=(spot, spot * float(rng.choice([1.0, 1.0, 1.5]))),
        photons=float(np.exp(rng.uniform(np.log(60), np.log(600)))),
        spread=float(rng.uniform(0.1, 0.5)),
        background=float(rng.uniform(2, 100)),
        gradient=float(rng.uniform(0, 1)),
        bleaching=float(rng.choice([0.0, 0.1, 0.2])),
        jitter=float(rng.choice([0.0, 0.1, 0.2])),
        drift_px=float(rng.choice([0.0, 0.0, 2.0])),
        hot=float(rng.choice([0.0, 0.001, 0.003])),
        offset=5.0 if eight else 100.0,
        gain=0.3 if eight else float(rng.uniform(0.2, 2.0)),
        read_noise=0.8 if eight else float(rng.uniform(1, 4)),
        dtype=dtype,
        descending=bool(rng.integers(2)),
        shuffled=bool(rng.integers(4) == 0),
        seed=number,
    )
    layer = number % 6 == 5
    return ("layer" if layer else "beads"), scene, float(rng.uniform(0, 0.3)) * length


def judge_beam(number: int) -> dict[str, object]:
    """Return how far the measured beam is from the true one."""
    kind, scene, tilt_um = scene_of(number)
    pixels, z_um, profile = layer_stack(scene, tilt_um) if kind == "layer" else bead_stack(scene)
    full = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else None
    row: dict[str, object] = {
        "number": number, "kind": kind, "profile": scene.profile, "beads": scene.beads, "dtype": scene.dtype,
        "photons": scene.photons, "samples_per_length": scene.length_um / scene.step_um,
        "bleaching": scene.bleaching, "jitter": scene.jitter,
    }  # fmt: skip
    began_s = time.perf_counter()
    try:
        found = measure_beam(ZStack(pixels.astype(np.float32), z_um, full, f"set {number}"), kind)
    except MddError as error:
        return row | {"refused": str(error)}
    u = np.linspace(-2.5, 2.5, 4001) * scene.length_um
    true = profile(u)
    above = u[true >= 0.5 * true.max()]
    length = float(above[-1] - above[0])
    mine = np.interp(u, found.z_um, found.weights, left=0.0, right=0.0)
    shifts = np.linspace(-0.4, 0.4, 161) * scene.length_um
    low, high = found.length_interval_um
    return row | {
        "length_error": found.length_um / length - 1,
        "correlation": max(float(np.corrcoef(mine, profile(u + shift))[0, 1]) for shift in shifts),
        "inside_interval": bool(low <= length <= high),
        "half_interval": 0.5 * (high - low) / length,
        "used": found.figures["beads"],
        "found": found.figures["found"],
        "warnings": list(found.warnings),
        "seconds": time.perf_counter() - began_s,
    }


def judge_camera(number: int) -> dict[str, object]:
    """Return how far the measured camera is from the true one."""
    rng = np.random.default_rng([number, 2])
    gain, read_noise = float(np.exp(rng.uniform(np.log(0.1), np.log(5)))), float(rng.uniform(0.8, 6))
    change = {
        "frames": int(rng.choice([2, 5, 10, 20])),
        "size": (int(rng.integers(64, 129)), int(rng.integers(64, 129))),
        "photons": float(np.exp(rng.uniform(np.log(30), np.log(3000)))),
        "gain": gain,
        "read_noise": read_noise,
        "gradient": float(rng.uniform(0, 1.6)),
        "response": float(rng.choice([0.0, 0.02, 0.1])),
        "lamp_drift": float(rng.choice([0.0, 0.1, 0.4])),
        "flicker": float(rng.choice([0.0, 0.02])),
        "hot": float(rng.choice([0.0, 0.002, 0.01])),
        "bits": int(rng.choice([12, 16])),
    }
    row: dict[str, object] = {"number": number, **change}
    try:
        found = measure_camera(*camera_series(seed=number, **change), full=None)
    except MddError as error:
        return row | {"refused": str(error)}
    low, high = found.gain_interval
    return row | {
        "gain_error": found.gain / gain - 1,
        "half_interval": 0.5 * (high - low) / gain,
        "offset_error": found.offset - 100.0,
        "read_noise_error": found.read_noise / np.hypot(read_noise, 12**-0.5) - 1,
        "inside_interval": bool(low <= gain <= high),
        "warnings": list(found.warnings),
    }


def summary(rows: list[dict[str, object]], name: str) -> dict[str, float]:
    """Return median, 95th percentile and worst of a figure's size."""
    values = np.abs([row[name] for row in rows if name in row])
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "worst": float(values.max()),
    }


def within(row: dict[str, object]) -> bool:
    """Return whether a beam is known as well as it has to be."""
    return abs(row["length_error"]) < 0.05 and row["correlation"] > 0.98  # type: ignore[arg-type,operator]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=120)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.sets)
    beams = []
    for number in numbers:
        beams.append(row := judge_beam(number))
        off = abs(float(row.get("length_error", 1.0)))  # type: ignore[arg-type]
        if off > 0.05 or float(row.get("correlation", 0.0)) < 0.98:  # type: ignore[arg-type]
            print(row, flush=True)
    cameras = [judge_camera(number) for number in numbers]
    judged = [row for row in beams if "refused" not in row]
    taken = [row for row in cameras if "refused" not in row]
    result = {
        "beam": {
            "sets": len(beams),
            "refused": len(beams) - len(judged),
            "length_error": summary(judged, "length_error"),
            "correlation_median": float(np.median([row["correlation"] for row in judged])),
            "correlation_worst": float(min(row["correlation"] for row in judged)),
            "within_bars": sum(within(row) for row in judged),
            "without_warning": sum(not row["warnings"] for row in judged),
            "without_warning_within_bars": sum(not row["warnings"] and within(row) for row in judged),
            "inside_interval": float(np.mean([row["inside_interval"] for row in judged])),
            "half_interval": summary(judged, "half_interval"),
            "seconds_median": float(np.median([row["seconds"] for row in judged])),
        },
        "camera": {
            "sets": len(cameras),
            "refused": len(cameras) - len(taken),
            "gain_error": summary(taken, "gain_error"),
            "offset_error_counts": summary(taken, "offset_error"),
            "read_noise_error": summary(taken, "read_noise_error"),
            "within_bar": sum(abs(row["gain_error"]) < 0.1 for row in taken),
            "inside_interval": float(np.mean([row["inside_interval"] for row in taken])),
            "half_interval": summary(taken, "half_interval"),
            "of_ten_frames_or_more": sum(row["frames"] >= 10 for row in taken),
            "of_those_within_bar": sum(row["frames"] >= 10 and abs(row["gain_error"]) < 0.1 for row in taken),
            "without_warning": sum(not row["warnings"] for row in taken),
            "without_warning_within_bar": sum(
                not row["warnings"] and abs(row["gain_error"]) < 0.1 for row in taken
            ),
        },
    }
    print(json.dumps(result, indent=1))
    if args.json:
        whole = result | {"machine": machine(), "beams": beams, "cameras": cameras}
        args.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
