"""Covariances of a session's field along z: one for each age, the same for all voxels of that age.

The beam integrates along z only, so how well a voxel is known depends on how many sweeps it has kept still
and on where their slabs lay, not on what was seen. The prior is a Gaussian process along z with a Matérn 3/2
kernel (Rasmussen & Williams 2006, section 4.2.1) and a mean that is not known.

Broad structure across a projection stands far above the noise, fine structure hardly does; so the images
are split into two bands, each with an amplitude of its own, which a sweep's neighbouring slabs tell. What is
fine is then believed slowly and what is broad at once. Covariances are numbers of the host, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.projections import tensor_of

Matrix = NDArray[np.float64]
Amplitudes = tuple[float, float]
"""Of the broad and of the fine band, in units of the range."""
OLDEST = 8
"""Ages that are told apart; everything older shares one covariance, that of the whole session."""
_LEVEL = 1.0  # variance of the unknown mean of a column's broad band, in units of the range
_AMPLITUDE = 0.05  # of the field's variation along z, in units of the range, where no sweep tells
_SMOOTHER = 0.7  # of the amplitude that neighbouring slabs tell: between them the field varies less
_LEAST = 1e-3  # amplitude
_FORGETTING = 1e-3  # of the prior's variance, per sweep: bounds what an old sweep is believed
_PIXELS = 2048  # enough for a choice
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # binomial, standard deviation 1 pixel
_BROAD = float(np.square(_BLUR).sum() ** 2)
NOISE_SHARES = (_BROAD, 1 - 2 * _BLUR[2] ** 2 + _BROAD)
"""Of white noise's variance, in the broad and in the fine band."""


@dataclass(frozen=True, slots=True, eq=False)
class KalmanGain:
    """Effect of a sweep on the voxels of an age.

    Attributes
    ----------
    gain : (Z, 2 M)
    predicted : (M,)
        Variance of the prediction without noise.
    left : (Z,)
        Variance of the voxels afterwards.
    told : (Z,) float64
        The share of their variance that goes.
    """

    gain: Tensor
    predicted: Tensor
    left: Tensor
    told: Matrix


class AgeCovariances:
    """The covariances (2, Z, Z), of the broad and of the fine band.

    Parameters
    ----------
    slices : int
    bandwidth : float
        Along z, cycles per slice: `field.default_bandwidth`.

    Attributes
    ----------
    amplitudes : (broad, fine), optional
        Of the field's variation along z; None until they are chosen.
    by_age : tuple of (2, Z, Z)
        After the last sweep, from age 1.
    """

    def __init__(self, slices: int, bandwidth: float) -> None:
        self.amplitudes: Amplitudes | None = None
        self.by_age: tuple[Matrix, ...] = ()
        self._kernel = matern(slices, bandwidth)

    @property
    def predicted(self) -> list[Matrix]:
        """Covariances (2, Z, Z) ahead of the next sweep: of what nothing is known of, then by age."""
        varied = np.square(self.amplitudes or (_AMPLITUDE, _AMPLITUDE))[:, None, None] * self._kernel
        prior = varied + np.array([_LEVEL, 0.0])[:, None, None]
        return [prior, *(each + _FORGETTING * varied for each in self.by_age)]

    def total(self, age: int) -> Matrix:
        """Return the covariance (Z, Z) of both bands together after the last sweep, for an age from 1 on."""
        covariance: Matrix = self.by_age[min(age, len(self.by_age)) - 1].sum(0)
        return covariance

    def advance(self, matrix: Matrix, noise: Matrix, device: torch.device) -> list[KalmanGain]:
        """Take a sweep in, and return the gains, on a device: of what is new, then by age.

        `matrix` (M, Z) is the operator of its slabs, `noise` (M,) the variance of their noise.
        """
        ahead = np.stack(self.predicted)  # (ages, 2, Z, Z)
        cross = ahead @ matrix.T
        spread = matrix @ cross
        system = spread + np.array(NOISE_SHARES)[:, None, None] * np.diag(noise)
        gain = np.linalg.solve(system, cross.swapaxes(2, 3)).swapaxes(2, 3)
        left = ahead - gain @ cross.swapaxes(2, 3)
        after = (left + left.swapaxes(2, 3)) / 2
        before, predicted, rest = (each.sum(1).diagonal(axis1=1, axis2=2) for each in (ahead, spread, left))
        gains = [
            KalmanGain(
                tensor_of(np.concatenate([*gain[age]], axis=1), device),
                tensor_of(predicted[age], device),
                tensor_of(rest[age], device),
                1 - rest[age] / before[age],
            )
            for age in range(len(ahead))
        ]
        # What was next to the oldest joins it.
        self.by_age = tuple(after) if len(after) <= OLDEST else (*after[: OLDEST - 1], after[OLDEST])
        return gains

    def information(self, matrix: Matrix, noise: float, shares: Matrix) -> float:
        """Return what a sweep is expected to tell of the field, bits per pixel: the mutual information.

        It is half the log-determinant of the innovation's covariance in units of the noise's (Cover &
        Thomas 2006, section 9.4), and each band counts by its share of independent pixels.

        Parameters
        ----------
        matrix : (M, Z)
            The operator of its slabs.
        noise : float
            Variance of their noise, in units of the range.
        shares : (ages,)
            Of the voxels, from age 0 on; those beyond the last known age count as that.
        """
        bits = 0.0
        known = self.predicted
        shares = np.append(shares[: len(known) - 1], shares[len(known) - 1 :].sum())
        for covariance, share in zip(known, shares, strict=True):
            if share <= 0.0:
                continue
            for band, weight in zip(covariance, NOISE_SHARES, strict=True):
                system = np.eye(len(matrix)) + matrix @ band @ matrix.T / (weight * noise)
                bits += share * weight * 0.5 * np.linalg.slogdet(system)[1] / np.log(2.0)
        return float(bits)

    def choose_amplitudes(self, matrix: Matrix, banded: Matrix, noise: Matrix) -> None:
        """Choose the amplitudes that explain how much neighbouring slabs of a sweep differ (the variogram).

        `matrix` (M, Z) is its operator, `banded` (2 M, P) are its pixels, `noise` (M,) its noise variance.
        """
        if len(matrix) < 2:  # no neighbours
            self.amplitudes = (_AMPLITUDE, _AMPLITUDE)
            return
        step = np.diff(matrix, axis=0)
        unit = float(np.einsum("mz,zw,mw->m", step, self._kernel, step).mean())
        differences = np.diff(banded.reshape(2, len(matrix), -1), axis=1).var(axis=(1, 2))
        signal = (differences - 2 * float(noise.mean()) * np.array(NOISE_SHARES)).clip(min=0.0)
        broad, fine = np.maximum(_SMOOTHER * np.sqrt(signal / unit), _LEAST).tolist()
        self.amplitudes = (broad, fine)

    def forget(self) -> None:
        """Begin with the next sweep."""
        self.amplitudes, self.by_age = None, ()

    def shift(self, deeper: int) -> None:
        """Look at slices that lie so many deeper; of those that come into view nothing is known."""
        here, there = overlap(deeper, len(self._kernel))
        shifted = []
        for covariance in self.by_age:
            moved = self.predicted[0]
            moved[:, here, :] = 0.0
            moved[:, :, here] = 0.0
            moved[:, here, here] = covariance[:, there, there]
            shifted.append(moved)
        self.by_age = tuple(shifted)


def leeway(covariance: Matrix) -> Matrix:
    """Return what the sweeps so far leave open to other knowledge (Z, Z).

    `covariance` (Z, Z) is that of a column. Of what something else would change, it is the part to believe if
    that errs as much as the field does on average: P (P + mean variance)^-1. What the sweeps have told stays
    as it is, and what lies between the slabs of all of them is free.
    """
    variance = float(covariance.diagonal().mean())
    result: Matrix = covariance @ np.linalg.inv(covariance + variance * np.eye(len(covariance)))
    return result


def banded(images: Tensor) -> Tensor:
    """Return the broad and the fine band of images (M, Y, X), one after the other (2 M, Y X)."""
    edge = len(_BLUR) // 2
    padded = F.pad(images[None], (edge,) * 4, mode="replicate")[0]
    broad = _blurred(_blurred(padded, 1), 2)
    return torch.cat([broad, images - broad]).flatten(1)


def _blurred(images: Tensor, axis: int) -> Tensor:
    """Return images blurred along an axis, and shorter by the blur's width; sums of shifted images."""
    length = images.shape[axis] - len(_BLUR) + 1
    near = [images.narrow(axis, first, length) for first in range(len(_BLUR))]
    broad = near[2] * _BLUR[2]
    broad.add_(near[0] + near[4], alpha=_BLUR[0])
    return broad.add_(near[1] + near[3], alpha=_BLUR[1])


def matern(slices: int, bandwidth: float) -> Matrix:
    """Return the Matérn 3/2 kernel (Z, Z) of unit variance; `bandwidth` as of `axial_basis`."""
    distance = 2 * np.pi * bandwidth * np.abs(np.arange(slices)[:, None] - np.arange(slices))
    return np.asarray((1 + distance) * np.exp(-distance), dtype=np.float64)


def overlap(by: int, edge: int) -> tuple[slice, slice]:
    """Return what of an axis stays in view when looked at from so many voxels further, and where it was."""
    by = max(-edge, min(by, edge))  # nothing stays where it went further than it is wide
    return slice(max(-by, 0), edge - max(by, 0)), slice(max(by, 0), edge - max(-by, 0))


@torch.no_grad()
def sweep_deviation(
    matrix: NDArray[np.float64], images: Tensor, variance: Tensor, bandwidth: float
) -> Tensor:
    """Return the standard deviation (Z, Y, X) with which a sweep alone tells each slice.

    Parameters
    ----------
    matrix : (M, Z) float64
    images, variance : (M, Y, X)
        Projections, and their noise variance.
    bandwidth : float
        See `SessionEstimator`.
    """
    covariances, noise = AgeCovariances(matrix.shape[1], bandwidth), noise_of(variance)
    covariances.choose_amplitudes(matrix, some_pixels(banded(images)), noise)
    left = covariances.advance(matrix, noise, images.device)[0].left
    return left.clamp_min(0.0).sqrt()[:, None, None].expand(-1, *images.shape[1:])


def noise_of(variance: Tensor) -> Matrix:
    """Return the noise (M,) of projections, from the variance (M, Y, X) of their pixels."""
    noise: Matrix = variance.mean(dim=(1, 2)).double().cpu().numpy()
    return noise


def some_pixels(images: Tensor) -> Matrix:
    """Return enough of the pixels of images (M, P)."""
    pixels: Matrix = images[:, :: max(1, images.shape[1] // _PIXELS)].double().cpu().numpy()
    return pixels
