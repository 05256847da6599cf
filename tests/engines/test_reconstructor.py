"""The engine call: units, repeatability, tiles, warm starts, guidance, and who is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sample_data import CAMERA, SHAPE, header, look, positions, specimen, sweep_of
from torch import Tensor

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.diffusion import shipped_weights
from microdiffusion.engines.pipeline import Engine, open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.projections.closed_form import (
    along_z,
    interpolation_matrix,
    tikhonov_matrix,
)
from microdiffusion.engines.projections.consistency import DataConsistency
from microdiffusion.errors import ConfigError, GeometryError, InputFileError, MissingFileError
from microdiffusion.frames import Reconstruction, StagePositions, Sweep
from microdiffusion.header import CameraNoise
from microdiffusion.optics import AxialProfile, projection_operator

METHODS = ("mdd", "inr", "tikhonov", "linear")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def configure(trained: Path, /, **changes: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "weights": trained,
        "device": "cpu",
        "threads": 1,
        "inr": InrConfig(cold_steps=60, warm_steps=20),
    }
    return EngineConfig(**(values | changes))


def uniform_sweep(value: float, shape: tuple[int, int, int] = SHAPE) -> Sweep:
    z_um = positions(1, shape[0], hold_out=False)[0]
    pixels = np.full((z_um.size, *shape[1:]), value, dtype=np.float32)
    stage = StagePositions.along_z(z_um)
    return Sweep(0, 0, 0, stage, pixels, stage[:0], np.empty((0, *shape[1:]), np.float32))


# Every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_is_a_volume_with_its_figures(weights: Path, method: str) -> None:
    sweep = sweep_of(specimen())
    before = sweep.projections.copy()
    reconstructor = Reconstructor(header(), configure(weights, method=method, fallback=False))
    result = reconstructor.reconstruct(sweep)
    assert result.volume.shape == SHAPE
    assert result.volume.dtype == np.float32
    assert result.volume.flags.c_contiguous
    assert np.isfinite(result.volume).all()
    assert result.served == method
    assert result.residual > 0
    assert result.held_out_error == result.candidate_errors[method] > 0
    others = {"mdd": {"inr", "tikhonov", "linear"}, "inr": {"tikhonov", "linear"}}
    assert set(result.candidate_errors) == {method} | others.get(method, set())
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert result.seconds["total"] >= max(result.seconds.values())
    assert result.inr_iterations == 0 or method in ("mdd", "inr")
    assert result.network_weight == (method == "mdd")
    np.testing.assert_array_equal(sweep.projections, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_without_a_judge_has_no_held_out_error(weights: Path, method: str) -> None:
    sweep = sweep_of(specimen())
    sweep.held_out_stage, sweep.held_out = sweep.held_out_stage[:0], sweep.held_out[:0]
    result = Reconstructor(header(), configure(weights, method=method, fallback=False)).reconstruct(sweep)
    assert result.served == method
    assert np.isnan(result.held_out_error)
    assert result.candidate_errors == {}


@pytest.mark.parametrize("method", ["tikhonov", "linear"])
@pytest.mark.parametrize("value", [100.0, 140.0, 3000.0])
def test_a_uniform_specimen_keeps_its_value_to_the_bit_of_rounding(
    weights: Path, method: str, value: float
) -> None:
    result = Reconstructor(header(), configure(weights, method=method)).reconstruct(uniform_sweep(value))
    np.testing.assert_allclose(result.volume, value, rtol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("photons", [40.0, 400.0])
def test_a_noisy_uniform_specimen_keeps_its_mean(weights: Path, method: str, photons: float) -> None:
    sweep = sweep_of(np.full(SHAPE, photons, np.float32))
    config = configure(weights, method=method, fallback=False, inr=InrConfig(cold_steps=300))
    result = Reconstructor(header(), config).reconstruct(sweep)
    assert result.volume.mean() - CAMERA.offset == pytest.approx(photons, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_specimen_stays_at_the_cameras_offset(weights: Path, method: str) -> None:
    dark = np.zeros(SHAPE, np.float32)
    result = Reconstructor(header(), configure(weights, method=method)).reconstruct(sweep_of(dark))
    assert result.volume.min() >= CAMERA.offset - 1e-2
    assert abs(result.volume.mean() - CAMERA.offset) < 2 * CAMERA.read_noise


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_darker_than_the_offset(weights: Path, method: str) -> None:
    result = Reconstructor(header(), configure(weights, method=method, fallback=False)).reconstruct(
        sweep_of(specimen())
    )
    assert result.volume.min() >= CAMERA.offset - 1e-2
    assert result.volume.max() > CAMERA.offset + 30


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_offset_clips_nothing_that_was_measured(weights: Path, method: str) -> None:
    wrong = header(camera=CameraNoise(offset=400.0, gain=1.0, read_noise=2.0))
    result = Reconstructor(wrong, configure(weights, method=method, fallback=False)).reconstruct(
        uniform_sweep(150.0)
    )
    np.testing.assert_allclose(result.volume, 150.0, atol=15)


@pytest.mark.parametrize("method", METHODS)
def test_the_answer_scales_with_the_camera(weights: Path, method: str) -> None:
    """Twice the counts per photon: the same specimen, twice as high above the offset."""
    sweep, louder = sweep_of(specimen()), sweep_of(specimen())
    louder.projections = 2 * (sweep.projections - CAMERA.offset) + CAMERA.offset
    louder.held_out = 2 * (sweep.held_out - CAMERA.offset) + CAMERA.offset
    config = configure(weights, method=method, fallback=False)
    camera = CameraNoise(offset=CAMERA.offset, gain=2.0, read_noise=2 * CAMERA.read_noise)
    one = Reconstructor(header(), config).reconstruct(sweep).volume - CAMERA.offset
    two = Reconstructor(header(camera=camera), config).reconstruct(louder).volume - CAMERA.offset
    np.testing.assert_allclose(two, 2 * one, atol=0.02 * one.max())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(weights: Path, method: str) -> None:
    config = configure(weights, method=method, seed=3, steps=3, interpolation=1.0)
    results = [Reconstructor(header(), config).reconstruct(sweep_of(specimen())) for _ in range(2)]
    np.testing.assert_array_equal(results[0].volume, results[1].volume)
    assert results[0].candidate_errors == results[1].candidate_errors


def test_another_seed_gives_another_sample(weights: Path) -> None:
    volumes = [
        Reconstructor(header(), configure(weights, seed=seed, fallback=False, interpolation=1.0))
        .reconstruct(sweep_of(specimen()))
        .volume
        for seed in (0, 1)
    ]
    assert not np.array_equal(*volumes)


@pytest.mark.parametrize("shape", [(24, 32, 32), (17, 31, 45), (6, 16, 16)], ids=str)
@pytest.mark.parametrize("method", ["mdd", "tikhonov"])
def test_any_shape_will_do(weights: Path, method: str, shape: tuple[int, int, int]) -> None:
    sweep = sweep_of(specimen(shape=shape))
    result = Reconstructor(header(shape), configure(weights, method=method)).reconstruct(sweep)
    assert result.volume.shape == shape


@pytest.mark.parametrize("method", METHODS)
def test_a_single_slab_is_enough(weights: Path, method: str) -> None:
    sweep = sweep_of(specimen())
    sweep.stage, sweep.projections = sweep.stage[1:2], sweep.projections[1:2]
    result = Reconstructor(header(), configure(weights, method=method)).reconstruct(sweep)
    assert np.isfinite(result.volume).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_lost_frame_leaves_a_volume(weights: Path, method: str) -> None:
    """Its slab is filled from the neighbours; where others looked, they are believed."""
    truth = specimen()
    reconstructor = Reconstructor(header(), configure(weights, method=method))
    reconstructor.reconstruct(sweep_of(truth, 0))
    gap = sweep_of(truth, 0)
    gap.stage, gap.projections = (
        gap.stage[np.arange(len(gap.stage)) != 1],
        np.delete(gap.projections, 1, axis=0),
    )
    result = reconstructor.reconstruct(gap)
    operator = projection_operator(
        gap.stage.z_um, AxialProfile.box(12.0), z0_um=0.0, voxel_z_um=2.0, shape_z=SHAPE[0]
    )
    seen = np.tensordot(operator, result.volume, axes=1)
    assert np.abs(seen - gap.projections).mean() < 25


def test_a_sweep_of_nothing_and_a_slab_outside_are_refused(weights: Path) -> None:
    reconstructor = Reconstructor(header(), configure(weights, method="linear"))
    sweep = sweep_of(specimen())
    outside = replace(sweep, stage=StagePositions.along_z(sweep.stage.z_um + 400))
    with pytest.raises(GeometryError, match="lies outside of the volume"):
        reconstructor.reconstruct(outside)
    empty = replace(sweep, stage=sweep.stage[:0], projections=sweep.projections[:0])
    with pytest.raises(GeometryError, match="holds no projection"):
        reconstructor.reconstruct(empty)
    assert reconstructor.reconstruct(sweep).served == "linear"


# The closed forms ---------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 46.0), min_size=1, max_size=8, unique=True), st.integers(4, 40))
@settings(max_examples=50)
def test_linear_answers_keep_a_uniform_specimen(places: list[float], slices: int) -> None:
    z_um = np.array([place * (slices - 1) / 23 for place in places])
    operator = projection_operator(
        z_um, AxialProfile.box(12.0), z0_um=0.0, voxel_z_um=2.0, shape_z=max(slices, 4)
    )
    ones = np.ones(z_um.size)
    np.testing.assert_allclose(tikhonov_matrix(operator) @ ones, 1.0, atol=1e-4)
    np.testing.assert_allclose(interpolation_matrix(z_um / 2.0, slices) @ ones, 1.0, atol=1e-12)


def test_consistency_agrees_with_clean_projections_and_ignores_noise() -> None:
    truth = torch.from_numpy(specimen()) / 400
    operator = torch.from_numpy(
        projection_operator(
            positions(1, hold_out=False)[0], AxialProfile.box(12.0), z0_um=0.0, voxel_z_um=2.0, shape_z=24
        ).astype(np.float32)
    )
    pull = DataConsistency(operator)
    clean = along_z(operator, truth)
    start = truth.mean(dim=0, keepdim=True).expand_as(truth).contiguous()
    quiet = pull(start, clean, torch.full_like(clean, 1e-8))
    before = (along_z(operator, start) - clean).abs().mean()
    after = (along_z(operator, quiet) - clean).abs().mean()
    assert after < 0.1 * before
    assert quiet.min() >= 0
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    kept = pull(truth, noisy, torch.full_like(clean, 0.01))
    assert (kept - truth).abs().mean() < 0.3 * (noisy - clean).abs().mean()


# The sampler --------------------------------------------------------------------------------------


def test_tiles_agree_with_the_untiled_volume(weights: Path) -> None:
    shape = (12, 95, 79)
    sweep = sweep_of(specimen(shape=shape))
    # Torch rounds alike at every size; OpenVINO in half precision does not.
    alike = configure(weights, runtime="torch", fallback=False, interpolation=0.0)
    volumes = {
        tile: Reconstructor(header(shape), alike.model_copy(update={"tile": tile})).reconstruct(sweep).volume
        for tile in (32, 256)
    }
    span = volumes[256].max() - volumes[256].min()
    np.testing.assert_allclose(volumes[32], volumes[256], atol=1e-4 * span)


def test_guidance_runs_and_changes_the_answer(weights: Path) -> None:
    results = [
        Reconstructor(
            header(), configure(weights, guidance=guidance, fallback=False, interpolation=0.0)
        ).reconstruct(sweep_of(specimen()))
        for guidance in (0.0, 1.8)
    ]
    assert {result.served for result in results} == {"mdd"}
    assert np.isfinite(results[1].volume).all()
    assert results[1].volume.min() >= CAMERA.offset - 1e-2
    assert not np.allclose(results[0].volume, results[1].volume, atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "guidance", "passes"), [(1, 0.0, 1), (2, 0.0, 2), (8, 0.0, 8), (2, 0.3, 4)]
)
def test_the_network_is_asked_as_often_as_configured(
    weights: Path, steps: int, guidance: float, passes: int
) -> None:
    config = configure(weights, steps=steps, guidance=guidance, fallback=False)
    engine = open_engine(config)
    counter = _Counter(engine)
    Reconstructor(header(), config, replace(engine, runtime=counter)).reconstruct(sweep_of(specimen()))
    assert counter.slices == passes * SHAPE[0]


@pytest.mark.parametrize("consistency", [True, False])
def test_consistency_brings_the_answer_closer_to_the_projections(weights: Path, consistency: bool) -> None:
    config = configure(weights, consistency=consistency, fallback=False)
    engine = replace(open_engine(config), runtime=_Stub(lambda prior: prior * 0 + 0.3))
    result = Reconstructor(header(), config, engine).reconstruct(sweep_of(specimen()))
    assert (result.residual < 4) == consistency, result.residual


# The INR ------------------------------------------------------------------------------------------


def test_each_session_has_an_inr_of_its_own(weights: Path) -> None:
    config = configure(weights, method="inr", inr=InrConfig(cold_steps=2, warm_steps=1))
    reconstructor = Reconstructor(header(channels=("a", "b"), positions=("0", "1")), config)
    results = []
    for channel, position in ((0, 0), (1, 0), (0, 1), (0, 0), (1, 0)):
        sweep = sweep_of(specimen(seed=channel + 2 * position))
        results.append(reconstructor.reconstruct(replace(sweep, channel=channel, position=position)))
    assert [result.inr_iterations for result in results] == [2, 2, 2, 0, 0]  # nothing is new
    assert [result.merged for result in results] == [False] * 3 + [True] * 2


def test_a_specimen_of_quite_another_brightness_starts_anew(weights: Path) -> None:
    config = configure(weights, method="inr", memory="sweep", inr=InrConfig(cold_steps=2, warm_steps=1))
    reconstructor = Reconstructor(header(), config)
    steps = [
        reconstructor.reconstruct(sweep_of(gain * specimen(), number)).inr_iterations
        for number, gain in enumerate((1.0, 1.1, 4.0))
    ]
    assert steps == [2, 1, 2]


def test_the_inr_explains_what_it_was_fitted_to(weights: Path) -> None:
    limits = InrConfig(cold_steps=400)
    result = Reconstructor(
        header(), configure(weights, method="inr", fallback=False, inr=limits)
    ).reconstruct(sweep_of(specimen()))
    assert 0.3 < result.residual < 1.5


# Who is served ------------------------------------------------------------------------------------


class _Stub:
    """A runtime whose network is a function of the prior."""

    device = torch.device("cpu")
    name = "stub"
    multiple = 8

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        result: Tensor = self._network(prior[:, 4:12])
        return result


class _Counter:
    device = torch.device("cpu")
    name = "counter"

    def __init__(self, engine: Engine) -> None:
        assert engine.runtime is not None
        self._runtime = engine.runtime
        self.multiple = engine.runtime.multiple
        self.slices = 0

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        result = self._runtime(state, prior, deviation, image, conditions)
        self.slices += result.shape[0] * result.shape[1]
        return result


def noise(prior: Tensor) -> Tensor:
    return torch.rand(prior.shape, generator=torch.Generator().manual_seed(0))


def serve_with(network: Any, weights: Path, *sweeps: Sweep, **changes: Any) -> list[Reconstruction]:
    config = configure(weights, consistency=False, inr=InrConfig(cold_steps=300), **changes)
    reconstructor = Reconstructor(header(), config, replace(open_engine(config), runtime=_Stub(network)))
    return [reconstructor.reconstruct(sweep) for sweep in sweeps]


def test_a_bad_network_is_not_served_and_the_next_sweeps_remember(weights: Path) -> None:
    judged, unjudged = sweep_of(specimen(), 0), sweep_of(specimen(), 1)
    unjudged.held_out_stage, unjudged.held_out = unjudged.held_out_stage[:0], unjudged.held_out[:0]
    first, second = serve_with(noise, weights, judged, unjudged)
    errors = first.candidate_errors
    assert errors["mdd"] > 3 * errors["tikhonov"]
    assert first.served == min(errors, key=errors.__getitem__) in ("inr", "tikhonov")
    assert first.held_out_error == errors[first.served]
    assert second.served == first.served
    closed = Reconstructor(header(), configure(weights, method="tikhonov")).reconstruct(judged)
    if first.served == "tikhonov":
        np.testing.assert_allclose(first.volume, closed.volume, rtol=1e-4)


def test_a_bad_network_and_no_time_for_the_inr_leave_nothing_worse_than_the_linear_answer(
    weights: Path,
) -> None:
    config = configure(weights, consistency=False, inr=InrConfig(cold_steps=1))
    engine = replace(open_engine(config), runtime=_Stub(noise))
    sweep, truth = sweep_of(specimen()), specimen() + CAMERA.offset
    result = Reconstructor(header(), config, engine).reconstruct(sweep)
    assert result.served == "inr"
    closed = Reconstructor(header(), configure(weights, method="tikhonov")).reconstruct(sweep)
    assert np.square(result.volume - truth).mean() < 1.05 * np.square(closed.volume - truth).mean()


def test_without_fallback_the_network_is_served_whatever_the_judge_says(weights: Path) -> None:
    (result,) = serve_with(noise, weights, sweep_of(specimen()), fallback=False)
    assert result.served == "mdd"
    assert result.held_out_error == result.candidate_errors["mdd"] > result.candidate_errors["tikhonov"]


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"weights": Path("gone.safetensors")}, MissingFileError, "do not exist"),
        ({"weights": Path(__file__)}, InputFileError, "does not hold weights"),
        ({"device": "cuda:77"}, ConfigError, r"engine\.device is 'cuda:77'"),
    ],
    ids=["missing", "another file", "no such device"],
)
def test_what_cannot_be_opened_is_refused(
    weights: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Reconstructor(header(), configure(weights, **changes))


def test_the_linear_methods_need_no_weights() -> None:
    config = EngineConfig(method="tikhonov", weights=Path("gone.safetensors"), device="cpu", threads=1)
    assert open_engine(config).weights == ""


def test_the_shipped_weights_load_and_are_no_worse_than_their_own_start(weights: Path) -> None:
    if not shipped_weights().is_file():
        pytest.skip(f"the weights that ship with mdd are not there: {shipped_weights()}")
    config = configure(weights, weights=None, fallback=False, inr=InrConfig())
    sweep = sweep_of(specimen())
    result = Reconstructor(header(), config).reconstruct(sweep)
    assert result.served == "mdd"
    errors = result.candidate_errors
    assert errors["mdd"] < 1.2 * min(errors.values())
    truth = specimen() + CAMERA.offset
    linear = Reconstructor(header(), configure(weights, method="linear")).reconstruct(sweep)
    mistakes = [float(np.square(each.volume - truth).mean()) for each in (result, linear)]
    assert mistakes[0] < mistakes[1]


def test_the_sample_is_what_it_is_taken_for() -> None:
    """The specimen of these tests through the operator: photons, offset, noise."""
    truth = specimen()
    z_um = positions(1, hold_out=False)[0]
    pixels = look(truth, z_um).astype(float)
    slabs = truth.reshape(4, 6, *SHAPE[1:]).mean(axis=1)
    error = (pixels - CAMERA.offset - slabs) / np.sqrt(slabs + CAMERA.read_noise**2)
    assert abs(error.mean()) < 0.1
    assert error.std() == pytest.approx(1.0, abs=0.1)


# Pedestals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["inr", "mdd"])
@pytest.mark.parametrize("pedestal", [0.0, 1000.0, 10000.0])
def test_a_pedestal_that_nobody_declared_does_no_harm(weights: Path, pedestal: float, method: str) -> None:
    truth = specimen()
    plain = sweep_of(truth)
    raised = replace(plain, projections=plain.projections + np.float32(pedestal))
    unaware = header().model_copy(update={"camera": CameraNoise()})
    linear = Reconstructor(unaware, EngineConfig(method="linear")).reconstruct(raised).volume
    result = Reconstructor(unaware, configure(weights, method=method)).reconstruct(raised)
    own, simple = (np.sqrt(np.mean((v - pedestal - truth) ** 2)) for v in (result.volume, linear))
    assert own < 1.5 * simple


def test_an_answer_that_does_not_explain_its_projections_is_not_served(weights: Path) -> None:
    config = configure(weights, consistency=False)
    engine = replace(open_engine(config), runtime=_Stub(lambda prior: prior * 0 + 50.0))
    sweep = sweep_of(specimen())
    blind = replace(sweep, held_out_stage=sweep.held_out_stage[:0], held_out=sweep.held_out[:0])
    assert Reconstructor(header(), config, engine).reconstruct(blind).served != "mdd"
