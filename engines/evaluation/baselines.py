"""The classical answers that `mdd` is compared with, each made as strong as it can be without a truth.

Nearest slab, non-negative total variation and Richardson-Lucy; linear interpolation, Tikhonov and our INR are
the engine's own and come from the `Reconstructor`.

A method's free parameters (TV's weight, the number of iterations) are chosen from what an acquisition
knows: by the held-out projection where the sweep has one, with the one-standard-error rule (Breiman et al.
1984, section 3.4.3; of answers that predict it as well as the best does, to within that figure's own
uncertainty, the smoothest), else by Morozov's discrepancy principle (the smoothest answer that still
explains the projections to within their noise). Noise is known or estimated as the engine does it
(`engines/projections/noise.py`).

Functions of a header and a sweep, volumes (Z, Y, X) float32 in the units of the projections. They hold no
state; any thread.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.evaluation.total_variation import total_variation
from microdiffusion.engines.projections import (
    along_z,
    interpolation_matrix,
    nearest_slab,
    noise_variance,
    tensor_of,
    tikhonov_matrix,
)
from microdiffusion.frames import Sweep
from microdiffusion.header import RunHeader

# Multiples of the noise's standard deviation: below, TV only fills gaps. Above 0.2 dense real volumes lose
# about 1 dB, and one held-out projection is often too few pixels to notice.
_TV_WEIGHTS = (0.01, 0.03, 0.1, 0.2)
_TV_AXIAL = (1.0, 2.0, 4.0)
_TV_SEARCH = 50  # iterations of each candidate, warm from its neighbour
_TV_FIELD = 64  # pixels along each edge of the part of the field that candidates are tried on
_RL_CHECKS = (1, 2, 4, 8, 16, 32)
_BLOCK = 8  # pixels whose errors are taken as one: neighbours miss the same structure


@dataclass(slots=True, eq=False)
class Problem:
    """A sweep as tensors, zero light at zero, on one device.

    Attributes
    ----------
    matrix, centres : (M, Z) and (M,) float64
        Operator, and slab centres in slice numbers.
    operator, images, variance : (M, Z), (M, Y, X), (M, Y, X)
    judge, judge_images, judge_variance : (H, Z), (H, Y, X), (H, Y, X)
        Held-out projections; H may be 0.
    offset : float
        Counts of zero light.
    """

    matrix: NDArray[np.float64]
    centres: NDArray[np.float64]
    operator: Tensor
    images: Tensor
    variance: Tensor
    judge: Tensor
    judge_images: Tensor
    judge_variance: Tensor
    offset: float

    @classmethod
    def of(cls, header: RunHeader, sweep: Sweep, device: torch.device) -> Problem:
        """Return the problem of a sweep of a run."""
        counts, judge = tensor_of(sweep.projections, device), tensor_of(sweep.held_out, device)
        matrix = header.operator_at(sweep.stage)
        return cls(
            matrix=matrix,
            centres=header.centres_of(sweep.stage),
            operator=tensor_of(matrix, device),
            images=counts - header.camera.offset,
            variance=noise_variance(counts, header.camera),
            judge=tensor_of(header.operator_at(sweep.held_out_stage), device),
            judge_images=judge - header.camera.offset,
            judge_variance=noise_variance(judge, header.camera) if len(judge) else judge,
            offset=header.camera.offset,
        )

    def middle(self, size: int) -> Problem:
        """Return the same problem for the middle of the field, `size` x `size` pixels at most."""

        def cut(stack: Tensor) -> Tensor:
            top, left = (max(0, (n - size) // 2) for n in stack.shape[1:])
            return stack[:, top : top + size, left : left + size].contiguous()

        return dataclasses.replace(
            self,
            images=cut(self.images),
            variance=cut(self.variance),
            judge_images=cut(self.judge_images),
            judge_variance=cut(self.judge_variance),
        )

    def linear(self) -> Tensor:
        """Return linear interpolation between slab centres, without its negative values."""
        return self.closed(interpolation_matrix(self.centres, self.matrix.shape[1]))

    def closed(self, weights: NDArray[np.float64]) -> Tensor:
        """Return the answer of a matrix (Z, M), without its negative values."""
        return along_z(tensor_of(weights, self.images.device), self.images).clamp_min(0)

    def residual(self, volume: Tensor) -> float:
        """Return the root mean square of A x - p in units of the noise."""
        miss = along_z(self.operator, volume) - self.images
        return float((miss.square() / self.variance).mean().sqrt())

    def judged(self, volume: Tensor) -> tuple[float, float]:
        """Return the mean squared held-out error, in noise variances, and the standard error of that mean."""
        miss = (along_z(self.judge, volume) - self.judge_images).square() / self.judge_variance
        blocks = F.avg_pool2d(miss[:, None], min(_BLOCK, *miss.shape[1:])).flatten()
        error = float(blocks.std() / blocks.numel() ** 0.5) if blocks.numel() > 1 else 0.0
        return float(miss.mean()), error

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, root mean square over the pixels."""
        return float(self.variance.mean().sqrt())


def nearest(problem: Problem) -> Tensor:
    """Return for every slice the projection with the closest slab centre."""
    index = torch.from_numpy(nearest_slab(problem.centres, problem.matrix.shape[1]))
    return problem.images.clamp_min(0.0)[index.to(problem.images.device)]


def tv(
    problem: Problem, *, weight: float | None = None, axial: float | None = None, iterations: int = 200
) -> Tensor:
    """Return the non-negative TV answer; see `total_variation`.

    `weight` is λ in units of the noise's standard deviation, `axial` the weight of the differences along z.
    None: chosen as the module's docstring says, on the middle of the field. (Without a held-out projection
    `axial` is 2 where slabs leave gaps, else 1.)
    """
    if weight is None or axial is None:
        weight, axial = _tv_settings(problem.middle(_TV_FIELD), weight, axial)
    start = problem.closed(tikhonov_matrix(problem.matrix))
    return _tv(problem, weight, axial, iterations, start)[0]


def _tv(
    problem: Problem,
    weight: float,
    axial: float,
    iterations: int,
    start: Tensor,
    dual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return total_variation(
        problem.operator,
        problem.images,
        problem.variance,
        weight=weight * problem.sigma,
        start=start,
        dual=dual,
        axial=axial,
        iterations=iterations,
    )


def _tv_settings(problem: Problem, weight: float | None, axial: float | None) -> tuple[float, float]:
    """Return TV's weight and the weight along z, those that are None chosen from what was measured."""
    start = problem.closed(tikhonov_matrix(problem.matrix))
    held_out = len(problem.judge) > 0
    if axial is None:
        gaps = bool((problem.matrix.sum(axis=0) <= 0).any())
        axial = 2.0 if gaps else 1.0
        if held_out:
            guess = weight or _TV_WEIGHTS[1]
            errors = {
                stretch: problem.judged(_tv(problem, guess, stretch, _TV_SEARCH, start)[0])[0]
                for stretch in _TV_AXIAL
            }
            axial = min(errors, key=errors.__getitem__)
    if weight is None:
        tried: list[tuple[float, float, float]] = []
        volume: Tensor = start
        dual: Tensor | None = None
        for candidate in _TV_WEIGHTS:
            volume, dual = _tv(problem, candidate, axial, _TV_SEARCH, volume, dual)
            judged = problem.judged(volume) if held_out else (problem.residual(volume) ** 2, 0.0)
            tried.append((candidate, *judged))
        _, error, uncertain = min(tried, key=lambda row: row[1])
        bound = error + uncertain if held_out else max(1.0, error)
        weight = max(candidate for candidate, value, _ in tried if value <= bound)
    return weight, axial


def richardson_lucy(problem: Problem, *, iterations: int | None = None) -> Tensor:
    """Return the Richardson-Lucy (MLEM) answer, x ← x Aᵀ(p / A x) / Aᵀ1, begun at linear interpolation.

    Begun at a constant it would stay constant within each slab. Richardson (1972), Lucy (1974), Shepp and
    Vardi (1982). `iterations` None: chosen, few iterations being the smoother answer.
    """
    images = problem.images.clamp_min(0.0)
    sensitivity = problem.operator.sum(dim=0)[:, None, None]
    seen = sensitivity > 1e-3
    # Where both are near zero their quotient is noise, so it is pulled to 1.
    floor = 0.5 * problem.sigma
    volume = problem.linear()
    answers: list[tuple[Tensor, float, float]] = []
    for taken in range(1, (iterations or _RL_CHECKS[-1]) + 1):
        ratio = (images + floor) / (along_z(problem.operator, volume) + floor)
        change = along_z(problem.operator.T, ratio) / sensitivity.clamp_min(1e-3)
        volume = torch.where(seen, volume * change, volume)
        if iterations is None and taken in _RL_CHECKS:
            if len(problem.judge):
                answers.append((volume, *problem.judged(volume)))
            elif problem.residual(volume) <= 1.0:
                return volume
    if not answers:
        return volume
    best = min(answers, key=lambda answer: answer[1])
    return next(answer[0] for answer in answers if answer[1] <= best[1] + best[2])
