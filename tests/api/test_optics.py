"""The axial-projection operator: light is kept, boxes are boxes, positions stay inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from microdiffusion.errors import GeometryError
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

lengths = st.floats(0.5, 40.0)
voxels = st.floats(0.1, 8.0)
slices = st.integers(2, 80)
origins = st.floats(-500.0, 500.0)


@st.composite
def profiles(draw: st.DrawFn) -> AxialProfile:
    weights = draw(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12))
    assume(sum(weights) > 0.01)
    return AxialProfile.sampled(weights, draw(st.floats(0.2, 5.0)))


@given(profiles(), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6), voxels, slices, origins)
def test_light_is_kept_wherever_a_slab_lies(
    profile: AxialProfile, places: list[float], voxel_z_um: float, shape_z: int, z0_um: float
) -> None:
    z_um = z0_um + np.array(places) * (shape_z - 1) * voxel_z_um
    try:
        operator = projection_operator(z_um, profile, z0_um=z0_um, voxel_z_um=voxel_z_um, shape_z=shape_z)
    except GeometryError:
        # A profile that is dark in its middle may light almost nothing of a thin volume.
        edges = z0_um + (np.array([0, shape_z]) - 0.5) * voxel_z_um
        inside = np.diff(profile.cumulative(edges[None, :] - z_um[:, None]), axis=1)
        assert inside.min() < 0.1
        return
    assert operator.shape == (len(places), shape_z)
    assert operator.min() >= 0
    np.testing.assert_allclose(operator.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(operator @ np.full(shape_z, 7.0), 7.0, rtol=1e-9)


@given(lengths, st.integers(1, 40), st.floats(0.2, 0.8), voxels, slices, origins)
def test_a_box_is_a_sampled_profile_of_equal_weights(
    length_um: float, count: int, place: float, voxel_z_um: float, shape_z: int, z0_um: float
) -> None:
    assume(length_um < 5 * shape_z * voxel_z_um)  # else too little of its light falls into the volume
    box = AxialProfile.box(length_um)
    sampled = AxialProfile.sampled(np.full(count, 3.0), length_um / count)
    assert sampled.length_um == pytest.approx(box.length_um)
    geometry: dict[str, Any] = {"z0_um": z0_um, "voxel_z_um": voxel_z_um, "shape_z": shape_z}
    z_um = [z0_um + place * (shape_z - 1) * voxel_z_um]
    both = [projection_operator(z_um, profile, **geometry) for profile in (box, sampled)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-9)


def test_a_box_of_whole_slices_is_their_mean() -> None:
    operator = projection_operator([5.0], AxialProfile.box(8.0), z0_um=0.0, voxel_z_um=2.0, shape_z=8)
    np.testing.assert_allclose(operator, [[0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0]], atol=1e-12)


def test_a_measured_profile_weighs_slices_as_it_says() -> None:
    profile = AxialProfile.sampled([1.0, 2.0, 5.0], 2.0)
    operator = projection_operator([4.0], profile, z0_um=0.0, voxel_z_um=2.0, shape_z=5)
    # Upper slices first: the profile runs along z as the volume does.
    np.testing.assert_allclose(operator, [[0, 0.125, 0.25, 0.625, 0]], atol=1e-12)


def test_a_slab_that_sticks_out_takes_the_volume_to_go_on() -> None:
    operator = projection_operator([0.0], AxialProfile.box(6.0), z0_um=0.0, voxel_z_um=2.0, shape_z=4)
    np.testing.assert_allclose(operator, [[0.5, 0.5, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("z_um", [-12.0, 100.0, float("nan"), float("inf")])
def test_a_slab_outside_of_the_volume_is_refused_by_number_and_place(z_um: float) -> None:
    with pytest.raises(GeometryError, match=r"Projection 1 at z = .* lies outside .* from -1 to 19 µm"):
        projection_operator([10.0, z_um], AxialProfile.box(6.0), z0_um=0.0, voxel_z_um=2.0, shape_z=10)


@pytest.mark.parametrize(
    ("weights", "spacing_um"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([1.0, -0.1], 1.0),
        ([1.0, float("nan")], 1.0),
        ([1.0, float("inf")], 1.0),
        ([1.0], 0.0),
        ([1.0], -2.0),
        ([1.0], float("nan")),
    ],
    ids=["empty", "dark", "negative", "nan", "infinite", "no length", "negative length", "nan length"],
)
def test_an_impossible_profile_is_refused(weights: list[float], spacing_um: float) -> None:
    with pytest.raises(GeometryError, match="axial profile needs"):
        AxialProfile.sampled(weights, spacing_um)


def test_a_profile_cannot_be_changed() -> None:
    source = np.array([1.0, 1.0])
    profile = AxialProfile.sampled(source, 2.0)
    source[0] = 100.0
    np.testing.assert_array_equal(profile.weights, [0.5, 0.5])
    with pytest.raises(ValueError, match="read-only"):
        profile.weights[0] = 1.0


@given(lengths, st.floats(0.2, 20.0), voxels, slices, origins, st.floats(0.0, 10.0))
def test_positions_stay_inside_and_cover_the_volume(
    length_um: float, step_um: float, voxel_z_um: float, shape_z: int, z0_um: float, offset_um: float
) -> None:
    height = shape_z * voxel_z_um
    low, high = z0_um - 0.5 * voxel_z_um, z0_um + height - 0.5 * voxel_z_um
    geometry: dict[str, Any] = {"z0_um": z0_um, "voxel_z_um": voxel_z_um, "shape_z": shape_z}
    if length_um + offset_um > height * (1 + 1e-6):
        with pytest.raises(GeometryError, match="does not fit into a volume"):
            sweep_positions(length_um=length_um, step_um=step_um, offset_um=offset_um, **geometry)
        return
    assume(length_um + offset_um <= height)
    z_um = sweep_positions(length_um=length_um, step_um=step_um, offset_um=offset_um, **geometry)
    slack = 1e-5 * (step_um + voxel_z_um)
    assert z_um[0] == pytest.approx(low + offset_um + 0.5 * length_um)
    np.testing.assert_allclose(np.diff(z_um), step_um)
    assert z_um[-1] + 0.5 * length_um <= high + slack
    assert z_um[-1] + 0.5 * length_um + step_um > high - slack, "one more would not fit"
    projection_operator(z_um, AxialProfile.box(length_um), **geometry)


def test_rounding_does_not_cost_a_slab() -> None:
    z_um = sweep_positions(length_um=0.3, step_um=0.3, z0_um=0.05, voxel_z_um=0.1, shape_z=9)
    np.testing.assert_allclose(z_um, [0.15, 0.45, 0.75])
