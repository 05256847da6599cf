from __future__ import annotations

import math

import numpy as np
import pytest

from microdiffusion import metrics
from microdiffusion.errors import InputFileError
from microdiffusion.optics import AxialProfile, projection_operator


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).random((8, 16, 17))


def test_psnr_of_a_constant_error_is_known(truth: np.ndarray) -> None:
    np.testing.assert_allclose(metrics.psnr_per_slice(truth + 0.1, truth), 20.0)


def test_figures_agree_with_scikit_image(truth: np.ndarray) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    estimate = truth + np.random.default_rng(1).normal(0, 0.05, truth.shape)
    psnr = [skimage.peak_signal_noise_ratio(t, e, data_range=1) for e, t in zip(estimate, truth, strict=True)]
    ssim = [skimage.structural_similarity(t, e, data_range=1) for e, t in zip(estimate, truth, strict=True)]
    np.testing.assert_allclose(metrics.psnr_per_slice(estimate, truth), psnr)
    np.testing.assert_allclose(metrics.ssim_per_slice(estimate, truth), ssim)


def test_perfect_answer_scores_finite_and_best(truth: np.ndarray) -> None:
    scores = metrics.score(truth, truth)
    assert scores.psnr_db == scores.foreground_psnr_db == pytest.approx(120)
    assert scores.ssim == pytest.approx(1)
    assert scores.ssim_3d == pytest.approx(1)
    assert scores.sharpness == pytest.approx(1)
    assert scores.slices == 8


def test_empty_background_does_not_flatter_the_foreground() -> None:
    truth = np.zeros((8, 32, 32))
    truth[:, 10:14, 10:14] = 1.0
    nothing = np.zeros_like(truth)
    assert metrics.psnr_per_slice(nothing, truth).mean() > 15
    assert metrics.foreground_psnr(nothing, truth) == pytest.approx(0)


def test_blur_along_z_lowers_sharpness(truth: np.ndarray) -> None:
    blurred = (truth + np.roll(truth, 1, axis=0)) / 2
    assert metrics.axial_sharpness(blurred, truth) < 0.8


def test_constant_truth_has_no_foreground_and_no_sharpness() -> None:
    flat = np.ones((8, 8, 8))
    assert math.isnan(metrics.foreground_psnr(flat, flat))
    assert math.isnan(metrics.axial_sharpness(flat, flat))


def test_slices_between_two_slabs_count_and_those_beyond_do_not() -> None:
    operator = projection_operator([3.5, 11.5], AxialProfile.box(2), z0_um=0, voxel_z_um=1, shape_z=16)
    np.testing.assert_array_equal(np.flatnonzero(metrics.seen_slices(operator)), np.arange(3, 13))


def test_mask_limits_what_is_scored(truth: np.ndarray) -> None:
    estimate = truth.copy()
    estimate[0] += 1
    mask = np.arange(8) > 0
    assert metrics.score(estimate, truth, slices=mask).psnr_db == pytest.approx(120)


@pytest.mark.parametrize(
    ("estimate", "truth", "words"),
    [
        pytest.param(np.ones((2, 8, 8)), np.ones((3, 8, 8)), "same shape", id="other shape"),
        pytest.param(np.ones((8, 8)), np.ones((8, 8)), "two volumes", id="an image"),
        pytest.param(np.ones((2, 5, 8)), np.ones((2, 5, 8)), "at least 7", id="smaller than the window"),
    ],
)
def test_what_cannot_be_compared_is_refused(estimate: np.ndarray, truth: np.ndarray, words: str) -> None:
    with pytest.raises(InputFileError, match=words):
        metrics.ssim_per_slice(estimate, truth)


def test_dice_takes_each_threshold_from_its_own_volume() -> None:
    truth = np.zeros((8, 16, 16))
    truth[:, 2:10, 4:8] = 1.0
    shifted = 0.1 + 0.5 * np.roll(truth, 2, axis=2)  # another scale, half of it beside the truth
    assert metrics.dice_after_otsu(0.1 + 0.5 * truth, truth) == pytest.approx(1)
    assert metrics.dice_after_otsu(shifted, truth) == pytest.approx(0.5)
    assert metrics.dice_after_otsu(np.zeros_like(truth), truth) == 0
    assert math.isnan(metrics.dice_after_otsu(truth, np.ones_like(truth)))


def test_foreground_sharpness_ignores_the_noise_of_the_background() -> None:
    truth = np.zeros((16, 16, 16))
    truth[6:10, 4:12, 4:12] = 1.0
    noisy = truth.copy()
    noisy[:, :3] += np.random.default_rng(0).normal(0, 0.3, (16, 3, 16))
    assert metrics.axial_sharpness(noisy, truth) > 1.5
    assert metrics.axial_sharpness(noisy, truth, foreground=True) == pytest.approx(1)


def test_axial_correlation_agrees_with_the_sums_over_shells() -> None:
    rng = np.random.default_rng(0)
    truth, estimate = rng.random((2, 12, 5, 6))
    window = np.hanning(14)[1:-1, None, None]
    ours, theirs = (np.fft.fftn(window * (v - v.mean(axis=0))) for v in (estimate, truth))
    expected = [
        np.sum(ours[k] * theirs[k].conj()).real
        / np.sqrt(np.sum(np.abs(ours[k]) ** 2) * np.sum(np.abs(theirs[k]) ** 2))
        for k in range(1, 7)
    ]
    result = metrics.axial_correlation(estimate, truth)
    np.testing.assert_allclose(result.correlation, expected, atol=1e-10)
    np.testing.assert_allclose(result.frequency, np.arange(1, 7) / 12)


def test_axial_cutoff_of_a_low_pass_is_its_frequency() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(64, 24, 24))
    spectrum = np.fft.rfft(truth, axis=0)
    spectrum[np.fft.rfftfreq(64) > 0.25] = 0
    passed = np.fft.irfft(spectrum, 64, axis=0) + 1e-3 * rng.normal(size=truth.shape)
    result = metrics.axial_correlation(passed, truth)
    assert result.cutoff == pytest.approx(0.25, abs=0.03)
    assert result.area == pytest.approx(0.5, abs=0.05)
    perfect = metrics.axial_correlation(truth, truth)
    assert perfect.cutoff == 0.5
    assert perfect.area == pytest.approx(1)


@pytest.mark.parametrize(
    ("correlation", "cutoff"),
    [
        pytest.param([1.0, 1.0, 1.0], 0.5, id="never"),
        pytest.param([0.1, 1.0, 1.0], 0.0, id="from the start"),
        pytest.param([1.0, 8 / 28, 0.0], 0.3, id="half way between two"),
        pytest.param([1.0, float("nan"), 1.0], 0.1 + 0.1 * 6 / 7, id="where nothing is known"),
    ],
)
def test_axial_cutoff_is_where_it_first_falls_below_a_seventh(
    correlation: list[float], cutoff: float
) -> None:
    result = metrics.AxialCorrelation(np.array([0.1, 0.2, 0.4]), np.array(correlation))
    assert result.cutoff == pytest.approx(cutoff)


def test_answer_without_detail_is_correlated_with_nothing() -> None:
    truth = np.random.default_rng(0).random((16, 8, 8))
    result = metrics.axial_correlation(np.full_like(truth, 0.5), truth)
    assert np.all(np.isnan(result.correlation))
    assert result.cutoff == result.area == 0


def test_held_out_error_is_in_units_of_the_noise() -> None:
    truth = np.random.default_rng(0).random((8, 16, 16))
    operator = projection_operator([3.5], AxialProfile.box(4), z0_um=0, voxel_z_um=1, shape_z=8)
    clean = truth[2:6].mean(axis=0, keepdims=True)
    assert metrics.held_out_error(truth, operator, clean, 0.01) == pytest.approx(0, abs=1e-9)
    assert metrics.held_out_error(truth, operator, clean + 0.03, 0.01) == pytest.approx(3)
    sigma = np.where(np.arange(16) < 8, 0.03, 0.01) * np.ones_like(clean)
    assert metrics.held_out_error(truth, operator, clean + sigma, sigma) == pytest.approx(1)


def test_bootstrap_interval_agrees_with_scipy_and_shrinks_with_more_values() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(3, 1, 40)
    low, high = metrics.bootstrap_interval(values)
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.02)
    few = metrics.bootstrap_interval(values[:10])
    assert few[1] - few[0] > high - low
    assert metrics.bootstrap_interval(values) == (low, high)


def test_bootstrap_interval_leaves_out_what_is_not_known() -> None:
    known = [1.0, 2.0, 3.0]
    assert metrics.bootstrap_interval([*known, float("nan")]) == metrics.bootstrap_interval(known)
    assert all(math.isnan(bound) for bound in metrics.bootstrap_interval([1.0]))


def test_score_holds_the_same_as_its_parts(truth: np.ndarray) -> None:
    estimate = np.clip(truth + np.random.default_rng(1).normal(0, 0.1, truth.shape), 0, 1)
    scores = metrics.score(estimate, truth)
    axial = metrics.axial_correlation(estimate, truth)
    assert scores.dice == metrics.dice_after_otsu(estimate, truth)
    assert scores.foreground_sharpness == metrics.axial_sharpness(estimate, truth, foreground=True)
    assert (scores.axial_cutoff, scores.axial_area) == (axial.cutoff, axial.area)
