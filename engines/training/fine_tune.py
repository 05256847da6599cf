"""A short training under the optics of one session: the loop of both kinds of `mdd adapt`.

Cubes of the specimen are seen through a session's own beam, step and noise, after a random number of earlier
sweeps (`degrade.make_group`), in a ring of groups as in the ordinary training. Runs on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.degrade import Optics, batch_of, make_group
from microdiffusion.engines.training.learner import Learner

REFRESH = 200
"""Iterations after which the specimen's cubes are drawn again, so many of them:"""
SPECIMENS = 32
_RING, _RENEW_EVERY, _BATCH = 12, 8, 2
"""Groups that are kept, iterations after which one is renewed, and cubes of a batch."""

Watch = Callable[[int, float, float, float], None]
"""Gets iteration, share of the whole, loss and seconds, now and then."""


@dataclass(frozen=True, slots=True)
class AdaptPlan:
    """Length (iterations, or minutes in all), and the learning rate before the cosine."""

    iterations: int = 100
    minutes: float = 15.0
    rate: float = 3e-4
    seed: int = 0


def fine_tune(
    learner: Learner,
    plan: AdaptPlan,
    optics: Optics,
    cubes: Callable[[], NDArray[np.float16]],
    rng: np.random.Generator,
    watch: Watch,
    *,
    begun_s: float,
    reserve_s: float,
    more: Callable[[], Tensor] | None = None,
) -> int:
    """Train the learner by the plan; return the iterations that were taken.

    Parameters
    ----------
    cubes
        Draws cubes (N, SIZE, SIZE, SIZE) of the specimen, with the present network where it needs one.
    begun_s, reserve_s : float
        When the plan's minutes began (`time.monotonic()`), and what of them is needed afterwards.
    more
        Another term of the loss.
    """
    pool = cubes()
    ring = [make_group(pool, rng, optics) for _ in range(_RING)]
    iteration = 0
    while True:
        seconds = time.monotonic() - begun_s
        share = max(iteration / plan.iterations, (seconds + reserve_s) / (60 * plan.minutes))
        if share >= 1:
            return iteration
        if iteration and iteration % REFRESH == 0:
            pool = cubes()
        if iteration and iteration % _RENEW_EVERY == 0:
            ring[(iteration // _RENEW_EVERY) % _RING] = make_group(pool, rng, optics)
        chosen = rng.integers(len(ring), size=_BATCH)
        torch.manual_seed(int(rng.integers(1 << 62)))
        loss = learner.loss(batch_of([ring[number] for number in chosen], rng))
        if more is not None:
            loss = loss + more()
        learner.update(loss, iteration, share, warm_up=20, least=0.05, memory=0.98)
        iteration += 1
        if iteration % 10 == 0:
            watch(iteration, share, float(loss.detach()), seconds)


def cut_cube(volume: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float16]:
    """Return a random cube of SIZE, of three the one with most structure; mirrored where that is smaller."""
    parts = []
    for _ in range(3):
        start = [int(rng.integers(0, max(1, n - SIZE + 1))) for n in volume.shape]
        parts.append(volume[tuple(slice(s, s + SIZE) for s in start)])
    cube = max(parts, key=lambda part: float(part.std()))
    return np.pad(cube, [(0, SIZE - n) for n in cube.shape], mode="symmetric").astype(np.float16)
