"""Calcium activity as a function of the seed and the time alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Activity:
    """Calcium transients: fast rise, slow decay, some of the whole neuron, some of a single branch.

    A function of the seed and the time alone: events are drawn window by window, each from its own
    generator, so that any moment of an endless run can be asked for in any order.

    Parameters
    ----------
    seed : int
        Seed of the events.
    peak : float
        ΔF/F that strong activity approaches.
    owner : (K,) int
        Neuron of each compartment.
    delay_s : (K,) float
        How much later than its neuron a compartment lights up.
    """

    _WINDOW_S = 2.0
    _RISE_S, _DECAY_S, _MEMORY_S = 0.08, 0.8, 6.0
    _NEURON_RATE_HZ, _BRANCH_RATE_HZ = 0.22, 0.03

    def __init__(
        self, seed: int, peak: float, owner: NDArray[np.int64], delay_s: NDArray[np.float64]
    ) -> None:
        self.compartments = owner.size
        self._seed, self._peak = seed, peak
        self._owner, self._delay_s = owner, delay_s
        self._neurons = int(owner.max()) + 1 if owner.size else 0
        self._events = lru_cache(maxsize=16)(self._draw)

    def gains(self, time_s: float) -> NDArray[np.float64]:
        """Return the brightness (K,) of every compartment relative to rest."""
        if self._peak == 0 or self.compartments == 0:
            return np.ones(self.compartments)
        last = int(time_s // self._WINDOW_S)
        first = int((time_s - self._MEMORY_S) // self._WINDOW_S)
        drawn = [self._events(window) for window in range(first, last + 1)]
        at, who, strength = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        since = np.maximum(time_s - at, 0.0)
        response = strength * (np.exp(-since / self._DECAY_S) - np.exp(-since / self._RISE_S))
        calcium = np.bincount(who, weights=response, minlength=self.compartments)
        return np.asarray(1.0 + self._peak * (1.0 - np.exp(-1.5 * calcium)), np.float64)

    def _draw(self, window: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Return the events of a window: time (s), compartment, strength."""
        # Seeds cannot be negative, and the first frames already look back.
        rng = np.random.default_rng([self._seed, 102, window + 16])
        spikes = np.repeat(
            np.arange(self._neurons), rng.poisson(self._NEURON_RATE_HZ * self._WINDOW_S, self._neurons)
        )
        begin = (window + rng.uniform(0.0, 1.0, spikes.size)) * self._WINDOW_S
        height = rng.gamma(3.0, 0.35, spikes.size)
        event, who = np.nonzero(spikes[:, None] == self._owner[None, :])
        local = np.repeat(
            np.arange(self.compartments),
            rng.poisson(self._BRANCH_RATE_HZ * self._WINDOW_S, self.compartments),
        )
        return (
            np.concatenate([
                begin[event] + self._delay_s[who],
                (window + rng.uniform(0.0, 1.0, local.size)) * self._WINDOW_S,
            ]),
            np.concatenate([who, local]),
            np.concatenate([height[event], rng.gamma(3.0, 0.3, local.size)]),
        )  # fmt: skip
