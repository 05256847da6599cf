"""Timing: seconds of a call, device included, and calls that take turns.

Ratios come from calls that alternate (A B A B ...), so that other work on the machine slows both alike, and
from the least of each: other work only ever adds. Single-threaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from microdiffusion.daemon.bench.scene import Scene
from microdiffusion.daemon.bench.settings import WARM_UP
from microdiffusion.engines.pipeline import Engine, Reconstructor

QUIET = (1, 2)
"""Of the sweeps of a scene: both offsets, and nothing held out."""
_FIRST = 1000  # after everything that was reconstructed before; even


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes (s), including the work that it leaves on the device."""
    synchronise(device)
    begun = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - begun


def take_turns(
    actions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds (rounds,) of each of the actions, which are called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            seconds[name].append(seconds_of(action, device))
    return seconds


class Turn:
    """One more update whenever it is called: warm, and without a held-out projection."""

    def __init__(self, reconstructor: Reconstructor, scene: Scene) -> None:
        self.scene = scene
        self._reconstructor = reconstructor
        self._number = _FIRST
        for _ in range(WARM_UP):
            self()

    def __call__(self) -> None:
        """Reconstruct the next sweep."""
        sweep = self.scene.sweep(self._number, made=QUIET[self._number % len(QUIET)])
        self._reconstructor.reconstruct(sweep)
        self._number += 1

    def on(self, engine: Engine) -> Turn:
        """Return the same in another engine's runtime, warm, with its own reconstructor."""
        mine = self._reconstructor
        if engine.runtime is mine.engine.runtime:
            return self
        return Turn(Reconstructor(mine.header, mine.config, engine), self.scene)
