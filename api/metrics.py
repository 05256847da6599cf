"""How good a volume is: PSNR, SSIM and sharpness against the truth.

Volumes are (Z, Y, X), estimate first, truth second, in the same units. The data range is always an
argument or 1, never taken from the data: scores of different answers stay comparable. Empty background
flatters both PSNR and SSIM, so the foreground is scored apart. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import DependencyError, InputFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALLEST_ERROR = 1e-12  # mean squared error at a data range of 1: equal slices score 120 dB, not infinity


@dataclass(frozen=True, slots=True)
class Scores:
    """One answer's scores over the slices that count.

    Attributes
    ----------
    psnr_db, ssim : float
        Mean over slices of the 2D figures.
    ssim_3d : float
    foreground_psnr_db : float
        PSNR over the voxels above the truth's Otsu threshold.
    sharpness : float
        Energy of the z-derivative relative to the truth's.
    slices : int
        Number of slices that were scored.
    """

    psnr_db: float
    ssim: float
    ssim_3d: float
    foreground_psnr_db: float
    sharpness: float
    slices: int


def psnr_per_slice(
    estimate: NDArray[Any], truth: NDArray[Any], *, data_range: float = 1.0
) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio (Z,) of each slice, dB; 120 dB where a slice is equal."""
    estimate, truth = _pair(estimate, truth)
    return _decibel(np.mean(np.square(estimate - truth), axis=(1, 2)), data_range)


def ssim_per_slice(
    estimate: NDArray[Any], truth: NDArray[Any], *, data_range: float = 1.0
) -> NDArray[np.float64]:
    """Return the structural similarity (Z,) of each slice: scikit-image's default, a uniform window of 7.

    Raises
    ------
    InputFileError
        A slice is smaller than 7 x 7.
    """
    estimate, truth = _pair(estimate, truth)
    return np.array([_ssim(a, b, data_range) for a, b in zip(estimate, truth, strict=True)])


def ssim_3d(estimate: NDArray[Any], truth: NDArray[Any], *, data_range: float = 1.0) -> float:
    """Return the structural similarity of the whole volume, window 7 x 7 x 7."""
    return _ssim(*_pair(estimate, truth), data_range)


def foreground_psnr(
    estimate: NDArray[Any], truth: NDArray[Any], *, data_range: float = 1.0, threshold: float | None = None
) -> float:
    """Return the PSNR (dB) over the voxels where the truth is above `threshold`.

    `threshold` None stands for the truth's Otsu threshold. NaN where no voxel is above it.
    """
    estimate, truth = _pair(estimate, truth)
    if threshold is None:
        threshold = float(_filters().threshold_otsu(truth)) if np.ptp(truth) > 0 else float(truth.flat[0])
    mask = truth > threshold
    if not mask.any():
        return float("nan")
    return float(_decibel(np.mean(np.square(estimate[mask] - truth[mask])), data_range))


def axial_sharpness(estimate: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the energy of the estimate's z-derivative relative to the truth's: below 1 is blurred."""
    estimate, truth = _pair(estimate, truth)
    energy = float(np.sum(np.square(np.diff(truth, axis=0))))
    if energy == 0:
        return float("nan")
    return float(np.sum(np.square(np.diff(estimate, axis=0)))) / energy


def seen_slices(operator: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which slices (Z,) count: those that a projection saw, and those between two that did.

    Parameters
    ----------
    operator : (M, Z) float64
        `microdiffusion.optics.projection_operator`.
    """
    seen = np.flatnonzero(np.any(operator > 0, axis=0))
    mask = np.zeros(operator.shape[1], dtype=np.bool_)
    if seen.size:
        mask[seen[0] : seen[-1] + 1] = True
    return mask


def score(
    estimate: NDArray[Any],
    truth: NDArray[Any],
    *,
    data_range: float = 1.0,
    slices: NDArray[np.bool_] | None = None,
) -> Scores:
    """Return all scores, over the slices (Z,) of the mask `slices` where one is given."""
    estimate, truth = _pair(estimate, truth)
    if slices is not None:
        estimate, truth = estimate[slices], truth[slices]
    return Scores(
        psnr_db=float(np.mean(psnr_per_slice(estimate, truth, data_range=data_range))),
        ssim=float(np.mean(ssim_per_slice(estimate, truth, data_range=data_range))),
        ssim_3d=ssim_3d(estimate, truth, data_range=data_range) if min(truth.shape) >= 7 else float("nan"),
        foreground_psnr_db=foreground_psnr(estimate, truth, data_range=data_range),
        sharpness=axial_sharpness(estimate, truth),
        slices=truth.shape[0],
    )


def _pair(estimate: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if estimate.shape != truth.shape or truth.ndim != 3 or truth.size == 0:
        raise InputFileError(
            f"Estimate and truth should be two volumes (Z, Y, X) of the same shape, "
            f"not {estimate.shape} and {truth.shape}: crop or resample one of them."
        )
    return np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)


def _decibel(mean_square: Any, data_range: float) -> NDArray[np.float64]:
    relative = np.asarray(mean_square, dtype=np.float64) / data_range**2
    return np.asarray(-10.0 * np.log10(np.maximum(relative, _SMALLEST_ERROR)))


def _ssim(estimate: NDArray[np.float64], truth: NDArray[np.float64], data_range: float) -> float:
    if min(truth.shape) < 7:
        raise InputFileError(
            f"Structural similarity needs at least 7 voxels along each axis, not {truth.shape}: "
            "score a larger part."
        )
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise _missing() from error
    similarity: Any = structural_similarity  # scikit-image has no annotations
    return float(similarity(estimate, truth, data_range=data_range))


def _filters() -> Any:
    try:
        from skimage import filters
    except ImportError as error:
        raise _missing() from error
    return filters


def _missing() -> DependencyError:
    return DependencyError("This score needs scikit-image: install it with `pip install scikit-image`.")
