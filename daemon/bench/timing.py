"""Timing: seconds of a call, device included, and things that are compared taking turns.

Ratios come from calls that alternate (A B A B ...), so that a machine with other work slows both alike, and
from the least of each: other work only ever adds. Single-threaded, but for the memory's watcher.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import torch

from microdiffusion.daemon.system import resident_mb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

_LOOK_EVERY_S = 0.01


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes (s), with what it left to do on the device."""
    synchronise(device)
    begun = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    actions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds (rounds,) of each of the actions, which are called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            seconds[name].append(seconds_of(action, device))
    return seconds


class PeakMemory:
    """Watches the process's resident memory while its block runs; `mb` is the most that was seen, or None."""

    def __init__(self) -> None:
        self.mb: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mdd-bench-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            now = resident_mb()
            if now is not None:
                self.mb = max(self.mb or 0.0, now)
            if self._over.wait(_LOOK_EVERY_S):
                return
