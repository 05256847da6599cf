"""`mdd evaluate`: the protocol, the baselines, the runner, and the files that come out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.sample_data import specimen

from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.system import resident_mb
from microdiffusion.engines.evaluation import baselines, report
from microdiffusion.engines.evaluation.baselines import Problem
from microdiffusion.engines.evaluation.methods import NAMES, evaluations, measured, parse_methods
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, normalise, read_truth
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks, Results, evaluate
from microdiffusion.engines.evaluation.total_variation import total_variation
from microdiffusion.engines.projections import along_z
from microdiffusion.errors import ConfigError, GeometryError, InputFileError
from microdiffusion.files.volumes import volume_paths

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return normalise(specimen())


@pytest.fixture(scope="module")
def case(truth: np.ndarray) -> Case:
    return make_case(truth, Protocol())


@pytest.fixture(scope="module")
def problem(case: Case) -> Problem:
    return Problem.of(case.header, case.sweep, CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one volume of each kind of file."""
    place = tmp_path / "volumes"
    place.mkdir()
    with h5py.File(place / "a.h5", "w") as file:
        file["volume"] = specimen(1).astype(np.uint16)
    np.save(place / "b.npy", specimen(2))
    pytest.importorskip("tifffile").imwrite(place / "c.tif", specimen(3).astype(np.uint16))
    return place


def test_normalisation_takes_the_middle_and_its_percentiles() -> None:
    volume = np.zeros((20, 40, 40), np.float32)
    volume[5:15, 10:30, 10:30] = np.random.default_rng(0).gamma(2, 50, (10, 20, 20)).astype(np.float32)
    part = normalise(volume, (10, 20, 20))
    assert part.shape == (10, 20, 20)
    low, high = np.percentile(volume[5:15, 10:30, 10:30], [1, 99.9])
    np.testing.assert_allclose(
        part[3, 4, 5], np.clip((volume[8, 14, 15] - low) / (high - low), 0, 1), rtol=1e-5
    )
    assert part.min() == 0
    assert part.max() == 1
    assert normalise(volume, None).shape == volume.shape


def test_white_noise_and_photons_are_as_strong_as_they_say(truth: np.ndarray) -> None:
    white = make_case(truth, Protocol(noise=0.05))
    miss = white.sweep.projections - np.tensordot(white.operator, truth, 1)
    assert miss.std() == pytest.approx(0.05, rel=0.05)
    assert white.held_out_error(truth) == pytest.approx(1, rel=0.1)
    counted = make_case(0 * truth + 0.5, Protocol(photons=100))
    assert counted.sweep.projections.std() == pytest.approx(math.sqrt(0.5 / 100), rel=0.05)
    assert counted.header.camera.gain == 0.01
    assert counted.held_out_error(0 * truth + 0.5) == pytest.approx(1, rel=0.1)


def test_held_out_projection_judges_whether_or_not_it_is_shown(truth: np.ndarray) -> None:
    shown, hidden = make_case(truth, Protocol()), make_case(truth, Protocol(held_out=False))
    assert shown.sweep.held_out.shape == (1, 32, 32)
    assert hidden.sweep.held_out.shape == (0, 32, 32)
    np.testing.assert_array_equal(shown.judge, hidden.judge)
    np.testing.assert_array_equal(shown.sweep.projections, hidden.sweep.projections)
    # Half a step off the others: it sees half of each of two slabs.
    shares = shown.judge_operator @ (shown.operator > 0).T
    assert sorted(shares[0])[-2:] == pytest.approx([0.5, 0.5])


def test_noise_depends_on_the_seed_alone(truth: np.ndarray) -> None:
    first, again, other = (make_case(truth, Protocol(), seed).sweep.projections for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        pytest.param(np.ones((9, 9, 9)), "finite values that differ", id="constant"),
        pytest.param(np.random.default_rng(0).random((9, 5, 9)), "7 x 7 pixels", id="too small"),
    ],
)
def test_volume_that_cannot_be_scored_is_refused(volume: np.ndarray, words: str) -> None:
    with pytest.raises(InputFileError, match=words):
        normalise(volume.astype(np.float32))


def test_volume_too_thin_for_two_slabs_is_refused(truth: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="Only 1 slab"):
        make_case(truth[:10], Protocol())


def test_tv_of_white_noise_is_that_of_scikit_image() -> None:
    # With slabs of one slice A is the identity, and the problem is Rudin, Osher and Fatemi's.
    restoration = pytest.importorskip("skimage.restoration")
    rng = np.random.default_rng(0)
    clean = np.zeros((8, 10, 12))
    clean[3:7, 3:7, 4:9] = 1.0
    noisy = 0.5 + clean + rng.uniform(-0.2, 0.2, clean.shape)
    images = torch.from_numpy(noisy.astype(np.float32))
    ours, _ = total_variation(
        torch.eye(8),
        images,
        torch.ones_like(images),
        weight=0.15,
        start=images,
        iterations=3000,
        tolerance=0,
    )
    theirs = restoration.denoise_tv_chambolle(noisy, weight=0.15, eps=1e-12, max_num_iter=3000)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-3)
    assert np.abs(theirs - noisy).max() > 0.1


def test_tv_of_one_line_has_the_known_solution() -> None:
    # A step of height h over n and n samples: TV denoising takes λ / n off each side.
    line = torch.cat([torch.full((4, 1, 1), 1.0), torch.full((4, 1, 1), 3.0)])
    answer, _ = total_variation(
        torch.eye(8), line, torch.ones_like(line), weight=0.8, start=line, iterations=2000, tolerance=0
    )
    expected = [1.2] * 4 + [2.8] * 4
    np.testing.assert_allclose(answer[:, 0, 0].numpy(), expected, atol=1e-4)


def objective(problem: Problem, volume: torch.Tensor, *, weight: float, axial: float) -> float:
    """Return the value that `total_variation` minimises."""
    relative = problem.variance.mean() / problem.variance
    data = 0.5 * (relative * (along_z(problem.operator, volume) - problem.images).square()).double().sum()
    slopes = torch.zeros(3, *volume.shape, device=volume.device)
    slopes[0, :-1] = axial * volume.diff(dim=0)
    slopes[1, :, :-1] = volume.diff(dim=1)
    slopes[2, :, :, :-1] = volume.diff(dim=2)
    return float(data + weight * slopes.norm(dim=0).double().sum())


def test_tv_goes_down_to_its_minimum(problem: Problem) -> None:
    weight = 0.1 * problem.sigma
    common = {"weight": weight, "axial": 1.5, "tolerance": 0.0}
    start = problem.linear()
    values = []
    for iterations in (10, 50, 400):
        best, _ = total_variation(
            problem.operator, problem.images, problem.variance, start=start, iterations=iterations, **common
        )
        assert float(best.min()) >= 0
        values.append(objective(problem, best, weight=weight, axial=1.5))
    assert values[0] > values[1] > values[2]
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):  # no direction leads further down
        other = (best + 0.02 * torch.randn(best.shape, generator=rng)).clamp_min(0)
        value = objective(problem, other, weight=weight, axial=1.5)
        assert value > values[2]
    # From another start to the same answer.
    again, _ = total_variation(
        problem.operator, problem.images, problem.variance, start=0 * start, iterations=400, **common
    )
    assert float((again - best).square().mean().sqrt()) < 0.01


def test_tv_trusts_a_noisy_pixel_less(problem: Problem) -> None:
    images, variance = problem.images.clone(), problem.variance.clone()
    spot = (slice(None), slice(8, 12), slice(8, 12))
    images[spot] += 0.5
    common = {"weight": 0.2 * problem.sigma, "start": problem.linear(), "iterations": 100}
    trusting = total_variation(problem.operator, images, problem.variance, **common)[0][spot]
    variance[spot] *= 1000
    # The weight is relative to the mean variance, which has grown.
    common["weight"] *= float(problem.variance.mean() / variance.mean())
    wary = total_variation(problem.operator, images, variance, **common)[0][spot]
    assert float(wary.mean()) < float(trusting.mean()) - 0.1


def test_richardson_lucy_explains_the_projections_and_stays_positive(problem: Problem) -> None:
    residuals = [
        problem.residual(baselines.richardson_lucy(problem, iterations=iterations))
        for iterations in (1, 8, 60)
    ]
    assert residuals[0] > residuals[2]
    assert residuals[2] < problem.residual(problem.linear())
    assert float(baselines.richardson_lucy(problem).min()) >= 0


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """Return a specimen whose structures are longer than a slab."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (24, 32, 32)), indexing="ij")
    return normalise((2 + np.sin(7 * z + 3 * y) + np.cos(5 * x - 4 * z)).astype(np.float32))


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out", "discrepancy"])
@pytest.mark.parametrize("name", ["linear", "tikhonov", "tv", "rl", "inr"])
def test_every_answer_beats_the_nearest_slab_on_a_smooth_specimen(
    smooth: np.ndarray, name: str, held_out: bool
) -> None:
    case = make_case(smooth, Protocol(held_out=held_out))
    nearest, method = parse_methods(f"nearest,{name}")
    base = {"device": "cpu"}
    worse = case.scores(nearest.answer(case, base).volume)
    better = case.scores(method.answer(case, base, engine=method.open(base)).volume)
    assert better.psnr_db > worse.psnr_db + 1


def test_tv_weight_is_chosen_by_what_was_held_out(truth: np.ndarray) -> None:
    chosen, small, large = (
        method.answer(make_case(truth, Protocol(noise=0.05)), {"device": "cpu"}).volume
        for method in parse_methods("tv,tv:weight=0.0001:axial=1,tv:weight=20:axial=1")
    )
    case = make_case(truth, Protocol(noise=0.05))
    best = case.scores(chosen).psnr_db
    assert best > case.scores(small).psnr_db + 1
    assert best > case.scores(large).psnr_db + 1


def test_camera_offset_is_no_light(truth: np.ndarray) -> None:
    case = make_case(truth, Protocol(photons=200))
    camera = case.header.camera.model_copy(update={"offset": 5.0})
    header = case.header.model_copy(update={"camera": camera})
    sweep = replace(case.sweep, projections=case.sweep.projections + 5, held_out=case.sweep.held_out + 5)
    shifted = replace(case, header=header, sweep=sweep)
    for method in parse_methods("nearest,tv:iterations=20:axial=1,rl"):
        plain = method.answer(case, {"device": "cpu"}).volume
        np.testing.assert_allclose(
            method.answer(shifted, {"device": "cpu"}).volume - 5, plain, atol=2e-2, err_msg=method.name
        )


def test_method_names_carry_options() -> None:
    plain, few, free, inr, tv = parse_methods(
        "mdd, mdd:4, mdd:2:guidance=0:consistency=false, inr:inr.bandwidth_z=0.05, tv:weight=0.1:iterations=9"
    )
    assert plain.config({}).steps == 1
    assert few.config({}).steps == 4
    config = free.config({"device": "cpu"})
    assert (config.steps, config.guidance, config.consistency, config.device) == (2, 0, False, "cpu")
    assert inr.config({}).inr.bandwidth_z == 0.05
    assert inr.config({}).fallback is False
    assert tv.options == {"weight": 0.1, "iterations": 9}
    assert plain.name == "mdd"
    assert not plain.classical
    assert not tv.classical
    assert parse_methods("tv")[0].classical
    assert evaluations(config) == 2
    assert evaluations(parse_methods("mdd:2:guidance=0.5")[0].config({})) == 4
    assert evaluations(parse_methods("tikhonov")[0].config({})) == 0


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("microdiffusion", 4 * 2, id="shortcut, both branches"),
        pytest.param("microdiffusion:reference.guidance=0", 4, id="without guidance"),
        pytest.param("microdiffusion:reference.shortcut=0", 1000 * 2, id="all steps"),
        pytest.param("ddpm", 1000 * 2, id="without interpolation nothing is forgotten"),
    ],
)
def test_evaluations_of_the_reference_are_counted_as_its_sampler_takes_them(name: str, count: int) -> None:
    assert evaluations(parse_methods(name)[0].config({})) == count


def test_stages_of_a_slow_method_are_passed_on(folder: Path) -> None:
    options = "reference.epochs=1:reference.inr_steps=2:reference.inr_batch_pixels=16:reference.width=32"
    methods = parse_methods(f"nearest,microdiffusion:{options}:reference.shortcut=1:reference.guidance=0")
    told: list[tuple[int, str]] = []
    plan = EvaluationPlan(volume_paths(folder)[:1], methods, Protocol(crop=(16, 16, 16)), (8.0,))
    results = evaluate(plan, Hooks(lambda done, text: told.append((done, text))))
    assert [row["served"] for row in results.rows] == ["nearest", "microdiffusion"]
    stages = [(done, text) for done, text in told if " of " in text]
    assert stages
    assert all(done == 1 for done, _ in stages)
    assert "inr 2 of 2" in stages[1][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("mdd,mmd", "no method 'mmd'", id="unknown"),
        pytest.param("", "Expected methods", id="none"),
        pytest.param("tv,tv", "twice", id="twice"),
        pytest.param("mdd:9", "steps", id="too many evaluations"),
        pytest.param("mdd:guidence=1", "guidence", id="unknown key"),
        pytest.param("linear:4", "Expected key=value", id="evaluations of a method that has none"),
        pytest.param("tv:strength=1", "tv takes weight, axial, iterations", id="unknown option"),
        pytest.param("tv:weight=much", "greater than 0", id="no number"),
        pytest.param("nearest:weight=1", "takes no options", id="option of a method without"),
    ],
)
def test_method_that_cannot_be_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_methods(text)


def test_answers_do_not_depend_on_the_order_of_methods(folder: Path, weights: Path) -> None:
    files = volume_paths(folder)[:2]
    options = "inr:inr.cold_steps=10,tv:iterations=10:axial=1,mdd:2:interpolation=1:inr.cold_steps=10"
    engine = {"device": "cpu", "weights": weights}

    def figures(methods: str, files: list[Path]) -> dict[tuple[str, str], dict[str, float]]:
        plan = EvaluationPlan(files, parse_methods(methods), steps=(6.0,), engine=engine)
        costs = {*report.COSTS} - {"evaluations"}
        return {
            (row["volume"], row["method"]): {k: v for k, v in row.items() if k not in costs}
            for row in evaluate(plan).rows
        }

    forward = figures(options, files)
    assert figures(",".join(options.split(",")[::-1]), files[::-1]) == forward
    assert len(forward) == 6


def test_truth_is_the_same_from_each_kind_of_file(tmp_path: Path) -> None:
    volume = np.floor(specimen() * 1000).astype(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volume"] = volume
    np.save(tmp_path / "b.npy", volume[None])  # one time point is a volume
    pytest.importorskip("tifffile").imwrite(tmp_path / "c.tif", volume)
    paths = volume_paths(tmp_path)
    assert len(paths) == 3
    for path in paths:
        np.testing.assert_array_equal(read_truth(path), normalise(volume.astype(np.float32)))
        assert read_truth(path, (20, 16, 16)).shape == (20, 16, 16)


def damaged_chunk(path: Path) -> None:
    """Write HDF5 that opens, and whose pixels cannot be read."""
    with h5py.File(path, "w") as file:
        pixels = file.create_dataset("volume", (16, 16, 16), "f4", chunks=(16, 16, 16), compression="gzip")
        pixels.id.write_direct_chunk((0, 0, 0), b"no deflated pixels")


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        pytest.param("x.h5", lambda path: path.write_bytes(b"x"), "cannot be read", id="damaged HDF5"),
        pytest.param("x.tif", lambda path: path.write_bytes(b"x"), "cannot be read", id="damaged TIFF"),
        pytest.param("x.npy", lambda path: path.write_bytes(b"x"), "cannot be read", id="damaged NPY"),
        pytest.param("x.h5", damaged_chunk, "cannot be read", id="damaged pixels"),
        pytest.param("x.npy", lambda path: np.save(path, np.ones((4, 4))), "shape", id="an image"),
        pytest.param("x.npy", lambda path: np.save(path, 1j * np.ones((4, 4, 4))), "numbers", id="complex"),
        pytest.param("x.npy", lambda path: np.save(path, np.ones((2, 9, 9, 9))), "2 time points", id="times"),
        pytest.param(
            "x.npy", lambda path: np.save(path, np.full((9, 9, 9), np.nan)), "not finite", id="not finite"
        ),
    ],
)
def test_file_that_gives_no_truth_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], object], words: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputFileError, match=words) as caught:
        read_truth(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def rows_of(
    psnr: dict[str, dict[str, float]], held_out: dict[str, dict[str, float]] | None = None
) -> Results:
    """Return results whose scores are all 0 but for PSNR (method -> volume -> dB) and held-out error."""
    other = dict.fromkeys((*report.SCORES, *report.COSTS), 0.0)
    rows = [
        {
            "volume": volume,
            "step": 6.0,
            "seed": seed,
            "method": method,
            **other,
            "psnr_db": value + (seed - 0.5),
            "held_out_error": (held_out or psnr)[method][volume],
        }
        for method, volumes in psnr.items()
        for volume, value in volumes.items()
        for seed in (0, 1)
    ]
    return Results(rows, classical=("linear", "tv"))


def test_gain_is_over_the_best_classical_answer_of_each_volume() -> None:
    results = rows_of(
        {
            "linear": {"a": 30.0, "b": 20.0, "c": 25.0},
            "tv": {"a": 28.0, "b": 23.0, "c": 25.5},
            "mdd": {"a": 32.0, "b": 22.5, "c": 27.5},
        }
    )
    step = report.summarise(results)["6"]
    gain = step["methods"]["mdd"]["gain"]["psnr_db"]
    assert gain["mean"] == pytest.approx((2 - 0.5 + 2) / 3)
    assert (gain["least"], gain["least_on"], gain["worse_on"]) == (pytest.approx(-0.5), "b", 1)
    assert step["better_classical"]["psnr_db"]["b"] == {"method": "tv", "score": pytest.approx(23)}
    assert step["methods"]["mdd"]["psnr_db"]["mean"] == pytest.approx(82 / 3)
    assert step["methods"]["mdd"]["volumes"] == 3


def test_memory_of_a_call_is_what_it_took() -> None:
    with measured(CPU, resident_mb) as cost:
        block = np.ones(20_000_000)
        del block
    if resident_mb() is not None:
        assert 100 < cost.memory_mb < 400
    assert 0 < cost.seconds < 60
    with measured(CPU, lambda: None) as unknown:
        pass
    assert math.isnan(unknown.memory_mb)


def test_method_that_fails_costs_itself_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(sys.modules["microdiffusion.engines.evaluation.methods"]._BASELINES, "rl", broken)
    plan = EvaluationPlan(volume_paths(folder)[:1], parse_methods("nearest,rl,linear"), steps=(6.0,))
    results = evaluate(plan)
    assert [row["method"] for row in results.rows] == ["nearest", "linear"]
    assert results.skipped == ["a, step 6, rl: RuntimeError: out of memory"]


def test_saved_after_each_volume_and_progress_ends_at_all(folder: Path) -> None:
    saved: list[int] = []
    done: list[int] = []
    plan = EvaluationPlan(volume_paths(folder), parse_methods("nearest,linear"), steps=(6.0, 9.0), seeds=2)
    hooks = Hooks(
        lambda number, _: done.append(number), saved=lambda results: saved.append(len(results.rows))
    )
    evaluate(plan, hooks)
    assert saved == [8, 16, 24]
    assert done == sorted(done)
    assert done[-1] == plan.runs() == 24


def test_command_writes_table_rows_json_and_pictures(
    folder: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (folder / "broken.h5").write_bytes(b"not HDF5")
    code = cli.main(
        [
            *(
                "evaluate",
                str(folder),
                "--methods",
                "linear,tv:iterations=20,mdd:2:inr.cold_steps=5",
                "--steps",
                "6,8",
            ),
            *("--weights", str(weights), "--device", "cpu"),
            *("--json", str(tmp_path / "r.json")),
            *("--markdown", str(tmp_path / "r.md"), "--pictures", str(tmp_path / "pictures")),
        ]
    )
    captured = capsys.readouterr()
    assert code == 0
    assert captured.err.count("mdd: warning: left out broken.h5") == 1
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content["protocol"]["steps"] == [6, 8]
    assert content["protocol"]["crop"] == [130, 128, 128]
    assert content["machine"]["torch"] == torch.__version__
    assert len(content["rows"]) == 3 * 2 * 3
    assert content["skipped"] == [next(s for s in content["skipped"] if "broken.h5" in s)]
    row = content["rows"][0]
    assert {*report.SCORES} <= row.keys()
    assert 15 < row["psnr_db"] < 60
    mdd = content["summary"]["6"]["methods"]["mdd:2:inr.cold_steps=5"]
    assert mdd["evaluations"]["mean"] == 2
    low, high = mdd["psnr_db"]["interval"]
    assert low <= mdd["psnr_db"]["mean"] <= high
    table = (tmp_path / "r.md").read_text(encoding="utf-8")
    for name in (
        "`linear`",
        "`mdd:2:inr.cold_steps=5`",
        "## Step 8",
        "Gain over the best classical",
        "broken.h5",
    ):
        assert name in table
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {f"{name}_step{step}.png" for name in "abc" for step in (6, 8)}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(["nowhere"], 2, "no volume or folder", id="no folder"),
        pytest.param(["empty"], 2, "holds no volume", id="empty folder"),
        pytest.param(["bad"], 3, "nothing could be evaluated", id="nothing works"),
        pytest.param(["good", "--methods", "magic"], 2, "no method 'magic'", id="unknown method"),
        pytest.param(["good", "--json", "nowhere/r.json"], 2, "create it first", id="no folder of results"),
        pytest.param(["good", "--steps", "6,x"], 2, "expected a number", id="step"),
        pytest.param(["good", "--crop", "4,4"], 2, "slices, rows and columns", id="crop"),
        pytest.param(
            ["good", "--noise", "0", "--photons", "9"], 2, "not allowed with", id="two kinds of noise"
        ),
        pytest.param(["good", "--weights", "nowhere.safetensors"], 2, "do not exist", id="weights"),
        pytest.param(["good", "--device", "cuda:99"], 2, "CUDA", id="device"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    for name in ("empty", "bad", "good"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "bad" / "flat.npy", np.ones((20, 20, 20)))
    np.save(tmp_path / "good" / "a.npy", specimen())
    monkeypatch.chdir(tmp_path)
    extra = [] if "--methods" in arguments else ["--methods", "linear,mdd"]
    assert cli.main(["evaluate", *arguments, *extra]) == code
    errors = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors


def test_command_takes_a_single_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", specimen())
    assert (
        cli.main(["evaluate", str(tmp_path / "one.npy"), "--methods", "nearest,linear", "--steps", "6"]) == 0
    )
    assert "linear" in capsys.readouterr().out


def test_numbers_that_do_not_exist_are_null(tmp_path: Path) -> None:
    report.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": (2,)})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {
        "a": None,
        "b": [1.0, None],
        "c": [2],
    }


def test_every_method_has_a_line_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"| `{name}` |" in text
    for score in report.SCORES:
        assert f"`{score}`" in text
