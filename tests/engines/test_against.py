"""`mdd evaluate --against`: a dense recording as the truth for sparse sweeps of it, and for other runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.session_scene import HEADER, LENGTH, SHAPE, specimen

from microdiffusion.config import Config
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.offline import reconstruct_file
from microdiffusion.engines.evaluation.against import said
from microdiffusion.engines.evaluation.dense import Dense, compare, dense_reference, same_grid, sparse_sweeps
from microdiffusion.errors import ConfigError, GeometryError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.optics import sweep_positions

SCALE, NOISE = 100.0, 1.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def recording(truth: np.ndarray, step: float = 1.0) -> Sweep:
    stage = StagePositions.along_z(
        sweep_positions(length_um=LENGTH, step_um=step, z0_um=0.0, voxel_z_um=1.0, shape_z=SHAPE[0])
    )
    light = SCALE * np.tensordot(HEADER.operator_at(stage), truth, 1)
    pixels = (light + NOISE * np.random.default_rng(0).standard_normal(light.shape)).astype(np.float32)
    return Sweep(0, 0, 0, stage, pixels, stage[:0], pixels[:0])


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return specimen()


@pytest.fixture(scope="module")
def dense(truth: np.ndarray) -> Dense:
    return dense_reference(HEADER, [recording(truth)])


def test_the_reference_is_near_the_truth_and_says_how_near_at_least(dense: Dense, truth: np.ndarray) -> None:
    error = np.sqrt(np.mean((dense.volume - SCALE * truth)[3:-3] ** 2)) / dense.span
    assert 0.0 < dense.own_error < error < 0.05
    assert dense.slab == pytest.approx(LENGTH)
    assert dense.apart == pytest.approx(1.0)


def test_the_order_of_sweeps_and_frames_does_not_matter(dense: Dense, truth: np.ndarray) -> None:
    sweep = recording(truth)
    order = np.random.default_rng(1).permutation(len(sweep.stage))
    mixed = replace(sweep, stage=sweep.stage[order], projections=sweep.projections[order])
    assert np.allclose(dense_reference(HEADER, [mixed]).volume, dense.volume, atol=1e-3)


def test_sparse_sweeps_share_no_frame_and_none_that_judges(dense: Dense) -> None:
    made = sparse_sweeps(dense, 6.0, 8)
    assert len(made) >= 2
    used = np.concatenate([places for _, places in made])
    assert len(set(used.tolist())) == len(used)
    assert not dense.judge[used].any()
    for sweep, places in made:
        assert np.array_equal(sweep.projections, dense.frames[places])
        assert np.median(np.diff(sweep.stage.z_um)) == pytest.approx(6.0, abs=1.0)


def test_the_truth_is_closer_than_a_blurred_or_an_inventive_volume(dense: Dense, truth: np.ndarray) -> None:
    right = compare(dense, SCALE * truth)
    blurred = SCALE * np.stack([truth[max(0, z - 4) : z + 5].mean(0) for z in range(len(truth))])
    blunt = compare(dense, blurred)
    assert right["hidden"] == right["invented"] == 0 < right["spots"]
    assert right["slope"] == pytest.approx(1.0, abs=0.1)
    assert right["prediction"] == pytest.approx(1.0, abs=0.15)
    assert blunt["hidden"] > 0
    assert blunt["error"] > 2 * right["error"]
    assert blunt["prediction"] > 1.5
    assert blunt["sharpness"] < 0.7
    more = truth.copy()
    z, y, x = (int(v) for v in np.unravel_index(np.argmin(truth[8:24, 8:24, 8:24]), (16, 16, 16)))
    more[z + 7 : z + 10, y + 7 : y + 10, x + 7 : x + 10] += 0.8
    assert compare(dense, SCALE * more)["invented"] == 1


def test_a_recording_that_is_not_dense_is_refused(truth: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="not dense"):
        dense_reference(HEADER, [recording(truth, 6.0)])


def test_no_sparse_sweep_and_other_voxels_are_refused(dense: Dense) -> None:
    with pytest.raises(GeometryError, match="smaller --steps"):
        sparse_sweeps(dense, 40.0, 8)
    with pytest.raises(ConfigError, match="voxel size"):
        same_grid(HEADER, HEADER.model_copy(update={"voxel_size_um": (2.0, 1.0, 1.0)}))


def test_a_row_is_said_in_sentences(dense: Dense, truth: np.ndarray) -> None:
    text = said({"method": "inr", "step": 6.0, "sweep": 1, **compare(dense, SCALE * truth)})
    assert "hides 0" in text
    assert "% of the range" in text
    assert "nobody had seen" in text


def write_projections(path: Path, truth: np.ndarray, step: str) -> Path:
    np.save(path.with_suffix(".npy"), truth)
    size = ("--voxel-size-um", "1", "1", "1", "--length-um", "6", "--step-um", step)
    words = ["simulate", str(path.with_suffix(".npy")), *size, "--noise", "0.01", "--output", str(path)]
    assert cli.main(words) == 0
    return path


def test_command_scores_sparse_sweeps_and_a_run(
    truth: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = write_projections(tmp_path / "dense.h5", truth, "1")
    words = ["evaluate", "--against", str(recorded), "--methods", "linear,inr", "--steps", "6"]
    assert cli.main([*words, "--device", "cpu", "--json", str(tmp_path / "r.json")]) == 0
    assert "`inr`, sweep" in capsys.readouterr().out
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    first = {row["method"]: row["error"] for row in rows if row["sweep"] == 1}
    assert first["inr"] < first["linear"]
    sparse = write_projections(tmp_path / "sparse.h5", truth, "6")
    config = Config.model_validate({"engine": {"method": "tikhonov", "device": "cpu"}})
    reconstruct_file(sparse, tmp_path / "run.h5", config=config)
    assert cli.main(["evaluate", str(tmp_path / "run.h5"), "--against", str(recorded)]) == 0
    assert "`run.h5`, sweep 1: is off by" in capsys.readouterr().out


def test_command_refuses_what_does_not_fit(
    truth: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = write_projections(tmp_path / "dense.h5", truth, "1")
    assert cli.main(["evaluate", "--against", str(recorded), "--drift"]) == 2
    assert "leave out" in capsys.readouterr().err
    assert cli.main(["evaluate"]) == 2
    assert "folder of volumes" in capsys.readouterr().err
    assert cli.main(["evaluate", str(recorded), "--against", str(recorded)]) == 2
    assert "cannot be held against itself" in capsys.readouterr().err
    other = write_projections(tmp_path / "other.h5", truth, "1")
    assert cli.main(["evaluate", str(other), "--against", str(recorded)]) == 2
    assert "is not a run file" in capsys.readouterr().err
