"""What PSNR does not say of a volume: brightness, seams between windows, sharpness where no slab lay.

  python benchmarks/details.py --volumes FOLDER [--only A,B] [--sweeps 1,4,10] [--weights FILE]

Sessions of specimens that keep still, golden offsets, slab 6, noise 0.01 that nobody declares; the INR and
what mdd serves, at some of the sweeps. Writes benchmarks/results/details.json:

- `slope`: regression of reconstructed on true intensity, voxels above the 95th percentile;
- `peaks`: mean of the brightest half percent, relative to the truth's;
- `seams`: energy of the z derivative at borders of windows relative to elsewhere, over the truth's;
- `gaps`: energy of the lateral gradient in slices between this sweep's slabs, relative to the truth's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from measuring import ROOT, machine
from numpy.typing import NDArray

from microdiffusion.config import EngineConfig
from microdiffusion.engines import evaluation
from microdiffusion.engines.diffusion import SLICES
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine
from microdiffusion.files import open_volume, volume_paths
from microdiffusion.metrics import psnr_per_slice, ssim_per_slice

Volume = NDArray[np.float32]
FIGURES = ("psnr_db", "ssim", "slope", "peaks", "seams", "gaps")


def seams(volume: Volume, truth: Volume) -> float:
    """Return the z derivative's energy at borders of windows over that elsewhere, relative to the truth's."""

    def ratio(of: Volume) -> float:
        energy = np.square(np.diff(of, axis=0)).mean((1, 2))
        places = np.arange(len(energy))
        inside = (places >= SLICES) & (places < len(energy) - SLICES)  # not the ends of the volume
        border = places % SLICES == SLICES - 1
        return float(energy[inside & border].mean() / energy[inside & ~border].mean())

    return ratio(volume) / ratio(truth)


def gaps(volume: Volume, truth: Volume, operator: NDArray[np.float64]) -> float | None:
    """Return the lateral gradient's energy in slices between the slabs, relative to the truth's."""
    light = operator.sum(0)
    lit = np.flatnonzero(light)
    dark = np.flatnonzero(light == 0)
    dark = dark[(dark > lit[0]) & (dark < lit[-1])]
    if not len(dark):
        return None

    def energy(of: Volume) -> float:
        return float(sum(np.square(np.diff(of[dark], axis=axis)).mean() for axis in (1, 2)))

    return energy(volume) / energy(truth)


def figures(volume: Volume, truth: Volume, seen: NDArray[np.bool_], operator: NDArray[np.float64]) -> dict:
    """Return the figures of a volume (Z, Y, X); `operator` (M, Z) is that of the sweep."""
    bright, brightest = (truth >= np.quantile(truth, share) for share in (0.95, 0.995))
    clipped = np.clip(volume, 0, 1)
    return {
        "psnr_db": round(float(psnr_per_slice(clipped[seen], truth[seen]).mean()), 3),
        "ssim": round(float(ssim_per_slice(clipped[seen], truth[seen]).mean()), 4),
        "slope": round(float(np.polyfit(truth[bright], volume[bright], 1)[0]), 3),
        "peaks": round(float(volume[brightest].mean() / truth[brightest].mean()), 3),
        "seams": round(seams(volume, truth), 3),
        "gaps": None if (sharp := gaps(volume, truth, operator)) is None else round(sharp, 3),
    }


def rows(name: str, truth: Volume, step: float, sweeps: list[int], engines: dict[str, Engine]) -> list[dict]:
    """Return the figures of a volume's sessions."""
    protocol = evaluation.Protocol(crop=None, step=step)
    plan = evaluation.SessionPlan(max(8, *sweeps))
    header, session, seen = evaluation.still_session(truth, protocol, plan)
    found = []
    for method, engine in engines.items():
        config = EngineConfig.model_validate({"device": "cpu", "threads": 1, "method": method})
        reconstructor = Reconstructor(header, config, engine)
        for number, sweep in enumerate(session[: max(sweeps)], 1):
            volume = reconstructor.reconstruct(sweep).volume
            if number in sweeps:
                operator = header.operator_at(sweep.stage)
                about = {"volume": name, "step": step, "method": method, "sweep": number}
                found.append(about | figures(volume, truth, seen, operator))
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, nargs="+", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--sweeps", default="1,4,10")
    parser.add_argument("--crop", default="64,96,96")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "details.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    crop = tuple(int(edge) for edge in arguments.crop.split(","))
    sweeps = [int(number) for number in arguments.sweeps.split(",")]
    engines = {
        method: open_engine(
            EngineConfig.model_validate(
                {"device": "cpu", "threads": 1, "method": method, "weights": arguments.weights}
            )
        )
        for method in ("inr", "mdd")
    }
    table: list[dict] = []
    for path in [path for folder in arguments.volumes for path in volume_paths(folder)]:
        if arguments.only and path.stem not in arguments.only.split(","):
            continue
        with open_volume(path) as source:
            truth = evaluation.normalise(np.asarray(source.volume(0), dtype=np.float32), crop)
        for step in (6.0, 8.0):
            for row in rows(path.stem, truth, step, sweeps, engines):
                print(*row.values(), flush=True)
                table.append(row)
    means = []
    for step in (6.0, 8.0):
        for method in engines:
            for number in sweeps:
                these = [r for r in table if (r["step"], r["method"], r["sweep"]) == (step, method, number)]
                values = {key: [r[key] for r in these if r[key] is not None] for key in FIGURES}
                mean = {key: round(float(np.mean(of)), 3) for key, of in values.items() if of}
                means.append({"step": step, "method": method, "sweep": number, "volumes": len(these)} | mean)
                print("mean", *means[-1].values())
    evaluation.write_json(arguments.json, {"machine": machine(), "means": means, "rows": table})


if __name__ == "__main__":
    main()
