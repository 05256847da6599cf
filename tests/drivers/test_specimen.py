"""The virtual specimen: its projections are the slab integrals of its truth, and it looks alive."""

from __future__ import annotations

import time

import numpy as np
import pytest

from microdiffusion.config.models import SpecimenConfig
from microdiffusion.drivers.specimen.anatomy import grow
from microdiffusion.drivers.specimen.raster import Grid, Tube, ball, cover
from microdiffusion.drivers.specimen.specimen import DRIFT_REACH_UM, Specimen
from microdiffusion.frames import StagePosition
from microdiffusion.header import CameraNoise
from microdiffusion.optics import AxialProfile, projection_operator

SHAPE, VOXEL, Z0 = (24, 64, 72), (2.0, 0.8, 0.8), -10.0
LIVELY = SpecimenConfig(seed=3, neurons=2, vessels=1, nuclei=8, drift_um_per_min=30.0, bleaching_per_min=0.2)


def make(**changes: object) -> Specimen:
    config = LIVELY.model_copy(update=changes)
    return Specimen(config, shape=SHAPE, voxel_size_um=VOXEL, z0_um=Z0, slab_um=12.0)


@pytest.fixture(scope="module")
def lively() -> Specimen:
    return make()


PROFILES = {
    "box": AxialProfile.box(12.0),
    "box off the grid": AxialProfile.box(10.7),
    "bell": AxialProfile.sampled(np.exp(-0.5 * np.linspace(-2, 2, 41) ** 2), 0.3),
}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("time_s", [0.0, 3.7, 95.3])
def test_a_projection_is_the_slab_integral_of_the_truth_at_that_moment(
    lively: Specimen, profile: AxialProfile, time_s: float
) -> None:
    z_um = np.array([-4.3, 0.0, 11.9, 29.0])
    operator = projection_operator(z_um, profile, z0_um=Z0, voxel_z_um=VOXEL[0], shape_z=SHAPE[0])
    truth = np.tensordot(operator, lively.volume(time_s), axes=1)
    seen = np.stack([lively.expected(StagePosition(float(z)), profile, time_s) for z in z_um])
    assert seen.shape == (4, *SHAPE[1:])
    np.testing.assert_allclose(seen, truth, rtol=2e-4, atol=2e-3)


def test_a_slab_that_overhangs_sees_tissue_beyond_the_volume(lively: Specimen) -> None:
    profile = AxialProfile.box(12.0)
    above = lively.expected(StagePosition(Z0 - 1.0 - 6.0), profile, 0.0)
    inside = lively.expected(StagePosition(Z0 - 1.0 + 6.0), profile, 0.0)
    assert above.max() > 3 * np.median(above)  # something grows there
    assert np.corrcoef(above.ravel(), inside.ravel())[0, 1] < 0.9


def test_a_volume_thinner_than_half_a_slab_has_light() -> None:
    thin = Specimen(SpecimenConfig(), shape=(10, 24, 24), voxel_size_um=(0.5, 0.5, 0.5), slab_um=12.0)
    light = thin.expected(StagePosition(2.5), AxialProfile.box(12.0), 0.0)
    assert np.isfinite(light).all()
    assert float(light.max()) > 0.0


def test_the_same_seed_gives_the_same_specimen_and_another_seed_another() -> None:
    first, again, other = make(seed=5), make(seed=5), make(seed=6)
    np.testing.assert_array_equal(first.volume(4.2), again.volume(4.2))
    assert np.corrcoef(first.volume(4.2).ravel(), other.volume(4.2).ravel())[0, 1] < 0.5


def test_moments_may_be_asked_for_in_any_order(lively: Specimen) -> None:
    fresh = make()
    times = [60.0, 0.0, 31.5, 60.0]
    for t in times:
        np.testing.assert_array_equal(fresh.volume(t), lively.volume(t))


def test_noise_is_that_of_photons_gain_offset_and_readout(lively: Specimen) -> None:
    camera = CameraNoise(offset=100.0, gain=2.5, read_noise=3.0)
    profile, rng = AxialProfile.box(12.0), np.random.default_rng(0)
    photons = lively.expected(StagePosition(10.0), profile, 1.0).astype(np.float64)
    frames = np.stack([camera.expose(photons, rng) for _ in range(400)]).astype(float)
    assert frames.shape[1:] == SHAPE[1:]
    z_scores = (frames.mean(0) - 100 - 2.5 * photons) / np.sqrt((2.5**2 * photons + 9 + 1 / 12) / 400)
    assert abs(z_scores.mean()) < 0.05
    assert z_scores.std() == pytest.approx(1.0, abs=0.05)
    assert frames.var(0).mean() == pytest.approx((2.5**2 * photons + 9 + 1 / 12).mean(), rel=0.02)


def test_bright_counts_saturate_instead_of_wrapping_round() -> None:
    specimen = make(photons=1e6)
    camera = CameraNoise(gain=1.0)
    frame = camera.expose(
        specimen.expected(StagePosition(10.0), AxialProfile.box(12.0), 0.0), np.random.default_rng(0)
    )
    assert frame.max() == 65535


def test_drift_starts_at_the_configured_speed_and_stays_within_reach() -> None:
    specimen = make(drift_um_per_min=3.0)
    assert np.linalg.norm(specimen.drift_um(1.0) - specimen.drift_um(0.0)) == pytest.approx(0.05, rel=1e-3)
    path = np.array([specimen.drift_um(t) for t in np.linspace(0, 7200, 2000)])
    assert np.abs(path).max() <= DRIFT_REACH_UM + 1e-9
    specimen.volume(3600.0)  # and the margin is wide enough for it


def test_drift_moves_the_image_by_whole_and_broken_pixels() -> None:
    still = SpecimenConfig(
        seed=3, neurons=2, vessels=1, nuclei=8, activity=0, bleaching_per_min=0, drift_um_per_min=60
    )
    specimen = Specimen(still, shape=SHAPE, voxel_size_um=VOXEL, z0_um=Z0)
    before, after = specimen.volume(0.0).sum(0), specimen.volume(2.0).sum(0)
    spectrum = np.fft.fft2(before) * np.conj(np.fft.fft2(after))
    peak = np.unravel_index(np.argmax(np.fft.ifft2(spectrum).real), before.shape)
    found = np.array([p if p < n / 2 else p - n for p, n in zip(peak, before.shape, strict=True)])
    np.testing.assert_allclose(-found, specimen.drift_um(2.0) / 0.8, atol=1.0)


def test_bleaching_takes_the_configured_share_each_minute() -> None:
    specimen = make(drift_um_per_min=0.0, activity=0.0)
    ratio = specimen.volume(60.0) / specimen.volume(0.0)
    np.testing.assert_allclose(ratio, 0.8, rtol=1e-4)


def test_neurons_flicker_by_no_more_than_the_configured_peak_and_the_rest_is_still() -> None:
    specimen = make(drift_um_per_min=0.0, bleaching_per_min=0.0, activity=1.5)
    quiet = make(drift_um_per_min=0.0, bleaching_per_min=0.0, activity=0.0).volume(0.0)
    ratio = np.stack([specimen.volume(t) for t in np.linspace(0, 30, 31)]) / quiet
    assert 1.6 < ratio.max() <= 2.5
    assert ratio.min() >= 1.0 - 1e-5
    assert np.mean(ratio.max(0) < 1.01) > 0.4


def test_dynamic_range_is_that_of_a_microscope(lively: Specimen) -> None:
    sweep = np.stack(
        [lively.expected(StagePosition(z), AxialProfile.box(12.0), 0.0) for z in (-5.0, 7.0, 19.0, 31.0)]
    )
    assert 0.5 * LIVELY.photons < np.percentile(sweep, 99.9) < 2.1 * LIVELY.photons
    assert 2.0 < np.median(sweep) < 0.15 * LIVELY.photons  # dim, but not nothing
    assert sweep.min() > 0


@pytest.mark.parametrize("kind", ["neurons", "vessels", "nuclei", "none"])
def test_each_kind_may_be_absent(kind: str) -> None:
    counts = {name: 0 for name in ("neurons", "vessels", "nuclei") if kind in (name, "none")}
    volume = make(**counts).volume(1.0)
    assert np.all(np.isfinite(volume))
    assert volume.min() > 0


def test_a_projection_takes_a_few_milliseconds() -> None:
    specimen = Specimen(SpecimenConfig(), shape=(48, 128, 128), voxel_size_um=(2.0, 0.5, 0.5))
    rng, camera, profile = np.random.default_rng(0), CameraNoise(read_noise=2.0), AxialProfile.box(12.0)
    times = []
    for i in range(20):
        begin = time.perf_counter()
        camera.expose(specimen.expected(StagePosition(6.0 + 4 * i), profile, 0.05 * i), rng)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 0.02  # 1.2 ms on an idle core; the rest is for busy machines


# Voxels -------------------------------------------------------------------------------------------

DIRECTIONS = {"along z": (1, 0, 0), "along x": (0, 0, 1), "oblique": (0.5, 0.6, -0.7)}


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("radius", [0.15, 0.6, 2.5])
def test_a_tube_fills_its_volume_however_it_lies_on_the_grid(
    direction: tuple[float, float, float], radius: float
) -> None:
    voxel = np.array([2.0, 0.5, 0.5])
    grid = Grid((20, 80, 80), voxel, np.zeros(3))
    way = np.array(direction) / np.linalg.norm(direction)
    centre = np.array([20.3, 20.1, 19.7])
    points = centre + np.arange(-6, 7)[:, None] * way
    tube = Tube(points, np.full(13, radius))
    where, coverage = cover([tube], grid, np.random.default_rng(0))
    assert np.all(np.diff(where) > 0)
    assert coverage.sum() * voxel.prod() == pytest.approx(np.pi * radius**2 * 12, rel=0.02)
    middle = np.average(
        np.column_stack(np.unravel_index(where, grid.shape)) * voxel, axis=0, weights=coverage
    )
    np.testing.assert_allclose(middle, centre, atol=0.05)


def test_a_ball_fills_its_volume_and_one_outside_of_the_grid_nothing() -> None:
    grid, rng = Grid((20, 60, 60), np.array([2.0, 0.5, 0.5]), np.zeros(3)), np.random.default_rng(0)
    _, coverage = cover([ball(np.array([19.0, 15.2, 14.9]), 5.0, 4.0)], grid, rng)
    assert coverage.sum() * 0.5 == pytest.approx(4 / 3 * np.pi * 80, rel=0.03)
    assert cover([ball(np.full(3, 500.0), 5.0, 4.0)], grid, rng)[0].size == 0


def test_nuclei_touch_neither_vessels_nor_each_other() -> None:
    pieces = grow(11, np.zeros(3), np.array([100.0, 80.0, 80.0]), neurons=2, vessels=2, nuclei=40)
    centres = np.array([piece.tubes[0].points.mean(0) for piece in pieces if piece.kind == "nucleus"])
    assert len(centres) > 20
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 100 * np.eye(len(centres))
    assert apart.min() > 5.0
    vessels = [piece for piece in pieces if piece.kind == "vessel"]
    walls = np.concatenate([tube.points for vessel in vessels for tube in vessel.tubes])
    assert np.linalg.norm(centres[:, None] - walls[None], axis=-1).min() > 3.0
