"""The reference method: its sizes, its formulas, its switches, its shortcut, and what it may look at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import header, specimen, sweep_of, write_sample
from torch import Tensor, nn

from microdiffusion.config.engine_tables import ReferenceConfig
from microdiffusion.config.load import load_config
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.server.serve import serve
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.projections.closed_form import nearest_slab
from microdiffusion.engines.reference import ddpm
from microdiffusion.engines.reference.condition import PositionEmbedding, ProjectionEmbedding, encode_position
from microdiffusion.engines.reference.method import NEIGHBOURS, ReferenceMethod, neighbours
from microdiffusion.engines.reference.mlp_inr import FourierMlp, fit_field, inr_rate
from microdiffusion.engines.reference.unet import UNet
from microdiffusion.errors import ConfigError
from microdiffusion.runfile.reader import open_run

SHAPE = (12, 16, 16)
CENTRES = np.array([2.5, 8.5])
TINY: dict[str, Any] = {
    "inr_steps": 12,
    "inr_batch_pixels": 64,
    "inr_frequencies": 16,
    "epochs": 1,
    "width": 32,
    "timesteps": 20,
    "guidance": 0.0,
}
CPU = torch.device("cpu")


def operator() -> Tensor:
    """Return two slabs of six slices, side by side."""
    matrix = torch.zeros(2, SHAPE[0])
    for m in range(2):
        matrix[m, 6 * m : 6 * m + 6] = 1 / 6
    return matrix


def images(seed: int = 0) -> Tensor:
    grid = torch.linspace(0, 3, 16)
    waves = torch.sin(grid[:, None] + torch.arange(2.0)[:, None, None]) * torch.cos(grid * (1 + seed))
    return 0.5 + 0.4 * waves


def method(**changes: Any) -> ReferenceMethod:
    return ReferenceMethod(ReferenceConfig(**(TINY | changes)), SHAPE, CPU)


@pytest.fixture(scope="module")
def trained() -> ReferenceMethod:
    """Return a method after training; tests may sample from it and change its configuration's copy only."""
    reference = method(timesteps=1000, epochs=6, inr_steps=60, guidance=1.8)
    reference.reconstruct(operator(), CENTRES, images())
    return reference


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes and formulas -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        pytest.param(lambda: FourierMlp((130, 128, 128)), 96_833, id="INR, 96.8 k"),
        pytest.param(lambda: UNet(160), 10_445_121, id="U-Net, 10.4 M"),
        pytest.param(PositionEmbedding, 21 * 32 + 32 + 2 * (32 * 32 + 32), id="E_pos, 21 to 32"),
        pytest.param(ProjectionEmbedding, 11_167_680 + 8192 * 128 + 128, id="E_img, 8192 to 128"),
    ],
)
def test_networks_have_the_papers_sizes(module: Any, parameters: int) -> None:
    assert count(module()) == parameters


def test_the_field_is_an_mlp_of_each_voxels_features() -> None:
    field = FourierMlp(SHAPE, frequencies=8, seed=3)
    pixels, z = torch.tensor([[0.0, 5.0], [7.0, 2.0], [15.0, 15.0]]), torch.tensor([0.0, 4.5, 11.0])

    def plain(place: Tensor) -> float:
        coordinates = (2 * place / torch.tensor(SHAPE) - 1).roll(-1)  # row, column, slice
        angle = 2 * math.pi * field.frequencies @ coordinates
        features = torch.cat([angle.sin(), angle.cos()])
        h = torch.relu(field.entry(features))
        for layer in field.before:
            h = torch.relu(layer(h))
        h = torch.relu(field.skip(torch.cat([h, features])))
        for layer in field.after:
            h = torch.relu(layer(h))
        return field.head(torch.relu(field.narrow(h))).item()

    expected = [[plain(torch.cat([k[None], pixel])) for k in z] for pixel in pixels]
    np.testing.assert_allclose(field(z, pixels).detach(), expected, atol=2e-6)


def test_the_fields_rate_falls_to_a_tenth() -> None:
    config = ReferenceConfig()
    assert inr_rate(config, 0) == inr_rate(config, 9) == pytest.approx(1e-3 * 0.9954)
    assert inr_rate(config, 10) == pytest.approx(1e-3 * 0.9954**2)
    assert inr_rate(config, 4999) == pytest.approx(1e-4, rel=0.01)


def test_chunks_of_a_full_batch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = []
    for chunk in (100, 1024):
        monkeypatch.setattr("microdiffusion.engines.reference.mlp_inr.CHUNK", chunk)
        field = FourierMlp(SHAPE, frequencies=8)
        fit_field(field, operator(), images(), ReferenceConfig(inr_steps=2))
        fields.append(field.volume())
    torch.testing.assert_close(*fields, atol=1e-5, rtol=1e-4)


def test_the_field_learns_the_projections() -> None:
    field = FourierMlp(SHAPE, frequencies=32, bandwidth=1.0)
    everything = torch.arange(16 * 16)
    before = field.loss(operator(), images(), everything).item()
    fit_field(field, operator(), images(), ReferenceConfig(inr_steps=100, inr_rate=4e-3))
    assert field.loss(operator(), images(), everything).item() < 0.05 * before


def test_positions_are_encoded_with_ten_levels() -> None:
    z = 0.3
    waves = [f(2**i * z) for i in range(10) for f in (math.sin, math.cos)]
    np.testing.assert_allclose(encode_position(torch.tensor([z]))[0], [z, *waves], rtol=2e-4, atol=2e-5)


def test_interpolation_and_guidance_by_hand() -> None:
    state, prior = torch.tensor([2.0]), torch.tensor([1.0])
    assert float(ddpm.interpolated(state, prior, 0.1)) == pytest.approx(0.1 * 2 + 0.9 * 1)
    assert float(ddpm.guided(torch.tensor([3.0]), torch.tensor([2.0]), 1.8)) == pytest.approx(
        2.8 * 3 - 1.8 * 2
    )


def test_the_schedule_is_linear_and_an_ancestral_step_is_hos() -> None:
    schedule = ddpm.Schedule(1000)
    assert float(schedule.beta[0]) == pytest.approx(1e-4)
    assert float(schedule.beta[-1]) == pytest.approx(0.02)
    one = torch.ones(1, 1, 1, 1)
    beta = [1e-4 + k * (0.02 - 1e-4) / 999 for k in range(3)]
    kept = math.prod(1 - b for b in beta)
    mean = (1 - beta[2] / math.sqrt(1 - kept) * 0.5) / math.sqrt(1 - beta[2])
    assert float(schedule.ancestral(one, 2, 0.5 * one, 2 * one)) == pytest.approx(
        mean + math.sqrt(beta[2]) * 2, rel=1e-6
    )
    assert float(schedule.ancestral(one, 0, 0 * one, 9 * one)) == pytest.approx(1 / math.sqrt(1 - 1e-4))
    noised = schedule.noised(one, torch.tensor([2]), 3 * one)
    assert float(noised) == pytest.approx(math.sqrt(kept) + 3 * math.sqrt(1 - kept), rel=1e-6)


def test_neighbours_are_averaged_as_the_reference_does() -> None:
    z, weights = neighbours("reference", 20)
    slope = weights @ z
    assert weights[10, 7:13].tolist() == pytest.approx(list(NEIGHBOURS))
    assert float(slope[10]) == pytest.approx(9.5)  # half a slice off, as in the authors' code
    z, weights = neighbours("centred", 20)
    assert float((weights @ z)[10]) == pytest.approx(10.0)
    z, weights = neighbours("none", 20)
    assert torch.equal(weights @ z, torch.arange(20.0))


@pytest.mark.parametrize("kind", ["reference", "centred", "none"])
@pytest.mark.parametrize("slices", [1, 2, 5, 20])
def test_averages_keep_a_uniform_volume(kind: str, slices: int) -> None:
    _, weights = neighbours(kind, slices)
    assert weights.shape[0] == slices
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(slices))


@pytest.mark.parametrize(
    ("shortcut", "share", "steps"),
    [
        pytest.param(4, 0.1, 4, id="as shipped"),
        pytest.param(0, 0.1, 1000, id="0 stands for all"),
        pytest.param(1, 0.1, 3, id="never fewer than forget the start"),
        pytest.param(4, 0.5, 10, id="a weaker pull takes longer"),
        pytest.param(4, 1.0, 1000, id="without interpolation nothing is forgotten"),
        pytest.param(4, 0.0, 4, id="the INR alone"),
        pytest.param(5000, 0.1, 1000, id="never more than there are"),
    ],
)
def test_how_many_steps_are_sampled(shortcut: int, share: float, steps: int) -> None:
    assert ddpm.steps_needed(1000, shortcut, share) == steps


# The shortcut -------------------------------------------------------------------------------------


def test_the_last_four_steps_give_what_more_give(
    trained: ReferenceMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = nearest_slab(CENTRES, SHAPE[0])
    some = range(4, 7)
    last, evaluations = trained.sample(images(), nearest, wanted=some)
    monkeypatch.setattr(trained, "config", trained.config.model_copy(update={"shortcut": 20}))
    longer, _ = trained.sample(images(), nearest, wanted=some)
    assert evaluations == len(some) * 4 * 2
    assert not torch.equal(longer, last)
    assert -10 * math.log10(float((longer - last).square().mean())) > 50
    # All thousand of them, from pure noise, with a network's stand-in that is as steep as one.
    prior = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def predict(state: Tensor, t: int, conditional: bool) -> Tensor:
        return 3 * torch.tanh(2 * state + t / 1000 + conditional)

    drawn = [ddpm.draw(ddpm.Schedule(), predict, prior, ddpm.Sampling(steps)) for steps in (1000, 4)]
    assert -10 * math.log10(float((drawn[0] - drawn[1]).square().mean())) > 50


def test_without_interpolation_the_start_matters(trained: ReferenceMethod) -> None:
    prior = torch.zeros(1, 1, 16, 16)

    def predict(state: Tensor, t: int, conditional: bool) -> Tensor:
        return torch.zeros_like(state)

    drawn = [
        ddpm.draw(ddpm.Schedule(60), predict, prior, ddpm.Sampling(steps, 1.0, 0.0)) for steps in (60, 4)
    ]
    assert float((drawn[0] - drawn[1]).square().mean()) > 0.1


# Switches -----------------------------------------------------------------------------------------


def calls(monkeypatch: pytest.MonkeyPatch, reference: ReferenceMethod) -> list[Tensor]:
    """Return the conditions that the U-Net is shown from now on."""
    assert reference.networks is not None
    seen: list[Tensor] = []
    forward = reference.networks.unet.forward

    def note(state: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition.detach().clone())
        return forward(state, t, condition)

    monkeypatch.setattr(reference.networks.unet, "forward", note)
    return seen


@pytest.mark.parametrize(
    ("changes", "evaluations", "position", "image"),
    [
        pytest.param({}, 2, True, True, id="as in the paper"),
        pytest.param({"guidance": 0.0}, 1, True, True, id="without guidance"),
        pytest.param({"image_condition": False}, 2, True, False, id="without E_img"),
        pytest.param({"position_condition": False}, 2, False, True, id="without E_pos"),
    ],
)
def test_a_switch_takes_away_its_own_part_alone(
    monkeypatch: pytest.MonkeyPatch,
    trained: ReferenceMethod,
    changes: dict[str, Any],
    evaluations: int,
    position: bool,
    image: bool,
) -> None:
    config = trained.config.model_copy(update=changes)
    monkeypatch.setattr(trained, "config", config)
    seen = calls(monkeypatch, trained)
    _, counted = trained.sample(images(), nearest_slab(CENTRES, SHAPE[0]))
    assert counted == SHAPE[0] * 4 * evaluations == sum(len(condition) for condition in seen)
    conditional = seen[0]
    assert bool(conditional[:, :32].any()) == position
    assert bool(conditional[:, 32:].any()) == image
    if evaluations == 2:
        assert not seen[1].any()  # the unconditional branch


def test_an_ablated_condition_is_not_trained_either() -> None:
    for condition in (True, False):
        reference = method(image_condition=condition)
        reference.field = reference._new_field()
        reference.train(operator(), images())
        assert reference.networks is not None
        gradients = [value.grad for value in reference.networks.projection.parameters()]
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients) == condition


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_condition_dropout_hides_the_condition_in_training(
    monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    seen: list[bool] = []

    def note(self: UNet, state: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        seen.append(bool(condition.any()))
        return state + self.condition(condition).mean()

    monkeypatch.setattr(UNet, "forward", note)
    reference = method(condition_dropout=dropout, epochs=10)
    reference.field = reference._new_field()
    reference.train(operator(), images())
    assert len(seen) == 20
    assert (0 < seen.count(False) < 20) == (dropout > 0)


def test_training_leaves_the_inr_as_it_is() -> None:
    reference = method()
    before = [value.clone() for value in reference.field.parameters()]
    reference.train(operator(), images())
    assert all(map(torch.equal, before, reference.field.parameters()))


def test_without_interpolation_every_step_is_sampled() -> None:
    answer = method(interpolation=1.0).reconstruct(operator(), CENTRES, images())
    assert answer.evaluations == SHAPE[0] * TINY["timesteps"]


def test_the_answer_stays_with_the_inr_where_it_is_pulled(trained: ReferenceMethod) -> None:
    volume, _ = trained.sample(images(), nearest_slab(CENTRES, SHAPE[0]))
    assert trained.field is not None
    z, weights = neighbours("reference", SHAPE[0])
    smooth = torch.tensordot(weights, trained.field.volume(z), 1)
    assert float((volume - smooth).square().mean().sqrt()) < 0.1


# Repeatability, and what it may look at ------------------------------------------------------------


def test_the_seed_decides_everything() -> None:
    def answer(seed: int) -> Tensor:
        torch.rand(seed + 1)  # whoever drew numbers before must not matter
        reference = ReferenceMethod(ReferenceConfig(**TINY), SHAPE, CPU, seed=seed)
        return reference.reconstruct(operator(), CENTRES, images()).volume

    one, again, other = answer(5), answer(5), answer(6)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_nobody_elses_random_numbers_are_drawn() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    method().reconstruct(operator(), CENTRES, images())
    assert torch.equal(torch.rand(3), expected)


def test_each_slices_condition_is_the_closest_measured_projection(trained: ReferenceMethod) -> None:
    seen: list[Tensor] = []
    assert trained.networks is not None
    handle = trained.networks.projection.register_forward_hook(
        lambda module, given, out: seen.append(given[0])
    )
    trained.sample(images(), nearest_slab(CENTRES, SHAPE[0]))
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(seen[0][:, 0], images())  # the two measured ones, nothing else
    assert nearest_slab(CENTRES, SHAPE[0]).tolist() == [0] * 6 + [1] * 6


def test_held_out_projections_do_not_reach_it() -> None:
    config = EngineConfig(method="microdiffusion", device="cpu", reference=ReferenceConfig(**TINY))
    volumes = []
    for factor in (1.0, 3.0):
        sweep = sweep_of(specimen(shape=SHAPE))
        sweep.held_out = sweep.held_out * np.float32(factor)
        volumes.append(Reconstructor(header(SHAPE), config).reconstruct(sweep).volume)
    np.testing.assert_array_equal(*volumes)
    sweep = sweep_of(specimen(shape=SHAPE))
    sweep.projections = sweep.projections * np.float32(1.1)
    assert not np.array_equal(Reconstructor(header(SHAPE), config).reconstruct(sweep).volume, volumes[0])


@pytest.mark.parametrize(("retrain", "again"), [(True, True), (False, False)])
def test_networks_live_for_their_session(retrain: bool, again: bool) -> None:
    reference = method(retrain=retrain)
    reference.reconstruct(operator(), CENTRES, images())
    first = reference.networks
    second = reference.reconstruct(operator(), CENTRES, images(1))
    assert (reference.networks is not first) == again
    assert (second.updates > 0) == again
    assert second.inr_steps == TINY["inr_steps"]


def test_odd_sizes_are_padded_and_cut_back() -> None:
    reference = ReferenceMethod(ReferenceConfig(**TINY), (SHAPE[0], 19, 10), CPU)
    answer = reference.reconstruct(operator(), CENTRES, images()[:, :, :10].repeat(1, 2, 1)[:, :19])
    assert answer.volume.shape == (SHAPE[0], 19, 10)
    assert bool(answer.volume.isfinite().all())


# The way through the daemon's doors ----------------------------------------------------------------


def test_reconstruct_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = write_sample(tmp_path / "projections.h5", sweeps=1), tmp_path / "run.h5"
    settings = [f"--set=engine.reference.{key}={value}" for key, value in TINY.items()]
    arguments = ["reconstruct", str(source), "--output", str(output), "--method", "microdiffusion"]
    assert main([*arguments, "--set=engine.threads=1", "--device", "cpu", *settings]) == 0
    said = capsys.readouterr().out
    assert "12 INR updates of 64 pixels and 1 epochs" in said
    assert "hours on a GPU" in said
    assert "microdiffusion, " in said
    with open_run(output) as run:
        assert np.isfinite(run.volume[0]).all()
        assert float(np.std(run.volume[0])) > 0
        assert run.values("seconds/sampler")[0] > 0


def test_it_cannot_be_live() -> None:
    config = Config(engine=EngineConfig(method="microdiffusion"))
    with pytest.raises(ConfigError, match="cannot be live"):
        serve(config)


def test_every_number_is_a_key() -> None:
    config = load_config(
        None,
        overrides={"engine.reference.guidance": "0", "engine.reference.retrain": "false"},
        environ={"MDD_ENGINE__REFERENCE__TIMESTEPS": "50"},
    ).engine.reference
    assert (config.guidance, config.retrain, config.timesteps) == (0, False, 50)
    paper = ReferenceConfig()
    assert (paper.inr_steps, paper.inr_batch_pixels, paper.epochs, paper.timesteps) == (5000, 0, 2001, 1000)
    assert (paper.guidance, paper.interpolation, paper.rate, paper.width) == (1.8, 0.1, 2e-4, 64)
