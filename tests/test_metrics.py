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
    np.testing.assert_allclose(metrics.psnr_per_slice(truth + 0.1, truth, data_range=10), 40.0)


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
