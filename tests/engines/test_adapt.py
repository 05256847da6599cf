"""Adapting to a session: what is fitted to and what judges, the verdict, and what is written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.sample_data import CAMERA, LENGTH_UM, SHAPE, VOXEL_UM, look, positions, specimen, write_sample

from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.engines import training
from microdiffusion.engines.diffusion import Belonging, load_denoiser
from microdiffusion.engines.training import adapt_data as sessions
from microdiffusion.engines.training.adapt import Adapted, adapt
from microdiffusion.engines.training.adapt_data import Verdict, judge_errors, read_session, verdict
from microdiffusion.engines.training.fine_tune import AdaptPlan, cut_cube, fine_tune
from microdiffusion.errors import GeometryError, InputFileError, MissingFileError
from microdiffusion.files.projections import write_projections
from microdiffusion.optics import AxialProfile

QUICK = AdaptPlan(iterations=2, minutes=1e6, rate=1e-2)
CONFIG = EngineConfig(device="cpu", runtime="torch", inr={"cold_steps": 3, "warm_steps": 2})


def write_plain(path: Path, sweeps: int = 3, slices: int = SHAPE[0]) -> Path:
    """Write a projection file without held-out projections."""
    z_um = positions(sweeps, slices, hold_out=False)
    volume = specimen(shape=(slices, *SHAPE[1:]))
    write_projections(
        path,
        [look(volume, z_um[t], seed=t) for t in range(sweeps)],
        z_um=z_um,
        profile=AxialProfile.box(LENGTH_UM),
        voxel_size_um=VOXEL_UM,
        z0_um=0.0,
        shape_z=slices,
        camera=CAMERA,
    )
    return path


# --- what judges --------------------------------------------------------------------------------------


def test_held_out_projections_judge_and_are_not_fitted_to(tmp_path: Path) -> None:
    session = read_session(write_sample(tmp_path / "p.h5"), most=2)
    assert not session.left_out
    assert [len(sweep.held_out_stage) for sweep in session.sweeps] == [1, 1]
    assert [len(sweep.held_out_stage) for sweep in session.for_fitting()] == [0, 0]


def test_where_none_was_held_out_one_of_each_sweep_is_left_out(tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "p.h5", slices=48)
    session = read_session(plain, most=9)
    assert session.left_out
    whole = positions(3, 48, hold_out=False)
    for number, sweep in enumerate(session.sweeps):
        assert len(sweep.stage) == len(sweep.projections) == whole.shape[1] - 1
        assert set(sweep.stage.z_um) | set(sweep.held_out_stage.z_um) == set(whole[number])
        # Never the first or the last: nothing lies beyond them to go by.
        assert whole[number][0] < sweep.held_out_stage.z_um[0] < whole[number][-1]


def test_too_few_projections_to_leave_one_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="adapting needs held-out projections, or at least 4"):
        read_session(write_plain(tmp_path / "p.h5", slices=18), most=2)


def test_a_run_file_is_a_session_too(tmp_path: Path, weights: Path) -> None:
    projections = write_sample(tmp_path / "p.h5", sweeps=2)
    run = tmp_path / "run.h5"
    options = ["--method", "linear", "--device", "cpu"]
    assert cli.main(["reconstruct", str(projections), "--output", str(run), *options]) == 0
    of_run, of_file = (read_session(path, most=2) for path in (run, projections))
    for mine, theirs in zip(of_run.sweeps, of_file.sweeps, strict=True):
        np.testing.assert_array_equal(mine.projections, theirs.projections)
        np.testing.assert_array_equal(mine.held_out, theirs.held_out)
        np.testing.assert_allclose(mine.stage.z_um, theirs.stage.z_um)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.h5"):
        read_session(tmp_path / "absent.h5", most=1)


def test_the_truth_misses_the_judges_by_their_noise_only(tmp_path: Path) -> None:
    session = read_session(write_sample(tmp_path / "p.h5", sweeps=1), most=1)
    blocks = judge_errors(session.header, session.sweeps[0], specimen() + CAMERA.offset)
    assert blocks.shape == (SHAPE[1] // 16 * (SHAPE[2] // 16),)
    assert 0.8 < blocks.mean() < 1.2
    assert judge_errors(session.header, session.sweeps[0], specimen(1) + CAMERA.offset).mean() > 2


@pytest.mark.parametrize(
    ("factor", "word"),
    [(0.8, "helps"), (1.2, "hurts"), (0.9999, "no change"), (1.0, "no change")],
)
def test_the_verdict_follows_the_judges(factor: float, word: str) -> None:
    before = [np.random.default_rng(n).uniform(1, 2, 40) for n in range(3)]
    after = [blocks * factor for blocks in before]
    said = verdict(before, after)
    assert said.word == word
    assert ("makes no significant difference" in said.sentence) == (word == "no change")


def test_a_change_within_its_own_scatter_is_none() -> None:
    before = [np.ones(10)]
    after = [np.array([0.1, 2.1] * 5) - 0.1 + np.linspace(0, 0.01, 10)]
    assert verdict(before, after).word == "no change"


# --- specimens from the session -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(80, 70, 90), (20, 70, 30)], ids=["larger", "smaller"])
def test_cubes_have_the_training_s_size(shape: tuple[int, int, int]) -> None:
    cube = cut_cube(np.ones(shape, np.float32), np.random.default_rng(0))
    assert cube.shape == (64, 64, 64)
    assert np.all(cube == 1)


# --- adapting -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[adapt.__module__], "SPECIMENS", 2)
    monkeypatch.setattr(sys.modules[fine_tune.__module__], "_RING", 1)


@pytest.fixture(scope="module")
def projections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("session") / "p.h5", sweeps=2)


def test_adapting_changes_a_copy_and_reports_both(projections: Path, weights: Path) -> None:
    model = load_denoiser(weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = adapt(read_session(projections, most=1), model, CONFIG, QUICK, lambda text: None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in result.model.state_dict().items())
    assert result.iterations == 2
    assert np.isfinite([result.verdict.before, result.verdict.after]).all()


def test_adapting_without_iterations_changes_nothing(
    projections: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The judging is the same before and after: what differs comes from the network.
    result = adapt(
        read_session(projections, most=1),
        load_denoiser(weights),
        CONFIG,
        replace(QUICK, minutes=1e-9),
        lambda text: None,
    )
    assert result.verdict.before == result.verdict.after
    assert result.verdict.word == "no change"


def test_a_slab_that_does_not_fit_into_a_training_cube_is_refused(projections: Path, weights: Path) -> None:
    session = read_session(projections, most=1)
    coarse = session.header.model_copy(update={"voxel_size_um": (0.2, 1.0, 1.0)})
    with pytest.raises(GeometryError, match="adapt with thicker slices"):
        adapt(replace(session, header=coarse), load_denoiser(weights), CONFIG, QUICK, lambda text: None)


@pytest.mark.parametrize(
    ("word", "force", "written"),
    [
        ("helps", False, True),
        ("hurts", False, False),
        ("no change", False, False),
        ("hurts", True, True),
    ],
)
def test_worse_weights_are_written_by_force_only(
    projections: Path, weights: Path, tmp_path: Path, monkeypatch, capsys, word, force, written
) -> None:
    def adapted(session, model, config, plan, say, watch):
        return Adapted(model, Verdict(2.0, 1.0, -5.0, word), 7)

    monkeypatch.setattr(training, "adapt", adapted)
    output = tmp_path / "w.safetensors"
    command = ["adapt", str(projections), "--output", str(output), "--set", f"engine.weights={weights}"]
    assert cli.main(command + ["--force"] * force) == 0
    assert output.exists() == written
    said = capsys.readouterr().out
    assert ("wrote" in said) == written
    assert ("kept the old weights" in said) == (not written)
    if written:
        load_denoiser(output)
        whose = Belonging.of(output)
        assert whose is not None
        assert (whose.specimen, whose.length_um) == ("p", LENGTH_UM)


def test_a_session_without_a_complete_sweep_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = write_sample(tmp_path / "p.h5", sweeps=1)
    monkeypatch.setattr(sessions, "_of_projections", lambda path, most: (None, []))
    with pytest.raises(InputFileError, match="holds no complete sweep"):
        read_session(path, most=1)
