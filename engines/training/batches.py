"""The endless batches of a training, and how to begin in the middle of them.

INR fits are expensive and windows are cheap, so groups of cubes under one optics live in a ring: each
iteration draws cubes from random groups, and every few iterations the oldest group is replaced. Every group
and every batch has its own random generator, derived from seed and number, so that the batch of iteration n
is the same in an uninterrupted and in a resumed training, and in one process and in several.

Several processes divide the work: of each run of consecutive groups every process makes one, and all get
all; each batch is drawn by all, and every process keeps its share of the cubes.

Runs on the training's thread; with `workers`, groups are made ahead on threads of their own, and the noise
of a batch may then differ from run to run, because torch's generator is shared.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.engines.training.degrade import WINDOWS, Batch, Group, batch_of, make_group
from microdiffusion.engines.training.parallel import Team
from microdiffusion.errors import ConfigError
from microdiffusion.text import count_noun

_GROUPS, _BATCHES = 1, 2
_ALONE = Team(torch.device("cpu"))


class Batches:
    """Batches of `size` windows, from iteration `first` on, every cube from a random group of the ring.

    A process of a team gets its share of each.

    Parameters
    ----------
    pool : (N, SIZE, SIZE, SIZE) float16
        Cubes to draw from.
    crew : Team
        The processes; all of them take the same number of batches.
    ring, renew_every, workers, first : int
        See `TrainingConfig`; `first` is the iteration to begin with.

    Raises
    ------
    ConfigError
        The processes cannot share a batch evenly.
    """

    def __init__(
        self,
        pool: NDArray[np.float16],
        *,
        size: int,
        seed: int,
        crew: Team = _ALONE,
        ring: int = 48,
        renew_every: int = 4,
        workers: int = 0,
        first: int = 0,
    ) -> None:
        self._pool = pool
        self._key = (seed, 0)
        self._crew = crew
        self._cubes = cubes_of(size, crew.size)
        self._every = renew_every
        self._iteration = first
        self._threads = ThreadPoolExecutor(workers, "groups") if workers else None
        self._workers = workers
        self._ahead: dict[int, Future[Group]] = {}
        self._coming: dict[int, Group] = {}
        oldest = first // renew_every
        newest = {number % ring: self._take(number) for number in range(oldest, oldest + ring)}
        self._ring = [newest[slot] for slot in range(ring)]

    def __next__(self) -> Batch:
        """Return the next iteration's batch."""
        self._iteration += 1
        if self._iteration % self._every == 0:
            number = len(self._ring) - 1 + self._iteration // self._every
            self._ring[number % len(self._ring)] = self._take(number)
        rng = self._generator(_BATCHES, self._iteration)
        torch.manual_seed(int(rng.integers(1 << 62)))
        chosen = rng.integers(len(self._ring), size=self._cubes)
        return self._share(batch_of([self._ring[number] for number in chosen], rng))

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _take(self, number: int) -> Group:
        """Return a group; where it is not there yet, each process makes one of it and those that follow."""
        if number not in self._coming:
            for at, group in enumerate(self._crew.gather(self._mine(number + self._crew.rank))):
                self._coming[number + at] = group
        return self._coming.pop(number)

    def _mine(self, number: int) -> Group:
        if self._threads is None:
            return self._make(number)
        step = self._crew.size
        for coming in range(number, number + (1 + self._workers) * step, step):
            if coming not in self._ahead:
                self._ahead[coming] = self._threads.submit(self._make, coming)
        return self._ahead.pop(number).result()

    def _share(self, batch: Batch) -> Batch:
        """Return this process's cubes of a batch, and their windows."""
        if self._crew.size == 1:
            return batch
        count = self._cubes // self._crew.size
        cubes = slice(self._crew.rank * count, (self._crew.rank + 1) * count)
        windows = slice(cubes.start * WINDOWS, cubes.stop * WINDOWS)
        return Batch(
            batch.state[windows],
            batch.prior[windows],
            batch.deviation[windows],
            batch.image[windows],
            batch.conditions[windows],
            batch.columns[cubes],
        )

    def _make(self, number: int) -> Group:
        return make_group(self._pool, self._generator(_GROUPS, number))

    def _generator(self, kind: int, number: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, kind, number])


def cubes_of(windows: int, processes: int) -> int:
    """Return the cubes of a batch, which the processes share evenly.

    Raises
    ------
    ConfigError
        They cannot.
    """
    cubes = max(1, windows // WINDOWS)
    if cubes % processes:
        raise ConfigError(
            f"training.batch = {windows} windows are {count_noun(cubes, 'cube')}, which {processes} "
            f"processes cannot share evenly: set a multiple of {processes * WINDOWS}, or start another "
            "number of them."
        )
    return cubes
