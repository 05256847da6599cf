"""Alarms about quality: their levels, learned on good sessions, and how often they find what is wrong.

    python benchmarks/alarms.py --volumes FOLDER [--also FOLDER ...] --unseen FOLDER [--cases 200] [--jobs 2]

A session is six sweeps of 40 x 40 x 40 voxels of a recorded volume (or of nuclei that are drawn, in an
eighth of those to learn from): slab 5, 6 or 8 slices, step 6 or 8, golden offsets, 100 to 1,500 photons,
a camera of which the gain is declared or not, bleaching of up to 2 % a sweep; the specimen keeps still,
is active or drifts. The INR, without the network, whose own findings have limits already. Levels come
from good sessions of `--volumes` and `--also` alone: for each symptom and age of the session the largest
value, or the median and so many standard deviations, whichever is more. How many, is for each symptom the
least number at which no volume that is left out in turn raises its alarm, times a slack for all of them: the
least at which volumes of which neither these numbers nor the levels know raise an alarm in one session of
200 at most. Written to engines/trust/alarm_levels.py.

Then `--cases` good sessions of the unseen volumes tell false alarms, and as many with one of nine faults,
from the fourth sweep on or (profile, reversed, kind, column) from the first, how many are found. By how
much a fault changes the volume is the difference in PSNR to the same session without it, after the fault,
both against the specimen as it is without; for another kind of specimen how far the network alone falls
short of the better of INR and Tikhonov. Writes benchmarks/results/alarms.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, machine
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.runs.exposure import saturated_share
from microdiffusion.engines.evaluation.courses import Active
from microdiffusion.engines.evaluation.protocol import Protocol, make_header, slab_centres
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.training.phantoms import blobs
from microdiffusion.engines.trust import quality_watch
from microdiffusion.engines.trust.symptoms import APPEARANCE
from microdiffusion.errors import MddError
from microdiffusion.files import open_volume, write_text
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.metrics import seen_slices
from microdiffusion.optics import sweep_offset

Volume = NDArray[np.float32]

SIDE, SWEEPS, BEGINS = 40, 6, 3
FAULTS = (
    "wrong axial profile",
    "reversed stage",
    "defocus",
    "saturation",
    "bleaching by half",
    "drift of a slab",
    "bubbles",
    "another kind",
    "dead column",
)
FROM_THE_START = (FAULTS[0], FAULTS[1], FAULTS[7], FAULTS[8])
SATURATED = 0.002  # share of pixels: the exposure alarm's own limit
LEARNED_FROM = 120
ALLOWED = 0.005  # of the sessions of volumes left out
SLACKS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
MARGINS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)  # standard deviations
LEVELS = ROOT / "engines" / "trust" / "alarm_levels.py"
OFFSET = 100.0


@dataclasses.dataclass(slots=True)
class Scene:
    """A simulated session: what the engine is given, and the specimen as it is without the fault."""

    header: RunHeader
    sweeps: list[Sweep]
    truths: list[Volume]
    unit: float  # counts of a voxel of 1
    saturated: bool


@cache
def _volume(path: Path) -> Volume:
    with open_volume(path) as file:
        return np.asarray(file.volume(0), np.float32)


def structure_of(path: Path | None, rng: np.random.Generator) -> Volume:
    """Return a part of a volume in [0, 1]; None: drawn nuclei."""
    if path is None:
        part = blobs(rng, SIDE)
    else:
        volume = _volume(path)
        edges = [min(SIDE, edge) for edge in volume.shape]
        parts = []
        for _ in range(2):  # of two, the one with more in it
            start = [
                rng.integers(0, whole - edge + 1) for whole, edge in zip(volume.shape, edges, strict=True)
            ]
            parts.append(volume[tuple(slice(a, a + n) for a, n in zip(start, edges, strict=True))])
        part = max(parts, key=lambda each: float(each.std()))
    low, high = np.percentile(part, [1, 99.9])
    return np.clip((part - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def strange_specimen(shape: tuple[int, ...], rng: np.random.Generator) -> Volume:
    """Draw what no specimen looks like: gratings, checkers, band-passed noise, blocks, plates."""
    which = int(rng.integers(5))
    if which == 0:
        way = rng.standard_normal(3)
        along = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ (way / np.linalg.norm(way))
        return (np.sin(2 * np.pi * along / rng.uniform(5, 14)) > 0).astype(np.float32)
    if which == 1:
        return ((np.indices(shape) // int(rng.integers(3, 9))).sum(0) % 2).astype(np.float32)
    if which == 2:
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 1.2))
        return np.clip(0.5 + noise / (4 * noise.std()), 0, 1).astype(np.float32)
    if which == 3:
        blocks = (rng.random([edge // 4 + 1 for edge in shape]) > 0.5).astype(np.float32)
        return blocks.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    plates = np.zeros(shape, np.float32)
    plates[rng.integers(0, shape[0], 5)] = 1
    return ndimage.gaussian_filter(plates * rng.uniform(0.5, 1, (1, *shape[1:])), (0.5, 1, 1)).astype(
        np.float32
    )


def scene(path: Path | None, seed: int, fault: str | None) -> Scene:
    """Return a session; everything but the fault is the same with and without it."""
    rng, odd, shot = (np.random.default_rng([seed, part]) for part in range(3))
    structure = structure_of(path, rng)
    if fault == FAULTS[7]:
        structure = strange_specimen(structure.shape, odd)
    protocol = Protocol(length=float(rng.choice([5.0, 6.0, 8.0])), step=float(rng.choice([6.0, 8.0])))
    photons, gain = float(np.exp(rng.uniform(np.log(100), np.log(1500)))), float(rng.uniform(0.5, 4))
    declared, bleaching = rng.random() < 0.6, rng.uniform(0, 0.02)
    course = str(rng.choice(["still", "active", "drift"]))
    active: Active | None = None
    if course == "active":
        try:
            active = Active(structure, 2 * SWEEPS, seed)
        except MddError:  # there is no bright spot
            active = None
    camera = CameraNoise(offset=OFFSET, gain=gain, read_noise=1.5)
    header = make_header(structure.shape, protocol, 64).model_copy(
        update={
            "camera": camera if declared else camera.model_copy(update={"gain": None}),
            "dtype": "uint16",
        }
    )
    longer = float(odd.choice([0.8, 1.2])) if fault == FAULTS[0] else 1.0
    length = protocol.length * longer
    beam = header.model_copy(update={"profile_spacing_um": length})
    made = Scene(header, [], [], gain * photons, False)
    column, blur, top = int(odd.integers(4, SIDE - 4)), odd.uniform(1.5, 3), odd.uniform(0.3, 0.7)
    for number in range(SWEEPS):
        truth = structure
        if active is not None:
            truth = active.truth(SWEEPS + number - 1) if number else structure
        elif course == "drift":
            by = 0.1 * number
            truth = ndimage.shift(structure, (by, by, 0), order=1, mode="nearest").astype(np.float32)
        truth = truth * np.float32((1 - bleaching) ** number)
        begun = number >= BEGINS or fault in FROM_THE_START
        what = fault if begun else None
        offset = sweep_offset(number, "golden") * protocol.step
        z = slab_centres(dataclasses.replace(protocol, offset=offset), len(structure))
        pair = number * 7 % (z.size - 1)
        said = np.concatenate([z, [z[pair : pair + 2].mean()]] if number % 2 == 0 else [z])
        true = said.copy()
        if what == FAULTS[1]:
            true[: z.size] = z[::-1]
        if what == FAULTS[5]:
            off = float(odd.choice([-1, 1])) * protocol.step * odd.uniform(0.4, 0.8)
            true[int(odd.integers(z.size))] += off
        true = np.clip(true, length / 2 - 0.5, len(structure) - length / 2 - 0.5)
        light = photons * np.tensordot(beam.operator_at(StagePositions.along_z(true)), truth, 1)
        top_light = float(np.percentile(light, 99.9))
        if what == FAULTS[4]:
            light *= 0.5
        if what == FAULTS[2]:
            light = ndimage.gaussian_filter(light, (0, blur, blur))
        if what == FAULTS[6]:
            _bubbles(light, odd)
        pixels = camera.expose(light, shot)
        if what == FAULTS[3]:
            pixels = np.minimum(pixels, np.uint16(OFFSET + gain * top * top_light))
            made.saturated |= any(saturated_share(frame) > SATURATED for frame in pixels)
        if what == FAULTS[8]:
            pixels[:, :, column] = np.uint16(OFFSET)
        stage, counts = StagePositions.along_z(said), pixels.astype(np.float32)
        many = z.size
        made.sweeps.append(Sweep(number, 0, 0, stage[:many], counts[:many], stage[many:], counts[many:]))
        made.truths.append(truth)
    return made


def _bubbles(light: NDArray[np.floating], rng: np.random.Generator) -> None:
    """Put one to three bubbles before the camera, in three slabs each: dark, with a bright rim."""
    rows, columns = np.ogrid[: light.shape[1], : light.shape[2]]
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(4, 9)
        far = np.hypot(rows - rng.uniform(6, SIDE - 6), columns - rng.uniform(6, SIDE - 6))
        shade = np.where(far < radius - 1, 0.3, 1.0) + 1.2 * np.exp(-((far - radius) ** 2))
        first = int(rng.integers(0, max(1, len(light) - 2)))
        light[first : first + 3] *= shade


def play(made: Scene, engine: Engine, config: EngineConfig) -> dict[str, Any]:
    """Return the symptoms and alarms of each sweep, and its PSNR against the specimen."""
    reconstructor = Reconstructor(made.header, config, engine)
    symptoms, alarms, psnr = [], [], []
    for sweep, truth in zip(made.sweeps, made.truths, strict=True):
        result = reconstructor.reconstruct(sweep)
        seen = seen_slices(made.header.operator_at(sweep.stage))
        apart = ((result.volume - OFFSET) / made.unit - truth)[seen]
        psnr.append(float(-10 * np.log10(np.mean(apart**2) + 1e-12)))
        symptoms.append(result.symptoms)
        alarms.append(sorted(result.alarms))
    return {"symptoms": symptoms, "alarms": alarms, "psnr": psnr, "saturated": made.saturated}


def one(case: tuple[str | None, int, str | None]) -> dict[str, Any]:
    """Play one case: volume, seed, fault."""
    torch.set_num_threads(1)
    name, seed, fault = case
    path = None if name is None else Path(name)
    engine, config = _engine("inr")
    row = {"volume": path.stem if path else "nuclei", "seed": seed, "fault": fault}
    row |= play(scene(path, seed, fault), engine, config)
    after = slice(0 if fault in FROM_THE_START else BEGINS, None)
    if fault == FAULTS[7]:
        strange = scene(path, seed, fault)
        alone, inr, plain = (play(strange, *_engine(which))["psnr"] for which in ("alone", "inr", "tikhonov"))
        row["change_db"] = float(np.mean(np.maximum(inr, plain) - np.array(alone)))
    elif fault is not None:
        twin = play(scene(path, seed, None), engine, config)["psnr"]
        row["change_db"] = float(np.mean((np.array(twin) - row["psnr"])[after]))
    return row


@cache
def _engine(which: str) -> tuple[Engine, EngineConfig]:
    table: dict[str, Any] = {"device": "cpu", "threads": 1, "method": which}
    if which == "alone":
        table |= {"method": "mdd", "fallback": False}
    config = EngineConfig.model_validate(table)
    return open_engine(config), config


def learn(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the levels that good sessions give, and return what they are worth on volumes left out."""
    looks = np.array([[each[name] for name in APPEARANCE] for row in rows for each in row["symptoms"]])
    middle = looks.mean(0)
    spread = np.cov(looks.T)
    whitening = _whitening(spread)
    quality_watch.FAMILIAR, quality_watch.WHITENING = tuple(middle), tuple(map(tuple, whitening))
    steps = np.array([step for row in rows for step in _steps(row)])
    steadiness = _whitening(steps.T @ steps / len(steps))
    quality_watch.STEADY = tuple(map(tuple, steadiness))
    _compare(rows)
    names = sorted({row["volume"] for row in rows})
    alone = {name: _margins([row for row in rows if row["volume"] != name]) for name in names}
    rates = {}
    for slack in SLACKS:
        raised = 0
        for name in names:
            others = [row for row in rows if row["volume"] != name]
            levels = _levels(others, alone[name], slack)
            raised += sum(bool(_kinds(row, levels)) for row in rows if row["volume"] == name)
        rates[slack] = raised / len(rows)
    slack = next((each for each in SLACKS if rates[each] <= ALLOWED), SLACKS[-1])
    margins = _margins(rows)
    levels = _levels(rows, margins, slack)
    lines = [
        '"""Levels of the alarms about quality, and the appearance of the specimens to learn from.',
        "",
        "Written by benchmarks/alarms.py from good sessions; not edited by hand.",
        '"""',
        "",
        "LEVELS: dict[str, tuple[float, float, float]] = {",
        *(
            f'    "{name}": ({", ".join(f"{value:.4g}" for value in level)}),'
            for name, level in levels.items()
        ),
        "}",
        '"""A symptom\'s level in the second, the third and later sweeps of a session."""',
        f"FAMILIAR: tuple[float, ...] = ({', '.join(f'{value:.4g}' for value in middle)})",
        "WHITENING: tuple[tuple[float, ...], ...] = (",
        *(f"    ({', '.join(f'{value:.4g}' for value in line)})," for line in whitening),
        ")",
        "STEADY: tuple[tuple[float, ...], ...] = (",
        *(f"    ({', '.join(f'{value:.4g}' for value in line)})," for line in steadiness),
        ")",
        '"""Whitening of what an appearance differs from those before it in a good session."""',
    ]
    write_text(LEVELS, "\n".join(lines) + "\n")
    quality_watch.LEVELS = levels
    return {
        "sessions": len(rows),
        "volumes": names,
        "slack": slack,
        "margins": margins,
        "false_alarms_of_volumes_left_out": {f"{each:g}": round(rate, 4) for each, rate in rates.items()},
    }


def _whitening(covariance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the root of the inverse of a covariance (N, N), with a ridge: it is of fifteen specimens."""
    ridged = covariance + 0.02 * np.diag(np.diag(covariance))
    return np.asarray(np.linalg.cholesky(np.linalg.inv(ridged)).T, np.float64)


def _steps(row: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Return by how much each sweep's appearance, from the third on, differs from those before it."""
    looks = np.array([[each[name] for name in APPEARANCE] for each in row["symptoms"]])
    return [looks[number] - np.median(looks[:number], 0) for number in range(2, len(looks))]


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Put into the symptoms of each sweep what the appearance of good sessions makes of its own."""
    for row in rows:
        before: dict[str, list[float]] = {}
        for each in row["symptoms"]:
            each["strange"] = quality_watch.strangeness(each)
            each["novelty"] = quality_watch.novelty(each, before)
            before = quality_watch.remembered(each, before)
        row["readings"] = list(_read(row))


def _levels(
    rows: Sequence[dict[str, Any]], margins: Mapping[str, float], slack: float
) -> dict[str, tuple[float, float, float]]:
    levels = {}
    for name, ages in _statistics(rows).items():
        first, second, later = (max(top, middle + slack * margins[name] * sd) for top, middle, sd in ages)
        levels[name] = (first, second, later)
    return levels


def _margins(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return each symptom's least margin at which no volume that is left out raises its alarm."""
    wanted = dict.fromkeys(sorted({sign.name for sign in quality_watch.SIGNS}), 0.0)
    for name in sorted({row["volume"] for row in rows}):
        good = _statistics([row for row in rows if row["volume"] != name])
        for row in rows:
            for sign, value, age in _readings(row) if row["volume"] == name else ():
                top, middle, deviation = good[sign.name][age - 1]
                if value > top:
                    wanted[sign.name] = max(wanted[sign.name], (value - middle) / max(deviation, 1e-9))
    return {name: next((m for m in MARGINS if m >= most), MARGINS[-1]) for name, most in wanted.items()}


def _statistics(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """Return the largest value, the median and a deviation of each symptom in good sessions, by age."""
    read: dict[str, list[list[float]]] = {}
    for row in rows:
        for sign, value, age in _readings(row):
            read.setdefault(sign.name, [[], [], []])[age - 1].append(value)
    statistics = {}
    for name, ages in sorted(read.items()):
        statistics[name] = [(1e9, 0.0, 0.0)] * len(ages)
        for age, values in enumerate(ages):
            if values:
                middle, high = np.quantile(values, [0.5, 0.9])
                statistics[name][age] = (float(max(values)), float(middle), float(high - middle) / 1.2816)
    return statistics


def _readings(row: dict[str, Any]) -> list[tuple[quality_watch.Sign, float, int]]:
    """Return what each sign of a session reads, sweep by sweep; once `_compare` has seen it."""
    found: list[tuple[quality_watch.Sign, float, int]] = row["readings"]
    return found


def _read(row: dict[str, Any]) -> Iterator[tuple[quality_watch.Sign, float, int]]:
    before: dict[str, list[float]] = {}
    for now in row["symptoms"]:
        yield from quality_watch.readings(now, before)
        before = quality_watch.remembered(now, before)


def _kinds(row: dict[str, Any], levels: dict[str, tuple[float, float, float]]) -> list[str]:
    """Return the kinds of alarm that a session raises, the exposure alarm among them."""
    kinds = {sign.kind for sign, value, age in _readings(row) if value > levels[sign.name][age - 1]}
    return sorted(kinds | ({"saturated"} if row["saturated"] else set()))


def judge(good: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rates of detection and of false alarm."""
    _compare((*good, *bad))
    for row in (*good, *bad):
        row["kinds"] = _kinds(row, quality_watch.LEVELS)
    false = [row for row in good if row["kinds"]]
    report: dict[str, Any] = {
        "false_alarms": {
            "sessions": len(good),
            "raised": len(false),
            "rate": round(len(false) / len(good), 4),
            "kinds": _counted(false),
        },
        "faults": {},
    }
    for fault in FAULTS:
        cases = [row for row in bad if row["fault"] == fault]
        matter = [row for row in cases if row["change_db"] > 1.0]
        report["faults"][fault] = {
            "cases": len(cases),
            "detected": sum(bool(row["kinds"]) for row in cases),
            "above_1_db": len(matter),
            "detected_above_1_db": sum(bool(row["kinds"]) for row in matter),
            "median_change_db": round(float(np.median([row["change_db"] for row in cases])), 2),
            "kinds": _counted(cases),
        }
    above = [row for row in bad if row["change_db"] > 1.0]
    report["above_1_db"] = {
        "cases": len(above),
        "detected": sum(bool(row["kinds"]) for row in above),
        "rate": round(sum(bool(row["kinds"]) for row in above) / max(1, len(above)), 4),
    }
    return report


def _at(played: dict[str, list[dict[str, Any]]], slack: float) -> dict[str, float]:
    """Return the rates of false alarm and of detection with another slack."""
    levels = _levels(played["learn"], _margins(played["learn"]), slack)
    above = [row for row in played["bad"] if row["change_db"] > 1.0]
    return {
        "false_alarms": round(float(np.mean([bool(_kinds(row, levels)) for row in played["good"]])), 4),
        "detected_above_1_db": round(float(np.mean([bool(_kinds(row, levels)) for row in above])), 4),
    }


def _counted(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    kinds = sorted({kind for row in rows for kind in row["kinds"]})
    return {kind: sum(kind in row["kinds"] for row in rows) for kind in kinds}


def main() -> int:
    """Learn, test, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True, help="to learn from")
    parser.add_argument("--unseen", type=Path, required=True, help="to test on")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--learn", type=int, default=LEARNED_FROM, help="sessions of --volumes and nuclei")
    parser.add_argument(
        "--also", type=Path, nargs="*", default=[], help="to learn from, six sessions of each"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="where to keep what was played, to judge it again")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "alarms.json")
    options = parser.parse_args()
    known, unseen = (sorted(folder.glob("*.h5")) for folder in (options.volumes, options.unseen))
    places: list[str | None] = [*map(str, known), None, None]
    held_back = {path.stem for path in unseen}
    also = [p for folder in options.also for p in sorted(folder.glob("*.h5")) if p.stem not in held_back]

    def pick(some: Sequence[Any], number: int) -> Any:
        return some[number % len(some)]

    plans: dict[str, list[tuple[str | None, int, str | None]]] = {
        "learn": [(pick(places, n), n, None) for n in range(options.learn)]
        + [(str(pick(also, n)), 30_000 + n, None) for n in range(6 * len(also))],
        "good": [(str(pick(unseen, n)), 10_000 + n, None) for n in range(options.cases)],
        "bad": [
            (str(pick(unseen, n // len(FAULTS) + n)), 20_000 + n, pick(FAULTS, n))
            for n in range(options.cases)
        ],
    }
    played: dict[str, list[dict[str, Any]]] = {}
    if options.rows is not None and options.rows.exists():
        played = json.loads(options.rows.read_text())
    run: Callable[..., Any]
    with ProcessPoolExecutor(options.jobs) as pool:
        run = partial(pool.map, one, chunksize=4)
        for name, plan in plans.items():
            if name in played:
                continue
            played[name] = []
            for row in run(plan):
                played[name].append(row)
                if len(played[name]) % 20 == 0:
                    print(name, len(played[name]), file=sys.stderr, flush=True)
            if options.rows is not None:
                options.rows.write_text(json.dumps(played))
    learned = learn(played["learn"])
    report = {
        "machine": machine(),
        "side": SIDE,
        "sweeps": SWEEPS,
        "unseen": [path.stem for path in unseen],
        "learned": learned,
        **judge(played["good"], played["bad"]),
    }
    report["by_slack"] = {f"{each:g}": _at(played, each) for each in SLACKS}
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
