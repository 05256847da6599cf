"""Image quality: fidelity and sharpness of a volume against the truth, confidence intervals, saturation.

Volumes are (Z, Y, X), estimate first, truth second, in the same units. The data range is
1, never taken from the data: scores of different answers stay comparable. Empty background
flatters both PSNR and SSIM, so the foreground is scored apart. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import InputFileError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SMALLEST_ERROR = 1e-12  # mean squared error at a data range of 1: equal slices score 120 dB, not infinity
# Fourier shell correlation above which a frequency counts as resolved (Rosenthal and Henderson 2003, 0.143).
_RESOLVED = 1 / 7
_RESAMPLES = 10_000
_FULL_SCALES = frozenset(
    {(1 << bits) - 1 for bits in range(8, 17)} | {((1 << bits) - 1) << (16 - bits) for bits in range(10, 16)}
)  # largest counts of cameras of 8 to 16 bits
_FEW_HOT = 2e-4  # share of the pixels below which it may be a few hot ones
_NEIGHBOURS, _PILE = 4, 4  # values next below the highest, and how much more frequent a limit is than they


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Scores of one answer over the slices that count.

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
    dice : float
        Overlap of the two foregrounds, each above its own Otsu threshold.
    foreground_sharpness : float
        Energy of the z-derivative relative to the truth's, where the truth is foreground.
    axial_cutoff : float
        Frequency along z, cycles per slice, up to which the answer is correlated with the truth.
    axial_area : float
        Mean of that correlation over all frequencies, 0 to 1.
    """

    psnr_db: float
    ssim: float
    ssim_3d: float
    foreground_psnr_db: float
    sharpness: float
    slices: int
    dice: float
    foreground_sharpness: float
    axial_cutoff: float
    axial_area: float


@dataclass(frozen=True, slots=True, eq=False)
class AxialCorrelation:
    """Fourier correlation of two volumes along z.

    Attributes
    ----------
    frequency, correlation : (F,) float64
        Cycles per slice, from the lowest above zero to 0.5; and the correlation there, -1 to 1. NaN where
        one of the volumes holds nothing at that frequency.
    """

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]

    @property
    def cutoff(self) -> float:
        """Frequency (cycles per slice) at which it first falls below 1/7; 0.5 where it never does."""
        known = np.where(np.isnan(self.correlation), 0.0, self.correlation)
        below = np.flatnonzero(known < _RESOLVED)
        if not below.size:
            return 0.5
        first = int(below[0])
        if first == 0:
            return 0.0
        high, low = known[first - 1], known[first]
        fraction = (high - _RESOLVED) / (high - low)
        step = self.frequency[first] - self.frequency[first - 1]
        return float(self.frequency[first - 1] + fraction * step)

    @property
    def area(self) -> float:
        """Mean over the frequencies; what is not known counts as 0. NaN where there is no frequency."""
        if not self.correlation.size:
            return float("nan")
        return float(np.mean(np.where(np.isnan(self.correlation), 0.0, self.correlation)))


def psnr_per_slice(estimate: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio (Z,) of each slice, dB; 120 dB where a slice is equal."""
    estimate, truth = _pair(estimate, truth)
    return _decibel(np.mean(np.square(estimate - truth), axis=(1, 2)))


def ssim_per_slice(estimate: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Return the structural similarity (Z,) of each slice: scikit-image's default, a uniform window of 7.

    Raises
    ------
    InputFileError
        A slice is smaller than 7 x 7.
    """
    estimate, truth = _pair(estimate, truth)
    return np.array([_ssim(a, b) for a, b in zip(estimate, truth, strict=True)])


def ssim_3d(estimate: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the structural similarity of the whole volume, window 7 x 7 x 7."""
    return _ssim(*_pair(estimate, truth))


def foreground_psnr(estimate: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the PSNR (dB) over the voxels where the truth is above its Otsu threshold; NaN: nowhere."""
    estimate, truth = _pair(estimate, truth)
    mask = truth > _otsu(truth)
    if not mask.any():
        return float("nan")
    return float(_decibel(np.mean(np.square(estimate[mask] - truth[mask]))))


def axial_sharpness(estimate: NDArray[Any], truth: NDArray[Any], *, foreground: bool = False) -> float:
    """Return the energy of the estimate's z-derivative relative to the truth's: below 1 is blurred.

    With `foreground`, over the pairs of neighbouring slices where the truth is above its Otsu threshold in
    at least one of the two: the background's noise then does not count. NaN where the truth is constant.
    """
    estimate, truth = _pair(estimate, truth)
    counted: Any = Ellipsis
    if foreground:
        mask = truth > _otsu(truth)
        counted = mask[1:] | mask[:-1]
    energy = float(np.sum(np.square(np.diff(truth, axis=0)[counted])))
    if energy == 0:
        return float("nan")
    return float(np.sum(np.square(np.diff(estimate, axis=0)[counted]))) / energy


def dice_after_otsu(estimate: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the Dice overlap ``2 |A and B| / (|A| + |B|)`` of the two foregrounds.

    Each volume is segmented by its own Otsu threshold, one for the whole volume, so a wrong scale alone
    costs nothing. NaN where the truth is constant.
    """
    estimate, truth = _pair(estimate, truth)
    if np.ptp(truth) == 0:
        return float("nan")
    ours, theirs = estimate > _otsu(estimate), truth > _otsu(truth)
    return float(2 * np.sum(ours & theirs) / (np.sum(ours) + np.sum(theirs)))


def axial_correlation(estimate: NDArray[Any], truth: NDArray[Any]) -> AxialCorrelation:
    """Return the Fourier shell correlation of two volumes as a function of the frequency along z.

    Harauz and van Heel (1986), with planes of constant axial frequency in place of shells: each plane holds
    all lateral frequencies, so the sums run over all pixels (Parseval) of the Fourier transforms along z,

        FSC(k) = Re Σ_yx E(k) conj T(k) / sqrt(Σ_yx |E(k)|² Σ_yx |T(k)|²).

    Each pixel's mean along z is taken off and a Hann window laid over z first: without it the ends, which do
    not join, leak their lowest frequencies into all others.
    """
    estimate, truth = _pair(estimate, truth)
    slices = truth.shape[0]
    window = np.hanning(slices + 2)[1:-1, None, None]
    ours, theirs = (np.fft.rfft(window * (v - v.mean(axis=0)), axis=0)[1:] for v in (estimate, truth))
    power = np.sum(np.abs(ours) ** 2, axis=(1, 2)) * np.sum(np.abs(theirs) ** 2, axis=(1, 2))
    cross = np.sum(ours * theirs.conj(), axis=(1, 2)).real
    smallest = (slices * 1e-12) ** 2 * truth[0].size
    known = power > smallest**2
    correlation = np.divide(cross, np.sqrt(power), out=np.full(power.shape, np.nan), where=known)
    frequency = np.asarray(np.fft.rfftfreq(slices)[1:], dtype=np.float64)
    return AxialCorrelation(frequency, correlation)


def held_out_error(
    volume: NDArray[Any],
    operator: NDArray[np.float64],
    projections: NDArray[Any],
    noise: NDArray[Any] | float,
) -> float:
    """Return the misfit of projections that a volume was not made from, in units of their noise.

    Root mean square of ``(A x - p) / σ``: 1 is as good as the noise allows.

    Parameters
    ----------
    volume : (Z, Y, X)
    operator : (H, Z) float64
        `microdiffusion.optics.projection_operator` at the held-out slabs.
    projections : (H, Y, X)
        In the units of the volume.
    noise : (H, Y, X) or number
        Standard deviation σ of the projections' noise, above 0.
    """
    miss = np.tensordot(operator, np.asarray(volume, dtype=np.float64), axes=1) - projections
    return float(np.sqrt(np.mean(np.square(miss / noise))))


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high), 95 %, of the mean of `values` (N,).

    Efron and Tibshirani (1993), chapter 13. One value stands for one volume: slices of a volume are not
    independent, volumes are. NaNs are left out; NaN where fewer than two values remain.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    array = array[~np.isnan(array)]
    if array.size < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(array.size, size=(_RESAMPLES, array.size))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def seen_slices(operator: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask (Z,) of the slices that count: those that a projection saw, and those in between.

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
    estimate: NDArray[Any], truth: NDArray[Any], *, slices: NDArray[np.bool_] | None = None
) -> ImageScores:
    """Return all scores, over the slices (Z,) of the mask `slices` where one is given."""
    estimate, truth = _pair(estimate, truth)
    if slices is not None:
        estimate, truth = estimate[slices], truth[slices]
    axial = axial_correlation(estimate, truth)
    return ImageScores(
        psnr_db=float(np.mean(psnr_per_slice(estimate, truth))),
        ssim=float(np.mean(ssim_per_slice(estimate, truth))),
        ssim_3d=ssim_3d(estimate, truth) if min(truth.shape) >= 7 else float("nan"),
        foreground_psnr_db=foreground_psnr(estimate, truth),
        sharpness=axial_sharpness(estimate, truth),
        slices=truth.shape[0],
        dice=dice_after_otsu(estimate, truth),
        foreground_sharpness=axial_sharpness(estimate, truth, foreground=True),
        axial_cutoff=axial.cutoff,
        axial_area=axial.area,
    )


def _pair(estimate: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if estimate.shape != truth.shape or truth.ndim != 3 or truth.size == 0:
        raise InputFileError(
            f"Estimate and truth should be two volumes (Z, Y, X) of the same shape, "
            f"not {estimate.shape} and {truth.shape}: crop or resample one of them."
        )
    return np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)


def _otsu(volume: NDArray[np.float64]) -> float:
    """Return the threshold of Otsu (1979) over the whole volume; a constant one is all background."""
    if np.ptp(volume) == 0:
        return float(volume.flat[0])
    from skimage import filters

    threshold: Any = filters.threshold_otsu  # scikit-image has no annotations
    return float(threshold(volume))


def _decibel(mean_square: Any) -> NDArray[np.float64]:
    error = np.asarray(mean_square, dtype=np.float64)
    return np.asarray(-10.0 * np.log10(np.maximum(error, _SMALLEST_ERROR)))


def _ssim(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    if min(truth.shape) < 7:
        raise InputFileError(
            f"Structural similarity needs at least 7 voxels along each axis, not {truth.shape}: "
            "score a larger part."
        )
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity  # scikit-image has no annotations
    return float(similarity(estimate, truth, data_range=1.0))


def saturation_level(pixels: NDArray[Any], *, least: int = 8) -> float | None:
    """Return the count at which a camera's pixels are saturated; None where they are not.

    A camera's largest count is not in its metadata (12 bits come as 16, binning and gain tables shift the
    end), but it shows: light beyond it piles up on one value. That value is the highest, and a power of two
    less one (or such a value shifted to the upper bits), or else so frequent that no tail of a distribution
    explains it.

    Parameters
    ----------
    pixels : any shape, counts
    least : int
        Pixels from which on a value counts where it is not a full scale: hot pixels are few.
    """
    if not pixels.size:
        return None
    top = pixels.max()
    count = int(np.count_nonzero(pixels == top))
    if top in _FULL_SCALES and count >= _FEW_HOT * pixels.size:
        return float(top)
    if count < max(least, _FEW_HOT * pixels.size):
        return None
    rest, beside = pixels, 0
    for _ in range(_NEIGHBOURS):
        rest = rest[rest < rest.max()]
        if not rest.size:
            break
        beside = max(beside, int(np.count_nonzero(rest == rest.max())))
    return float(top) if 0 < _PILE * beside < count else None
