"""Adapting to a stack of the specimen: what is kept aside, the verdict, and what the weights say of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from support.sample_data import write_sample

from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.engines import training
from microdiffusion.engines.diffusion import Belonging, load_denoiser, save_denoiser
from microdiffusion.engines.training import specimen as specimens
from microdiffusion.engines.training.adapt_volume import AdaptedToVolume, adapt_to_volume, best_way, between
from microdiffusion.engines.training.degrade import Optics
from microdiffusion.engines.training.fine_tune import AdaptPlan, fine_tune
from microdiffusion.engines.training.session_optics import PLANNED_NOISE, planned_optics
from microdiffusion.engines.training.specimen import MARGIN, Specimen, cube_pool, read_specimen
from microdiffusion.engines.training.trial import Served, Worth, make_trial
from microdiffusion.errors import GeometryError, InputFileError
from microdiffusion.optics import AxialProfile

OPTICS = planned_optics(AxialProfile.box(6.0), 8.0, 1.0)
CONFIG = EngineConfig(device="cpu", runtime="torch", inr={"cold_steps": 3, "warm_steps": 2})
VOXEL = (1.0, 1.0, 1.0)


def stack(shape: tuple[int, ...] = (20, 24, 80), seed: int = 0) -> np.ndarray:
    """Return a stack of bright rods."""
    volume = np.random.default_rng(seed).uniform(0, 10, shape).astype(np.float32)
    volume[..., 4:12, 10:14, :] += 200
    volume[..., 30:33] += 100
    return volume


def write_stack(path: Path, volume: np.ndarray, voxel: tuple[float, float, float] | None = None) -> Path:
    """Write a stack."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("volume", data=volume)
        if voxel is not None:
            data.attrs["voxel_size_um"] = voxel
    return path


# --- the stack ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tall", [False, True])
def test_a_block_with_a_margin_is_kept_aside(tmp_path: Path, tall: bool) -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.float32), (20, 24, 100))
    volume = np.swapaxes(ramp, 1, 2) if tall else ramp
    found = read_specimen(write_stack(tmp_path / "s.h5", volume), VOXEL)
    aside, kept = (np.unique(each.round(4)) for each in (found.aside, found.volumes[0]))
    assert not set(aside) & set(kept)
    assert len(aside) == 25
    assert len(kept) == 100 - 25 - MARGIN
    assert sorted(found.aside.shape) == [20, 24, 25]


def test_the_end_with_more_structure_is_kept_aside(tmp_path: Path) -> None:
    volume = np.zeros((20, 24, 100), np.float32)
    volume[:, 5:9, :20] = 1.0
    assert read_specimen(write_stack(tmp_path / "s.h5", volume), VOXEL).aside.max() == 1.0


def test_every_time_point_is_trained_on_and_none_shows_what_is_kept_aside(tmp_path: Path) -> None:
    found = read_specimen(write_stack(tmp_path / "s.h5", stack((3, 20, 24, 80))), VOXEL)
    assert [each.shape for each in found.volumes] == [(20, 24, 80 - 24 - MARGIN)] * 3


def test_voxels_become_the_session_s(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "s.h5", stack((40, 24, 80)), (0.5, 1.0, 2.0))
    found = read_specimen(path, (1.0, 1.0, 1.0))
    assert found.aside.shape[0] == 20
    assert found.volumes[0].shape[2] + MARGIN + found.aside.shape[2] == 160


def test_other_formats_and_a_named_part_will_do(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, np.stack([stack(seed=1), stack(seed=2)]), metadata={"axes": "CZYX"}, ome=True)
    first, second = (read_specimen(Path(f"{path}#{part}"), VOXEL) for part in ("C0", "C1"))
    assert (first.name, second.name) == ("s#C0", "s#C1")
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("shape", "voxel", "says"),
    [
        ((20, 24, 40), None, "too few to learn from"),
        ((8, 24, 80), None, "at least 16 slices"),
        ((20, 24, 80), (5.0, 1.0, 1.0), "record a denser one"),
    ],
    ids=["narrow", "flat", "coarse"],
)
def test_a_stack_that_teaches_nothing_is_refused(tmp_path: Path, shape, voxel, says) -> None:
    with pytest.raises(InputFileError, match=says):
        read_specimen(write_stack(tmp_path / "s.h5", stack(shape), voxel), VOXEL)


def test_cubes_come_from_what_is_not_kept_aside() -> None:
    found = Specimen("x", "0", (np.ones((20, 30, 70), np.float32),), np.zeros((20, 30, 24), np.float32))
    pool = cube_pool(found, 3, np.random.default_rng(0))
    assert pool.shape == (3, 64, 64, 64)
    assert (pool == 1).all()


# --- the trial ----------------------------------------------------------------------------------------


def test_a_trial_has_the_session_s_beam_step_and_noise() -> None:
    flat = np.zeros((40, 64, 64), np.float32)
    flat[10:30] = 1.0
    trial = make_trial(flat, OPTICS, sweeps=3)
    assert [sweep.stage.step_um for sweep in trial.sweeps] == [8.0] * 3
    assert len({sweep.stage.z_um[0] for sweep in trial.sweeps}) == 3
    assert trial.header.profile.length_um == pytest.approx(6.0)
    sweep = trial.sweeps[0]
    clean = np.tensordot(trial.header.operator_at(sweep.stage), trial.truth, axes=1)
    assert np.std(sweep.projections - clean) == pytest.approx(PLANNED_NOISE, rel=0.05)
    assert trial.header.camera.gain is None


def test_a_calibrated_camera_s_noise_is_declared() -> None:
    optics = Optics(AxialProfile.box(6.0), 8.0, 1e-4, 2e-3, calibrated=True)
    camera = make_trial(np.eye(64, dtype=np.float32)[:, None].repeat(64, 1), optics, sweeps=1).header.camera
    assert (camera.gain, camera.read_noise) == (2e-3, pytest.approx(1e-2))


def test_a_stack_too_flat_for_two_slabs_is_refused() -> None:
    with pytest.raises(GeometryError, match="give a deeper stack"):
        make_trial(stack((8, 64, 64)), OPTICS)


@pytest.mark.parametrize(
    ("first", "later", "word"),
    [(0.5, 0.1, "helps"), (0.5, -0.2, "hurts"), (0.0, 0.01, "no change"), (0.0, 0.3, "helps")],
)
def test_what_one_sweep_gains_must_not_cost_another(first: float, later: float, word: str) -> None:
    worth = Worth(Served(30.0, 33.0), Served(30.0 + first, 33.0 + later))
    assert worth.word == word
    assert f"{first:+.2f} dB" in worth.sentence
    assert f"{later:+.2f} dB" in worth.sentence


# --- adapting -----------------------------------------------------------------------------------------


@pytest.fixture
def _few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    adapting = sys.modules[adapt_to_volume.__module__]
    monkeypatch.setattr(adapting, "SPECIMENS", 2)
    monkeypatch.setattr(adapting, "make_trial", partial(make_trial, sweeps=4))
    monkeypatch.setattr(sys.modules[fine_tune.__module__], "_RING", 1)


@pytest.mark.usefixtures("_few_groups")
def test_adapting_changes_a_copy_and_judges_both(tmp_path: Path, weights: Path) -> None:
    found = read_specimen(write_stack(tmp_path / "s.h5", stack((40, 24, 80))), VOXEL)
    model, plan = load_denoiser(weights), AdaptPlan(2, 1e6, 1e-2)
    lines: list[str] = []
    result = adapt_to_volume(found, OPTICS, model, CONFIG, plan, lines.append)
    theirs = model.state_dict()
    assert any(not np.array_equal(theirs[name], value) for name, value in result.model.state_dict().items())
    assert all(np.array_equal(theirs[n], value) for n, value in load_denoiser(weights).state_dict().items())
    assert result.iterations == 2
    assert "40 x 24 x 24 kept aside" in lines[0]
    again = adapt_to_volume(found, OPTICS, model, CONFIG, replace(plan, minutes=1e-9), lines.append)
    assert again.worth.before == again.worth.after == replace(result.worth.before)


def test_a_way_that_helps_is_preferred_to_one_that_gains_more_and_costs(weights: Path, monkeypatch) -> None:
    adapting = sys.modules[adapt_to_volume.__module__]
    served = iter([Served(32.0, 32.5), Served(30.2, 33.1)])
    monkeypatch.setattr(adapting, "run_trial", lambda *_: next(served))
    monkeypatch.setattr(adapting, "_WAYS", (1.0, 0.5))
    model = load_denoiser(weights)
    trial = make_trial(stack((40, 24, 24)), OPTICS, sweeps=1)
    _, worth = best_way(trial, Served(30.0, 33.0), (model, model), CONFIG, torch.device("cpu"))
    assert worth.after == Served(30.2, 33.1)


def test_half_of_the_way_is_the_mean_of_both(weights: Path) -> None:
    old, new = load_denoiser(weights), load_denoiser(weights)
    for value in new.parameters():
        value.data += 1.0
    for before, half in zip(old.parameters(), between(old, new, 0.5).parameters(), strict=True):
        np.testing.assert_allclose(half.detach(), before.detach() + 0.5, rtol=1e-5)


@pytest.mark.parametrize("with_run", [True, False])
@pytest.mark.parametrize("gain", [0.4, -0.4])
def test_weights_that_help_say_whose_they_are(
    tmp_path: Path, weights: Path, monkeypatch, capsys, with_run: bool, gain: float
) -> None:
    asked = {}

    def adapted(specimen, optics, model, config, plan, say, watch):
        asked.update(optics=optics, specimen=specimen)
        return AdaptedToVolume(model, Worth(Served(30.0, 33.0), Served(30.0 + gain, 33.0)), 7)

    monkeypatch.setattr(training, "adapt_to_volume", adapted)
    output, path = tmp_path / "w.safetensors", write_stack(tmp_path / "brain7.h5", stack((40, 24, 80)))
    run = [str(write_sample(tmp_path / "p.h5", sweeps=1))] if with_run else []
    planned = [] if with_run else ["--set", "sweep.length_um=10", "--set", "sweep.step_um=16"]
    command = ["adapt", *run, "--volume", str(path), "--output", str(output), *planned]
    assert cli.main([*command, "--set", f"engine.weights={weights}"]) == 0
    said = capsys.readouterr().out
    assert f"{gain:+.2f} dB in a first sweep" in said
    assert output.exists() == (gain > 0)
    assert asked["optics"].calibrated == with_run
    if gain > 0:
        whose = Belonging.of(output)
        assert whose is not None
        assert (whose.specimen, whose.fingerprint) == ("brain7", asked["specimen"].fingerprint)
        if not with_run:
            assert (whose.length_um, whose.step_um, whose.voxel_z_um) == (10.0, 16.0, 2.0)
        load_denoiser(output)


def test_neither_run_nor_stack_is_refused(tmp_path: Path, capsys) -> None:
    assert cli.main(["adapt", "--output", str(tmp_path / "w.safetensors")]) != 0
    assert "name a run file, or a stack" in capsys.readouterr().err


# --- whose the weights are ----------------------------------------------------------------------------


def test_ordinary_weights_belong_to_no_specimen(weights: Path) -> None:
    assert Belonging.of(weights) is None


@pytest.mark.parametrize(
    ("length", "voxel", "says"),
    [
        (6.0, 1.0, ""),
        (7.0, 1.1, ""),
        (12.0, 1.0, "slabs of 6 µm where the run's are 12 µm"),
        (6.0, 2.0, "slices of 1 µm where the run's are 2 µm"),
    ],
)
def test_other_optics_are_told(weights: Path, tmp_path: Path, length: float, voxel: float, says: str) -> None:
    path = tmp_path / "w.safetensors"
    save_denoiser(load_denoiser(weights), path, Belonging("brain7", "ab", 6.0, 8.0, 1.0).notes())
    header = make_trial(stack((40, 64, 64)), OPTICS, sweeps=1).header
    other = header.model_copy(
        update={"profile_weights": (1.0,), "profile_spacing_um": length, "voxel_size_um": (voxel, 1.0, 1.0)}
    )
    whose = Belonging.of(path)
    assert whose is not None
    assert whose.other_optics(other) == says


def test_specimens_are_small_enough_for_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(specimens, "_MOST", 20 * 80 * 80)
    found = read_specimen(write_stack(tmp_path / "s.h5", stack((20, 24, 200))), VOXEL)
    assert found.volumes[0].shape[2] + MARGIN + found.aside.shape[2] == 80
