"""The endless batches of a training, and how to begin in the middle of them.

INR fits are expensive and windows are cheap, so groups of cubes under one optics live in a ring: each
iteration draws cubes from random groups, and every few iterations the oldest group is replaced. Every group
and every batch has its own random generator, derived from seed, process and number, so that the batch of
iteration n is the same in an uninterrupted and in a resumed training.

Runs on the training's thread; with `workers`, groups are made ahead on threads of their own, and the noise
of a batch may then differ from run to run, because torch's generator is shared.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.engines.training.degrade import WINDOWS, Batch, Group, batch_of, make_group

_GROUPS, _BATCHES = 1, 2


class Batches:
    """Batches of `size` windows, from iteration `first` on, every cube from a random group of the ring.

    Parameters
    ----------
    pool : (N, SIZE, SIZE, SIZE) float16
        Cubes to draw from.
    seed, rank : int
        Of the training, and of the process within it.
    ring, renew_every, workers, first : int
        See `TrainingConfig`; `first` is the iteration to begin with.
    """

    def __init__(
        self,
        pool: NDArray[np.float16],
        *,
        size: int,
        seed: int,
        rank: int = 0,
        ring: int = 48,
        renew_every: int = 4,
        workers: int = 0,
        first: int = 0,
    ) -> None:
        self._pool = pool
        self._key = (seed, rank)
        self._cubes = max(1, size // WINDOWS)
        self._every = renew_every
        self._iteration = first
        self._threads = ThreadPoolExecutor(workers, "groups") if workers else None
        self._workers = workers
        self._ahead: dict[int, Future[Group]] = {}
        newest = ring - 1 + first // renew_every
        # The newest group whose number belongs into each slot.
        self._ring = [self._make(newest - (newest - slot) % ring) for slot in range(ring)]

    def __next__(self) -> Batch:
        """Return the next iteration's batch."""
        self._iteration += 1
        if self._iteration % self._every == 0:
            number = len(self._ring) - 1 + self._iteration // self._every
            self._ring[number % len(self._ring)] = self._take(number)
        rng = self._generator(_BATCHES, self._iteration)
        torch.manual_seed(int(rng.integers(1 << 62)))
        chosen = rng.integers(len(self._ring), size=self._cubes)
        return batch_of([self._ring[number] for number in chosen], rng)

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _take(self, number: int) -> Group:
        if self._threads is None:
            return self._make(number)
        for coming in range(number, number + 1 + self._workers):
            if coming not in self._ahead:
                self._ahead[coming] = self._threads.submit(self._make, coming)
        return self._ahead.pop(number).result()

    def _make(self, number: int) -> Group:
        return make_group(self._pool, self._generator(_GROUPS, number))

    def _generator(self, kind: int, number: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, kind, number])
