from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion.errors import DiskError, InputFileError, MissingFileError
from microdiffusion.files.projections import open_projections, write_projections
from microdiffusion.header import CameraNoise
from microdiffusion.optics import AxialProfile

SHAPE = (2, 3, 8, 9)  # T, M, Y, X
GEOMETRY = {"voxel_size_um": (2.0, 0.5, 0.25), "z0_um": -4.0, "shape_z": 9}


def write(path: Path, **changes: object) -> None:
    rng = np.random.default_rng(0)
    arguments: dict = {
        "projections": rng.integers(0, 4000, SHAPE).astype(np.uint16),
        "z_um": [-2.0, 4.0, 10.0],
        "profile": AxialProfile.box(6.0),
        **GEOMETRY,
    }
    write_projections(path, **(arguments | changes))


def by_hand(path: Path) -> None:
    """The contract as somebody else would write it: attributes on the dataset, nothing optional."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("projections", data=np.ones(SHAPE, np.uint16))
        data.attrs.update(z_um=[-2.0, 4.0, 10.0], length_um=6.0, voxel_size_um=[2.0, 0.5, 0.25])
        data.attrs.update(z0_um=-4.0, shape_z=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "projections.h5"


def test_what_is_written_is_read(path: Path) -> None:
    projections = np.random.default_rng(1).normal(5, 2, SHAPE).astype(np.float32)
    truth = np.random.default_rng(2).random((2, 9, 8, 9), dtype=np.float32)
    camera = CameraNoise(offset=100, gain=2.5, read_noise=1.5)
    write(path, projections=projections, truth=truth, camera=camera, time_s=[3.0, 4.5])
    with open_projections(path) as file:
        assert file.shape == SHAPE
        assert file.header.dtype == "float32"
        assert file.header.shape == (9, 8, 9)
        assert file.header.voxel_size_um == (2.0, 0.5, 0.25)
        assert file.header.z0_um == -4.0
        assert file.header.camera == camera
        assert file.header.profile.length_um == 6.0
        assert file.header.sweeps == 2
        np.testing.assert_array_equal(file.stage(0).z_um, [-2, 4, 10])
        np.testing.assert_array_equal(file.time_s, [3.0, 4.5])
        np.testing.assert_array_equal(file.frame(1, 2), projections[1, 2])
        np.testing.assert_array_equal(file.truth(1), truth[1])
        np.testing.assert_array_equal(file.sweep(0).projections, projections[0])


def test_file_written_by_hand_is_read(path: Path) -> None:
    by_hand(path)
    with open_projections(path) as file:
        assert file.header.dtype == "uint16"
        assert file.truth(0) is None
        assert file.header.camera == CameraNoise()
        np.testing.assert_array_equal(file.time_s, [0, 1])


def test_attributes_are_where_either_reading_of_the_contract_looks(path: Path) -> None:
    write(path)
    with h5py.File(path) as file:
        for name in ("z_um", "length_um", "voxel_size_um", "z0_um", "shape_z"):
            np.testing.assert_array_equal(file.attrs[name], file["projections"].attrs[name])


def test_measured_profile_survives(path: Path) -> None:
    profile = AxialProfile.sampled([1, 3, 3, 1], 1.5)
    write(path, profile=profile)
    with open_projections(path) as file:
        np.testing.assert_allclose(file.header.profile.weights, profile.weights, rtol=1e-6)
        assert file.header.profile.spacing_um == 1.5


def test_sweep_sorts_by_depth_and_sets_held_out_projections_apart(path: Path) -> None:
    pixels = np.arange(3, dtype=np.uint16).reshape(1, 3, 1, 1) * np.ones(SHAPE, np.uint16)
    write(path, projections=pixels, z_um=[[10.0, -2.0, 4.0], [10.0, 4.0, 6.0]], held_out=[0, 0, 1])
    with open_projections(path) as file:
        first, second = file.sweep(0), file.sweep(1)
        np.testing.assert_array_equal(first.stage.z_um, [-2, 10])
        np.testing.assert_array_equal(first.projections[:, 0, 0], [1, 0])
        np.testing.assert_array_equal(first.held_out_stage.z_um, [4])
        np.testing.assert_array_equal(first.held_out[:, 0, 0], [2])
        np.testing.assert_array_equal(second.held_out_stage.z_um, [6])
        infos = [info for info, _ in file.frames(1)]
        assert [info.seq for info in infos] == [3, 4, 5]
        assert [info.stage.z_um for info in infos] == [10, 4, 6]
        assert [info.held_out for info in infos] == [False, False, True]


def test_many_sweeps_with_positions_of_their_own_are_written_and_read(path: Path) -> None:
    z_um = np.tile([-2.0, 4.0, 10.0], (3000, 1))  # more than an HDF5 attribute holds
    write(path, projections=np.zeros((3000, 3, 2, 2), np.uint16), z_um=z_um)
    with open_projections(path) as file:
        np.testing.assert_array_equal(file.stage(2999).z_um, [-2, 4, 10])


def edit(path: Path, change: str, value: object = None) -> None:
    with h5py.File(path, "r+") as file:
        kind, _, name = change.partition(" ")
        places = (file.attrs, file["projections"].attrs)
        if kind == "drop":
            for place in places:
                place.pop(name, None)
        elif kind == "attr":
            for place in places:
                place[name] = value
        elif kind == "data":
            if name in file:
                attributes = dict(file[name].attrs)
                del file[name]
                file[name] = value
                file[name].attrs.update(attributes)
            else:
                file[name] = value


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        pytest.param("drop z_um", None, "z_um is missing", id="no positions"),
        pytest.param("drop length_um", None, "length_um", id="no beam"),
        pytest.param("drop voxel_size_um", None, "voxel_size_um is missing", id="no voxel size"),
        pytest.param("drop z0_um", None, "z0_um is missing", id="no first slice"),
        pytest.param("drop shape_z", None, "shape_z is missing", id="no number of slices"),
        pytest.param("attr length_um", -6.0, "positive length", id="negative length"),
        pytest.param("attr length_um", np.nan, "length_um", id="length not finite"),
        pytest.param("attr length_um", "six", "length_um should be numbers", id="length in words"),
        pytest.param("attr z_um", [0.0, 4.0], r"z_um should be .* not \(2,\)", id="too few positions"),
        pytest.param("attr z_um", [0.0, np.nan, 4.0], "not finite", id="position not finite"),
        pytest.param("attr z_um", [-2.0, 4.0, 400.0], "outside of the volume", id="slab outside"),
        pytest.param("attr voxel_size_um", [1.0, 1.0], "three numbers", id="two voxel sizes"),
        pytest.param("attr voxel_size_um", [1.0, 1.0, -1.0], "voxel_size_um", id="negative voxel"),
        pytest.param("attr shape_z", 0, "shape_z", id="no slices"),
        pytest.param("attr shape_z", 8.5, "whole number", id="half a slice"),
        pytest.param("attr gain", 0.0, "gain", id="no gain"),
        pytest.param("attr time_s", [0.0], "time_s should be 2", id="too few times"),
        pytest.param("attr held_out", [1, 1, 1], "held_out", id="all held out"),
        pytest.param("data projections", np.ones((3, 8, 9), np.uint16), r"\(T, M, Y, X\)", id="three axes"),
        pytest.param("data projections", np.ones((0, 3, 8, 9), np.uint16), "empty axis", id="no sweeps"),
        pytest.param("data projections", np.ones(SHAPE), "uint16 or float32", id="float64"),
        pytest.param("data projections", np.full(SHAPE, np.nan, "f4"), "not finite", id="NaN"),
        pytest.param(
            "data truth", np.ones((2, 4, 8, 9), "f4"), "/truth should be", id="truth of another shape"
        ),
        pytest.param("data axial_profile", -np.ones(4), "axial profile needs", id="negative profile"),
    ],
)
def test_impossible_file_is_refused_in_one_sentence(
    path: Path, change: str, value: object, words: str
) -> None:
    write(path)
    if change == "data axial_profile":
        edit(path, "attr profile_spacing_um", 1.0)
    edit(path, change, value)
    with pytest.raises(InputFileError, match=words) as caught:
        open_projections(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all" * 100], ids=["empty", "text"])
def test_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="cannot be read as HDF5"):
        open_projections(path)


def test_hdf5_without_projections_is_refused_and_says_what_it_holds(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["volume"] = np.ones((2, 2, 2))
    with pytest.raises(InputFileError, match=r"/projections is missing \(found /volume\)"):
        open_projections(path)


def test_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(MissingFileError, match="no projection file"):
        open_projections(path)


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.mktemp("truncated") / "p.h5"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputFileError):
        open_projections(path)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"z_um": [0.0, 4.0, 400.0]}, id="slab outside"),
        pytest.param({"projections": np.full(SHAPE, np.nan, np.float32)}, id="NaN"),
        pytest.param({"projections": (x for x in [np.ones((3, 8, 9)), np.ones((3, 8, 9))])}, id="float64"),
    ],
)
def test_refused_writing_leaves_what_was_there(path: Path, changes: dict) -> None:
    write(path)
    before = path.read_bytes()
    with pytest.raises(InputFileError, match=path.name):
        write(path, **changes)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_writing_that_breaks_off_leaves_nothing(path: Path) -> None:
    def breaks_off():
        yield np.ones((3, 8, 9), np.uint16)
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="cannot be written"):
        write(path, projections=breaks_off())
    assert list(path.parent.iterdir()) == []
