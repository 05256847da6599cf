"""`mdd bench`: the contract of its JSON, and that its figures follow from what was measured."""

import contextlib
import io
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from microdiffusion.config.engine_tables import ReferenceConfig
from microdiffusion.config.load import load_config
from microdiffusion.daemon.bench import reference_cost
from microdiffusion.daemon.bench.network import EagerRuntime, Listener, NetworkCalls, flop_of, precision_of
from microdiffusion.daemon.bench.scene import PERIOD, make_scene
from microdiffusion.daemon.bench.settings import QUICK, WARM_UP, BenchSettings
from microdiffusion.daemon.bench.timing import take_turns
from microdiffusion.daemon.bench.volumes import ENGINE, Sample, summary
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.engines.diffusion.denoiser import CONDITIONS, WINDOW, SlabUNet

CPU = torch.device("cpu")
SIZE = "16x32x32"
TINY = ((8, 16), 1, 8)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, weights):
    """Run the command once: its exit code, what it said, and its document."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    said = io.StringIO()
    arguments = ["--size", SIZE, "--device", "cpu", "--quick", "--volumes", "2", "--evaluations", "1,2"]
    for setting in ("runtime=torch", f"weights={weights}", "threads=1", "reference.width=32"):
        arguments += ["--set", f"engine.{setting}"]
    with contextlib.redirect_stdout(said):
        code = cli.main(["bench", *arguments, "--json", str(path)])
    return code, said.getvalue(), json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(bench):
    return bench[2]["sizes"][SIZE]


@pytest.fixture(scope="module")
def scene():
    return make_scene(load_config("demo"), (16, 32, 32), seed=1)


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_the_document_keeps_the_contract(bench, figures):
    code, _, document = bench
    assert code == 0
    assert list(document["sizes"]) == [SIZE]
    assert {"volume_s", "ratio_eager_fp32", "ratio_reference", "limit_fraction", "stages"} <= set(figures)
    assert {"receive", "assemble", *ENGINE, "write"} <= set(figures["stages"])
    assert document["machine"]["processor"]
    assert document["machine"]["torch"] == torch.__version__


def test_every_number_is_finite_and_none_is_negative(bench):
    found = numbers(bench[2]["sizes"])
    assert len(found) > 50
    assert all(math.isfinite(number) and number >= 0 for number in found)


@pytest.mark.parametrize(
    "name",
    [
        "volume_s", "pipeline_s", "cold_s", "voxels_per_s", "ratio_eager_fp32",
        "ratio_reference", "limit_fraction", "limit_fraction_volume", "peak_resident_mb",
    ],
)  # fmt: skip
def test_a_figure_was_measured(figures, name):
    assert figures[name] > 0


def test_ratios_follow_from_the_seconds_beside_them(figures):
    network, floors, reference = figures["network"], figures["floors"], figures["reference"]
    assert figures["ratio_eager_fp32"] == pytest.approx(network["eager_fp32_s"] / network["runtime_s"])
    assert figures["limit_fraction"] == pytest.approx(
        floors["flop"] / network["runtime_s"] / floors["flop_per_s"]
    )
    whole = sum(reference["stages"].values())
    assert figures["ratio_reference"] == pytest.approx(whole / reference["compared_with_s"])


def test_the_stages_make_up_the_volume(figures):
    engine = sum(s for name, s in figures["stages"].items() if name not in ("receive", "assemble", "write"))
    # The stages are a mean, the volume a median, on a machine with other work.
    assert 0.3 < engine / figures["volume_s"] < 3


def test_more_evaluations_are_reported_beside_the_first(figures):
    assert list(figures["by_evaluations"]) == ["1", "2"]
    assert figures["by_evaluations"]["1"]["volume_s"] == figures["volume_s"]


def test_what_is_scaled_says_from_what(figures):
    assert figures["reference"]["scaled_from"]["training"].endswith("for 2001 epochs of 2")


def test_the_tables_show_size_stages_and_runtime(bench):
    said = bench[1]
    assert SIZE in said
    assert "torch cpu" in said
    for stage in ("receive", "sampler", "write"):
        assert stage in said


REFUSALS = {
    "two edges": (["--size", "16x32"], "expected slices, rows and columns such as 64x128x128, not 16x32"),
    "no number": (["--size", "16xax32"], "not 16xax32"),
    "too flat": (["--size", "6x32x32"], "expected at least 12x16x16 voxels, not 6x32x32"),
    "too large": (["--size", "4096x1024x1024"], "expected less than 2^31 voxels"),
    "many evaluations": (["--evaluations", "1,9"], "expected at most 8 evaluations, not 1,9"),
    "no folder": (["--json", "gone/bench.json"], "does not exist: create it first"),
}


@pytest.mark.parametrize(("arguments", "complaint"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    arguments, complaint, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(capsys):
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "torch sees 0 CUDA devices" in capsys.readouterr().err


def test_every_fourth_sweep_holds_a_projection_out_and_odd_ones_lie_deeper(scene):
    held = [sum(frame.info.held_out for frame in scene.frames(number)) for number in range(PERIOD)]
    assert held == [1, 0, 0, 0] * (PERIOD // 4)
    assert scene.sweep(1).stage.z_um[0] > scene.sweep(0).stage.z_um[0]


def test_repeated_sweeps_are_new_frames_of_the_same_pixels(scene):
    first, again = scene.frames(1), scene.frames(1 + PERIOD)
    assert {frame.info.seq for frame in first}.isdisjoint(frame.info.seq for frame in again)
    np.testing.assert_array_equal(first[0].pixels, again[0].pixels)
    assert scene.sweep(1000, made=2).sweep == 1000


def test_a_field_wider_than_the_specimen_mirrors_it():
    scene = make_scene(load_config("demo"), (12, 16, 200), seed=1)
    counts = scene.frames(1)[0].pixels.astype(float)
    assert counts.shape == (16, 200)
    # The same light, with another draw of the camera's noise.
    assert np.corrcoef(counts[:, 56:128].ravel(), counts[:, :127:-1].ravel())[0, 1] > 0.5


def sample(scale: float) -> Sample:
    stages = {name: scale * share for name, share in zip(ENGINE, (1, 2, 3, 4, 5), strict=True)}
    return Sample(
        {"receive": scale, "assemble": 0.0, **stages, "other": 0.0, "write": scale}, 15 * scale, 3, "mdd"
    )


def test_stages_are_those_of_volumes_near_the_median(scene):
    figures = summary([sample(9)] * (1 + WARM_UP) + [sample(s) for s in (1, 2, 2, 2, 50)], scene)
    assert figures["volume_s"] == 30
    assert sum(figures["stages"].values()) == pytest.approx(figures["pipeline_s"]) == 34
    assert figures["cold_s"] == 135
    assert figures["latency_s"]["p99"]["engine"] > 700


def test_things_that_are_compared_take_turns():
    order = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def calls(batch: int, count: int) -> NetworkCalls:
    shape = (batch, WINDOW, 16, 16)
    stacks = tuple(torch.rand(shape) for _ in range(4))
    return NetworkCalls(Counter({shape: count}), {shape: (*stacks, torch.zeros(batch, CONDITIONS))})


def test_operations_are_counted_for_every_batch():
    model = SlabUNet(*TINY)
    one = flop_of(model, calls(1, 1))
    stem = 2 * 4 * WINDOW * 8 * 9 * 16 * 16
    head = 2 * 8 * 8 * 9 * 16 * 16
    assert one > stem + head
    assert flop_of(model, calls(3, 2)) == pytest.approx(6 * one)


def test_the_listener_hears_every_batch_and_changes_none():
    model = SlabUNet(*TINY)
    eager = EagerRuntime(model, CPU)
    listener = Listener(eager)
    batch = calls(2, 1).batches[2, WINDOW, 16, 16]
    for _ in range(3):
        torch.testing.assert_close(listener(*batch), eager(*batch))
    assert listener.heard.counts == {(2, WINDOW, 16, 16): 3}
    assert listener.heard.total({(2, WINDOW, 16, 16): 0.5}) == 1.5


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("openvino 2026.4 cpu bfloat16", torch.bfloat16),
        ("tensorrt float16", torch.float16),
        ("onnxruntime", torch.float32),
    ],
    ids=str,
)
def test_a_runtime_s_precision_is_what_its_name_says(name, dtype):
    runtime = Listener(EagerRuntime(SlabUNet(*TINY), CPU))
    runtime.name = name
    assert precision_of(runtime) is dtype


def test_the_reference_is_counted_up_from_its_settings():
    config = ReferenceConfig()
    images = torch.rand(3, 64, 64)
    parts = reference_cost.reference_parts(config, torch.full((3, 18), 1 / 18), images, 1e10)
    whole = 1000 * 18 * 2
    assert parts.times["sampling"] > whole  # a smaller image was timed, and stands for more
    assert "of 32 x 32 pixels, scaled by operations" in parts.scaled_from["sampling"]
    assert parts.times["inr"] == config.inr_steps * 64 * 64 / (256 * 2)
    real = reference_cost.reference_parts(config, torch.full((3, 18), 1 / 18), images, 1e15)
    assert real.times["sampling"] == whole
    assert real.times["training"] == config.epochs * 3


def test_images_that_the_reference_has_to_pad_are_timed_too():
    config = ReferenceConfig(width=32)
    parts = reference_cost.reference_parts(config, torch.full((2, 12), 1 / 12), torch.rand(2, 35, 21), 1e15)
    assert all(0 < call() < 60 for call in parts.calls.values())
    assert parts.scaled_from["sampling"].startswith("1 evaluation, for 24 images")


def test_a_quick_bench_measures_less():
    whole = BenchSettings()
    assert QUICK.volumes < whole.volumes
    assert QUICK.reference_flop < whole.reference_flop
