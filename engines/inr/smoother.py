"""Both directions of a session: what the sweeps before and after each one say of it together.

Offline all sweeps are there, so the first need not know less than the last. A session is run forward, as
live, and then backward; for each sweep the forward estimate, which has seen it, is joined with the backward
prediction, which has not (Fraser & Potter 1969, IEEE Trans. Autom. Control 14:387; Mayne 1966):

    P⁻¹ = Pf⁻¹ + (Pb⁻¹ - P0⁻¹)        x = P (Pf⁻¹ xf + Pb⁻¹ xb)        P0: the prior, which both began with

with the covariances of the two ages of each voxel. Where the backward run finds the sweep to differ from what
comes after it (its age begins anew), the forward estimate stands alone; a change of brightness is taken out
of both. Motion is known from the forward run: the backward one works in its frame.

The forward estimates wait on disk (`Trail`), three bytes a voxel, so that memory does not grow with the run.
Not thread-safe: one session, one thread.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr.covariance import OLDEST, Amplitudes, banded, leeway
from microdiffusion.engines.inr.estimator import Estimate, SessionEstimator
from microdiffusion.engines.projections import interpolation_matrix, local_mean, tensor_of

if TYPE_CHECKING:
    from microdiffusion.engines.inr.registration import Motion


# All of the backward run is believed below the first, nothing above the second: of its squared misfit, as a
# multiple of the forward run's, and of what it says of itself.
_WORSE, _DOUBTFUL = (1.5, 3.0), (25.0, 50.0)
_WINDOW = 5  # pixels, in which a change of brightness is looked for
_BRIGHTER = (0.5, 2.0)  # times, at most


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The knowledge of a session after a sweep, in the frame of the specimen.

    Attributes
    ----------
    mean : (Z, P)
        The field with its brightness at that sweep, above the level of no light.
    age : (Z, P) uint8
    misfit : (M, P)
        Squared difference, in a neighbourhood, of the sweep and what was expected of it; nothing was: NaN.
    covariances : (ages, 2, Z, Z) float64
        By age, from 1, of the broad and of the fine band.
    motion, whole : Motion, (z, y, x)
        Where the specimen was, and by how many voxels the state had been moved along.
    unit : float
        Counts that are 1 in the field.
    level : float
        Counts of no light.
    amplitudes : (broad, fine), optional
        Of the field's variation along z.
    """

    mean: Tensor
    age: Tensor
    misfit: Tensor
    covariances: NDArray[np.float64]
    motion: Motion
    whole: tuple[int, int, int]
    unit: float
    level: float
    amplitudes: Amplitudes | None


class Trail:
    """The knowledge of a session after each of its sweeps: one file for each, in a folder that goes with it.

    Parameters
    ----------
    parent : Path
        Where that folder is made.

    Attributes
    ----------
    findings : object
        Findings of the way there about the network, for the way back.
    """

    findings: object = None

    def __init__(self, parent: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=".mdd-", dir=parent)
        self._numbers: dict[int, tuple[Motion, tuple[int, int, int], float, float, Amplitudes | None]] = {}

    def __enter__(self) -> Trail:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def keep(self, sweep: int, known: Known) -> None:
        """Keep what is known after a sweep; means to eleven bits."""
        np.savez(
            self._path(sweep),
            mean=known.mean.half().cpu().numpy(),
            age=known.age.cpu().numpy(),
            misfit=known.misfit.cpu().numpy(),
            covariances=known.covariances,
        )
        self._numbers[sweep] = (known.motion, known.whole, known.unit, known.level, known.amplitudes)

    def at(self, sweep: int, device: torch.device) -> Known:
        """Return what was known after a sweep that was kept.

        Raises
        ------
        KeyError
            It was not.
        """
        numbers = self._numbers[sweep]
        with np.load(self._path(sweep)) as kept:
            mean, age, misfit = (
                torch.from_numpy(kept[name]).to(device) for name in ("mean", "age", "misfit")
            )
            return Known(mean.float(), age, misfit, kept["covariances"], *numbers)

    def _path(self, sweep: int) -> Path:
        return Path(self._folder.name) / f"{sweep}.npz"


def joined(
    known: Known,
    before: SessionEstimator,
    after: SessionEstimator,
    trust: Tensor,
    rescale: Tensor,
    lift: float,
) -> Estimate:
    """Return what is known of a sweep from both sides.

    Parameters
    ----------
    known : Known
        What the sweeps up to this one say.
    before, after : SessionEstimator
        The backward run before and after it took this sweep in.
    trust : (Z, P)
        Of the backward run, within 0 and 1.
    rescale : (Z, P)
        How much brighter the sweep is than the backward run says; see `rescaled`.
    lift : float
        Of the level of no light, from the forward run to the backward one, in units of the field.
    """
    mean = known.mean + lift
    age = known.age.clamp(1, len(known.covariances))
    ahead = before.covariances.predicted
    edges = before.shape[1:]
    _, now = after.state()
    later = torch.zeros_like(age)
    seen = both = mean
    if before.sweeps:
        _, then = before.state()
        seen, both = after.changes.applied(then["field"]) * rescale, after.present * rescale
        # Where the sweep is not what comes after it, that has nothing to say of it.
        later = torch.where(
            (now["age"] == 1) | (trust == 0),
            later,
            then["age"].clamp(max=len(ahead) - 1),
        )
    prior, *predicted = (np.linalg.inv(each) for each in ahead)
    learned = [_positive(each - prior) for each in predicted]
    own = [np.linalg.inv(each) for each in known.covariances]
    bands = [banded(each.unflatten(1, edges)).chunk(2) for each in (mean, seen)]
    volume, variance = mean.clone(), torch.empty_like(mean)
    pairs = age.long() * (OLDEST + 1) + later.long()
    common, most = known.covariances[0], 0
    for pair in torch.unique(pairs).tolist():
        here, there = divmod(pair, OLDEST + 1)
        members = pairs == pair
        left = known.covariances[here - 1]
        if there and here == 1:  # forward only the sweep itself is known, and backward that, too
            volume = torch.where(members, both, volume)
            left = now["covariances"][min(there, OLDEST - 1)].numpy()
        elif there:
            left = np.linalg.inv(own[here - 1] + learned[there - 1])
            columns = torch.nonzero(members.any(0))[:, 0]
            mixed = torch.zeros_like(mean[:, columns])
            for precisions, parts in zip((own[here - 1], predicted[there - 1]), bands, strict=True):
                for weight, part in zip(left @ precisions, parts, strict=True):
                    mixed += tensor_of(weight, mean.device) @ part[:, columns]
            volume[:, columns] = torch.where(members[:, columns], mixed, volume[:, columns])
        if (count := int(members.sum())) > most:
            common, most = left, count
        variance = torch.where(members, tensor_of(left.sum(0).diagonal(), mean.device)[:, None], variance)
    volume = torch.lerp(mean, volume, trust)
    ages = torch.where(trust > 0.5, age + later, age).clamp(max=OLDEST)
    return Estimate(
        volume.unflatten(1, edges),
        ages.unflatten(1, edges),
        float((ages > 1).float().mean()),
        lambda: variance.clamp_min(0.0).sqrt().unflatten(1, edges),
        lambda: tensor_of(leeway(common.sum(0)), mean.device),
    )


def expected_misfit(estimator: SessionEstimator, matrix: NDArray[np.float64], noise: float) -> Tensor:
    """Return the variance (M, P) of what a sweep differs by from what is expected, by the age of each slab.

    `matrix` (M, Z) is the operator of the sweep, `noise` the variance of its noise.
    """
    _, tensors = estimator.state()
    ahead = np.stack([each.sum(0) for each in estimator.covariances.predicted])
    share = tensor_of(matrix / matrix.sum(1, keepdims=True), tensors["field"].device)
    age = (share @ tensors["age"].float()).round().long().clamp(max=len(ahead) - 1)
    variances = ((matrix @ ahead) * matrix).sum(2)
    return tensor_of(variances.T + noise, tensors["field"].device).gather(1, age)


def trusted(misfit: Tensor, known: Tensor, doubt: float, matrix: NDArray[np.float64]) -> Tensor:
    """Return how far a backward run is to be believed (Z, P), within 0 and 1.

    It may not explain a sweep far worse than the forward one did, nor be far less sure than it says, as where
    the last sweeps of a thin specimen have too few slabs to begin with.

    Parameters
    ----------
    misfit, known : (M, P)
        Squared differences of the sweep and what the backward and the forward run expected.
    doubt : float
        Squared misfit of the backward run relative to what it says of itself.
    matrix : (M, Z)
        Operator of the sweep.
    """
    trust = _share(misfit / known, *_WORSE).nan_to_num(1.0) * _share(torch.tensor(doubt), *_DOUBTFUL)
    return _along_z(trust, matrix)


def rescaled(
    light: Tensor,
    before: SessionEstimator,
    after: SessionEstimator,
    matrix: NDArray[np.float64],
    noise: float,
) -> Tensor:
    """Return by which factor a backward run's prediction of a sweep is to be brighter (Z, P).

    Changes of brightness that the estimator's prior takes for none count here: what comes after a change is
    in every prediction before it, and would lift the quiet time that activity is measured against.

    Parameters
    ----------
    light : (M, Y, X)
        The sweep in the frame of the specimen; `noise` is the variance of its noise.
    before, after : SessionEstimator
        The backward run before and after it took this sweep in.
    matrix : (M, Z)
        Operator of the sweep.
    """
    _, then = before.state()
    seen = after.changes.applied(then["field"])
    expected = (tensor_of(matrix, seen.device) @ seen.clamp_min(0.0)).unflatten(1, light.shape[1:])
    # Of the ratio, a difference that is expected anyway tells nothing.
    unsure = expected_misfit(before, matrix, noise).unflatten(1, light.shape[1:])
    ratio = (local_mean(light * expected, _WINDOW) + unsure) / (
        local_mean(expected.square(), _WINDOW) + unsure
    )
    return _along_z(ratio.clamp(*_BRIGHTER).flatten(1), matrix)


def _along_z(slabs: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """Return what slabs (M, P) say, interpolated between their centres (Z, P)."""
    centres = matrix @ np.arange(matrix.shape[1]) / matrix.sum(1)
    return tensor_of(interpolation_matrix(centres, matrix.shape[1]), slabs.device) @ slabs


def _share(ratio: Tensor, low: float, high: float) -> Tensor:
    return ((high - ratio) / (high - low)).clamp(0.0, 1.0)


def _positive(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is left of symmetric matrices (..., Z, Z) without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.swapaxes(-1, -2)) / 2)
    kept = vectors * values.clip(min=0.0)[..., None, :]
    return np.asarray(kept @ vectors.swapaxes(-1, -2), np.float64)
