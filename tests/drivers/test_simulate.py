from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from microdiffusion.drivers.simulate import plan_positions, project_volume, simulate
from microdiffusion.errors import (
    ConfigError,
    DependencyError,
    GeometryError,
    InputFileError,
    MissingFileError,
    UserError,
)
from microdiffusion.files.projections import open_projections
from microdiffusion.files.volumes import open_volume
from microdiffusion.frames import StagePositions
from microdiffusion.optics import AxialProfile

SLABS = {"length_um": 6.0, "step_um": 6.0}


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).random((24, 10, 11), dtype=np.float32) * 100


@pytest.fixture
def source(tmp_path: Path, volume: np.ndarray) -> Path:
    return store(tmp_path / "volume.h5", volume)


def store(path: Path, volume: np.ndarray, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        file["volume"] = volume
        file["volume"].attrs.update(attributes)
    return path


def test_projection_is_the_mean_of_the_slab(volume: np.ndarray) -> None:
    projections = project_volume(volume, StagePositions.along_z([2.5, 10.5]), AxialProfile.box(6.0))
    expected = np.stack([volume[0:6].mean(axis=0), volume[8:14].mean(axis=0)])
    np.testing.assert_allclose(projections, expected, rtol=1e-5)


def test_uniform_volume_keeps_its_value_at_any_voxel_size() -> None:
    projections = project_volume(
        np.full((7, 4, 4), 3.5),
        StagePositions.along_z([1.0, 4.0]),
        AxialProfile.sampled([1, 2, 1], 0.7),
        z0_um=0.5,
        voxel_z_um=0.9,
    )
    np.testing.assert_allclose(projections, 3.5, rtol=1e-6)


def test_noise_free_file_holds_exact_projections_and_the_truth(
    tmp_path: Path, source: Path, volume: np.ndarray
) -> None:
    output = simulate(source, **SLABS, output=tmp_path / "p.h5")
    with open_projections(output) as file:
        assert file.shape == (1, 4, 10, 11)
        assert file.header.voxel_size_um == (1.0, 1.0, 1.0)
        np.testing.assert_array_equal(file.truth(0), volume)
        np.testing.assert_array_equal(
            file.sweep(0).projections, project_volume(volume, file.stage(0), file.header.profile)
        )


def test_photons_give_camera_counts_in_the_units_of_the_truth(tmp_path: Path, source: Path) -> None:
    camera = {"photons": 200.0, "gain": 2.0, "offset": 100.0, "read_noise": 3.0}
    output = simulate(source, **SLABS, output=tmp_path / "p.h5", **camera)
    with open_projections(output) as file:
        assert file.header.dtype == "uint16"
        assert file.header.camera.gain == 2.0
        truth = file.truth(0)
        assert truth is not None
        assert np.percentile(truth, 99.9) == pytest.approx(100 + 2 * 200, rel=0.02)
        exact = project_volume(truth, file.stage(0), file.header.profile)
        residual = file.sweep(0).projections - exact
        expected = np.sqrt(2.0 * (exact - 100) + 3.0**2)  # gain^2 * photons = gain * (counts - offset)
        assert np.mean(residual / expected) == pytest.approx(0, abs=0.2)
        assert np.std(residual / expected) == pytest.approx(1, abs=0.12)


def test_gaussian_noise_is_relative_to_the_range(tmp_path: Path, source: Path) -> None:
    output = simulate(source, **SLABS, output=tmp_path / "p.h5", noise=0.05, normalise=True)
    with open_projections(output) as file:
        truth = file.truth(0)
        assert truth is not None
        assert (truth.min(), truth.max()) == (0.0, 1.0)
        residual = file.sweep(0).projections - project_volume(truth, file.stage(0), file.header.profile)
        assert np.std(residual) == pytest.approx(0.05, rel=0.15)


def test_same_seed_same_file_other_seed_other_noise(tmp_path: Path, source: Path) -> None:
    def frames(seed: int, name: str) -> np.ndarray:
        with open_projections(
            simulate(source, **SLABS, output=tmp_path / name, photons=50, seed=seed)
        ) as file:
            return file.sweep(0).projections

    np.testing.assert_array_equal(frames(1, "a.h5"), frames(1, "b.h5"))
    assert not np.array_equal(frames(1, "a.h5"), frames(2, "c.h5"))


def test_time_series_shares_one_scale(tmp_path: Path, volume: np.ndarray) -> None:
    source = store(tmp_path / "v.h5", np.stack([volume, volume * 0.5]), voxel_size_um=[2.0, 0.5, 0.5])
    output = simulate(source, length_um=12, step_um=12, output=tmp_path / "p.h5", normalise=True)
    with open_projections(output) as file:
        assert file.header.voxel_size_um == (2.0, 0.5, 0.5)
        assert len(file) == 2
        first, second = file.truth(0), file.truth(1)
        assert first is not None
        assert second is not None
        assert second.max() == pytest.approx(0.5, abs=0.02)
        np.testing.assert_allclose(
            file.sweep(1).projections.mean() / file.sweep(0).projections.mean(), 0.5, atol=0.02
        )


@pytest.mark.parametrize("hold_out", [False, True], ids=["all used", "one held out"])
@pytest.mark.parametrize("step_um", [3.0, 6.0, 8.0], ids=["half overlap", "side by side", "gaps"])
def test_alternating_sweeps_stay_inside_and_move_by_half_a_step(step_um: float, hold_out: bool) -> None:
    planned = plan_positions(
        5,
        length_um=6,
        step_um=step_um,
        z0_um=0,
        voxel_z_um=1,
        shape_z=24,
        offsets="alternate",
        hold_out=hold_out,
    )
    z_um = np.array([stage.z_um for stage in planned])
    slabs = z_um[:, :-1] if hold_out else z_um
    assert slabs.min() >= 2.5
    assert slabs.max() <= 23.5 - 3
    np.testing.assert_array_equal(slabs[0], slabs[2])
    np.testing.assert_allclose(slabs[1, :-1] - slabs[0, :-1], step_um / 2)
    if hold_out:
        middles = (slabs[:, 1:] + slabs[:, :-1]) / 2
        assert all(np.isclose(middles[t], z_um[t, -1]).any() for t in range(5))
        pairs = [int(np.flatnonzero(np.isclose(middles[t], z_um[t, -1]))[0]) for t in range(5)]
        assert all(a != b for a, b in pairwise(pairs))


def test_a_single_volume_can_keep_still_for_several_sweeps(tmp_path: Path, source: Path) -> None:
    output = simulate(source, **SLABS, output=tmp_path / "p.h5", offsets="alternate", sweeps=3, noise=0.01)
    with open_projections(output) as file:
        assert len(file) == 3
        np.testing.assert_array_equal(file.truth(0), file.truth(2))
        np.testing.assert_array_equal(file.stage(0).z_um, file.stage(2).z_um)
        assert not np.array_equal(file.stage(0).z_um, file.stage(1).z_um)
        assert not np.array_equal(file.frame(0, 0), file.frame(2, 0))  # each with noise of its own
    with pytest.raises(ConfigError, match="sweeps should be 1 or more"):
        simulate(source, **SLABS, output=tmp_path / "q.h5", sweeps=0)


def test_held_out_projection_is_marked_in_the_file(tmp_path: Path, source: Path) -> None:
    output = simulate(source, **SLABS, output=tmp_path / "p.h5", hold_out=True)
    with open_projections(output) as file:
        sweep = file.sweep(0)
        assert sweep.held_out.shape == (1, 10, 11)
        assert sweep.projections.shape == (4, 10, 11)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        pytest.param({"step_um": -1.0}, ConfigError, "step_um should be a positive", id="negative step"),
        pytest.param({"step_um": float("nan")}, ConfigError, "step_um", id="step not a number"),
        pytest.param({"length_um": 0.0}, ConfigError, "length_um should be a positive", id="no length"),
        pytest.param({"length_um": 600.0}, GeometryError, "does not fit", id="slab longer than the volume"),
        pytest.param({"noise": -0.1}, ConfigError, "noise", id="negative noise"),
        pytest.param({"noise": 0.1, "photons": 5.0}, ConfigError, "not both", id="two kinds of noise"),
        pytest.param({"gain": 2.0}, ConfigError, "need photons", id="gain without photons"),
        pytest.param({"voxel_size_um": (0.0, 1.0, 1.0)}, ConfigError, "voxel_z_um", id="flat voxel"),
    ],
)
def test_impossible_request_is_refused_and_nothing_written(
    tmp_path: Path, source: Path, changes: dict, error: type[UserError], words: str
) -> None:
    with pytest.raises(error, match=words):
        simulate(source, **(SLABS | {"output": tmp_path / "p.h5"} | changes))
    assert [entry.name for entry in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(np.ones((4, 4)), r"\(Z, Y, X\)", id="two axes"),
        pytest.param(np.full((24, 4, 4), np.nan), "not finite", id="NaN"),
        pytest.param(np.ones((24, 4, 4)), "cannot be normalised", id="constant"),
        pytest.param(np.array([b"a"] * 8).reshape(2, 2, 2), "numbers", id="text"),
    ],
)
def test_unusable_volume_is_refused_and_nothing_written(
    tmp_path: Path, content: np.ndarray, words: str
) -> None:
    source = store(tmp_path / "v.h5", content)
    with pytest.raises(InputFileError, match=words):
        simulate(source, **SLABS, output=tmp_path / "p.h5", normalise=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.h5"]


def test_later_volume_that_is_not_finite_leaves_no_half_written_file(
    tmp_path: Path, volume: np.ndarray
) -> None:
    source = store(tmp_path / "v.h5", np.stack([volume, np.full_like(volume, np.inf)]))
    with pytest.raises(InputFileError, match="time point 1"):
        simulate(source, **SLABS, output=tmp_path / "p.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.h5"]


def test_volume_file_that_is_missing_foreign_or_without_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no volume at"):
        open_volume(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputFileError, match="cannot be read as HDF5"):
        open_volume(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.ones((2, 2, 2))
    with pytest.raises(InputFileError, match=r"/volume is missing \(found /images\)"):
        open_volume(tmp_path / "other.h5")


def test_tiff_stack_is_read_where_tifffile_is_there(tmp_path: Path, volume: np.ndarray) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "v.tif", volume)
    with open_volume(tmp_path / "v.tif") as file:
        assert file.shape == (1, 24, 10, 11)
        np.testing.assert_array_equal(file.volume(0), volume)


def test_tiff_without_tifffile_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "v.tif").write_bytes(b"II*\0")
    with pytest.raises(DependencyError, match="pip install tifffile"):
        open_volume(tmp_path / "v.tif")
